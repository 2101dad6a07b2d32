"""A run in plain torch, from its resolved configuration: nn.Sequential, autograd, torch.optim, torch's losses.

Only which images are seen in which order, and the draws of dropout, are the project's (`sampling`).
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagetree.data import sampling
from stagetree.models.layers import ACTIVATIONS
from stagetree.models.optimizers import CLASSES


def train(config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a configuration of an `npz` data set; return weights as `nn.Sequential` names them, and test metrics."""
    data, trainer, seed = config["dataset"], config["trainer"], config["seed"]
    with np.load(Path(data["root"]) / data["file"]) as arrays:
        x, test_x = (torch.from_numpy(arrays[key]).flatten(1).float() / 255 for key in ("train_x", "test_x"))
        y, test_y = (torch.from_numpy(arrays[key]).long() for key in ("train_y", "test_y"))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(data["val_seed"]))
    members = order[: len(x) - data["val_size"]] if data["val_size"] else torch.arange(len(x))
    p = config["model"]["dropout"]
    torch.manual_seed(seed)
    sizes = [x.shape[1], *config["model"]["hidden_sizes"]]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), getattr(nn, ACTIVATIONS[config["model"]["activation"]].layer)()]
        layers += [nn.Dropout(p)] if p else []
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], len(y.unique())))
    loss = _loss(config["loss"])
    settings = {name: value for name, value in config["optimizer"].items() if name != "name"}
    optimizer, epoch = None, 0
    for stage in config["schedule"]["stages"]:
        if optimizer is None or config["schedule"]["reset_optimizer"]:
            optimizer = CLASSES[config["optimizer"]["name"]](net.parameters(), lr=stage["lr"], **settings)
        for group in optimizer.param_groups:
            group["lr"] = stage["lr"]
        for _ in range(stage["epochs"]):
            masks = sampling.generator(seed, epoch, "dropout")
            rows = sampling.epoch_order(members, seed=seed, epoch=epoch, shuffle=trainer["shuffle"])
            for batch in rows.split(trainer["batch_size"]):
                out = x[batch]
                for layer in net:
                    out = _dropped(out, p, masks) if isinstance(layer, nn.Dropout) else layer(out)
                optimizer.zero_grad()
                loss(out, y[batch]).backward()
                optimizer.step()
            epoch += 1
    net.eval()
    with torch.no_grad():
        logits = net(test_x)
        test = {
            "test/loss": loss(logits, test_y).item(),
            "test/acc": (logits.argmax(1) == test_y).float().mean().item(),
        }
    return net.state_dict(), test


def _dropped(out: Tensor, p: float, generator: torch.Generator) -> Tensor:
    return out * torch.empty_like(out).bernoulli_(1 - p, generator=generator) / (1 - p)


def _loss(settings: Mapping[str, Any]):
    weights = torch.tensor(settings["class_weights"]) if settings.get("class_weights") else None
    if settings["name"] == "mse":
        return lambda logits, y: F.mse_loss(logits, F.one_hot(y, logits.shape[1]).float())
    if settings["name"] == "nll":
        return lambda logits, y: F.nll_loss(F.log_softmax(logits, 1), y, weights)
    return nn.CrossEntropyLoss(weights, label_smoothing=settings["label_smoothing"])
