"""Every setting of a model, a loss and an optimizer does what plain torch does with it."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stagetree.config import schema
from stagetree.data import cache, sampling
from stagetree.models.mlp import sequential
from stagetree.models.optimizers import CLASSES
from stagetree.storage import checkpoints

OTHER = {
    "weight_decay": 0.1, "momentum": 0.7, "dampening": 0.5, "nesterov": True, "betas": [0.5, 0.8], "eps": 0.01,
    "amsgrad": True, "momentum_decay": 0.5, "decoupled_weight_decay": True, "alpha": 0.7, "centered": True,
    "lr_decay": 0.2, "initial_accumulator_value": 0.3, "rho": 0.5,
    "label_smoothing": 0.3, "class_weights": [0.2, 1.0, 3.0],
    "hidden_sizes": [7, 5], "activation": "gelu", "dropout": 0.4,
}  # fmt: skip
"""A value for each setting that is not its default."""
NEEDED = {
    "dampening": {"momentum": 0.9}, "nesterov": {"momentum": 0.9}, "decoupled_weight_decay": {"weight_decay": 0.1},
    "amsgrad": {"betas": [0.5, 0.5]},  # or no second moment falls in so few steps
}  # fmt: skip
"""What else must be set for a setting to mean anything."""
MODEL, STAGES = {"hidden_sizes": [8], "activation": "tanh"}, [[2, 0.02], [1, 0.01]]


def members(union):
    return get_args(get_args(union)[0])


def cases():
    """Each setting in the schema: the group as it is without it, and with another value."""
    for group, classes in (
        ("optimizer", members(schema.AnyOptimizer)), ("loss", members(schema.AnyLoss)), ("model", [schema.Model]),
    ):  # fmt: skip
        for kind in classes:
            named = kind.model_fields.get("name")
            base = {"name": get_args(named.annotation)[0]} if named else MODEL
            for setting in kind.model_fields:
                if setting != "name":
                    before = base | NEEDED.get(setting, {})
                    yield pytest.param(
                        group, before, {**before, setting: OTHER[setting]}, id=f"{kind.__name__}-{setting}"
                    )


class Dropout(nn.Module):
    """With the masks of one epoch after the other."""

    def __init__(self, p: float):
        super().__init__()
        self.p, self.generator = p, None

    def forward(self, x):
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator) / (1 - self.p)


def plainly(made: schema.Config) -> dict[str, torch.Tensor]:
    """Train as everybody would, with modules, autograd and torch.optim."""
    info = cache.prepare(made.dataset, Path(made.output_dir))
    arrays = cache.load(Path(info.folder), info.digest)
    images, labels = torch.tensor(arrays.train_images) / 255, torch.tensor(arrays.train_labels)
    members, _ = sampling.split(info.n_train, made.dataset.val_size, made.dataset.val_seed)
    model, loss = made.model.model_dump(), made.loss.model_dump()
    torch.manual_seed(made.seed)
    module = sequential(info.in_features, n_classes=len(info.classes), **model)
    for position, layer in enumerate(module):
        if isinstance(layer, nn.Dropout):
            module[position] = Dropout(layer.p)
    settings = made.optimizer.model_dump()
    make, epoch = CLASSES[settings.pop("name")], 0
    for stage in made.schedule.stages:
        optimizer = make(module.parameters(), lr=stage.lr, **settings)
        for _ in range(stage.epochs):
            masks = sampling.generator(made.seed, epoch, "dropout")
            for layer in module:
                if isinstance(layer, Dropout):
                    layer.generator = masks
            for rows in sampling.epoch_order(members, seed=made.seed, epoch=epoch, shuffle=True).split(16):
                optimizer.zero_grad()
                losses(module(images[rows]), labels[rows], loss).backward()
                optimizer.step()
            epoch += 1
    return module.state_dict()


def losses(logits, labels, loss):
    if loss["name"] == "mse":
        return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).float())
    weights = torch.tensor(loss["class_weights"]) if loss["class_weights"] else None
    if loss["name"] == "nll":
        return F.nll_loss(F.log_softmax(logits, 1), labels, weights)
    return F.cross_entropy(logits, labels, weights, label_smoothing=loss["label_smoothing"])


@pytest.mark.parametrize(("group", "before", "after"), list(cases()))
def test_another_value_gives_other_weights_and_those_of_plain_torch(bench, group, before, after):
    def settings(chosen):
        return {"model": MODEL, "schedule": {"stages": STAGES}, group: chosen}

    runs = [bench.run(**settings(chosen)) for chosen in (before, after)]
    bench.train(*runs)
    first, second = [checkpoints.load_weights(bench.checkpoints, run.uid)[1] for run in runs]
    for name, expected in plainly(bench.config(**settings(after))).items():
        # adaptive steps divide by the gradient's size, which magnifies rounding where it is near 0
        torch.testing.assert_close(torch.from_numpy(second[name]), expected, rtol=1e-4, atol=2e-5)
    if first.keys() == second.keys() and all(first[name].shape == second[name].shape for name in first):
        assert max(abs(first[name] - second[name]).max() for name in first) > 2e-4  # ten times that
