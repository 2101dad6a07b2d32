"""One pass of a pack over the data: training and evaluation, the pictures gathered on the device."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stagetree import data
from stagetree.model import Pack, loss_sums
from stagetree.optimizer import PackOptimizer


@dataclass(frozen=True)
class Split:
    """A prepared data set on a device, divided; images are `(n, in_features)`, `train` and `val` index the first."""

    info: data.DataInfo
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    train: Tensor
    val: Tensor

    @classmethod
    def load(cls, folder: Path, spec: Mapping) -> "Split":
        """Bring a prepared data set to the device that `spec`, a pack's shape, names."""
        arrays = data.load(folder, spec["data"])
        parts = (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels)
        tensors = [torch.from_numpy(array).to(spec["device"]) for array in parts]
        members = data.split(arrays.info.n_train, spec["val_size"], spec["val_seed"])
        return cls(arrays.info, *tensors, *(indices.to(spec["device"]) for indices in members))

    def batch(self, rows: Tensor, spec: Mapping, *, test: bool = False) -> tuple[Tensor, Tensor]:
        """Gather pictures: indices `(..., b)` -> float32 `(..., b, in_features)` and labels `(..., b)`."""
        images, labels = (self.test_images, self.test_labels) if test else (self.train_images, self.train_labels)
        flat = rows.reshape(-1)
        pixels = images.index_select(0, flat).view(*rows.shape, -1)
        return data.to_float(pixels, self.info, spec["mean"], spec["std"]), labels[flat].view(rows.shape)


class _Sums:
    """Loss and hits of each member, added up on the device; float64, as sums of many terms."""

    def __init__(self, k: int, device: torch.device):
        self._values = torch.zeros(4, k, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, weight: Tensor) -> None:
        hits = (logits.argmax(-1) == labels).sum(1)
        pictures = torch.full_like(hits, labels.shape[1])
        self._values += torch.stack([loss.detach(), weight, hits, pictures]).to(self._values)

    def means(self, part: str) -> list[dict[str, float]]:
        loss, weight, hits, pictures = self._values
        columns = zip((loss / weight).tolist(), (hits / pictures).tolist(), strict=True)
        return [{f"{part}/loss": loss, f"{part}/acc": acc} for loss, acc in columns]


def never() -> None:
    """Do not end training before its time."""


@torch.no_grad()
def evaluate(
    pack: Pack, split: Split, spec: Mapping, part: str, check: Callable[[], None] = never
) -> list[dict[str, float]]:
    """Mean loss and accuracy of each member on `val` or `test`: `{"val/loss": ..., "val/acc": ...}`."""
    test = part == "test"
    rows = torch.arange(split.info.n_test, device=split.train.device) if test else split.val
    sums = _Sums(len(pack), split.train.device)
    for first in range(0, len(rows), spec["eval_batch_size"]):
        check()
        x, y = split.batch(rows[first : first + spec["eval_batch_size"]], spec, test=test)
        y = y.expand(len(pack), -1)
        with _precision(spec):
            logits = pack.forward(x.expand(len(pack), -1, -1))
        sums.add(logits.float(), y, *loss_sums(logits.float(), y, spec["loss"]))
    return sums.means(part)


def train_epoch(
    pack: Pack, optimizer: PackOptimizer | None, lr: Tensor | None, split: Split, spec: Mapping,
    keys: Sequence[tuple[int, int]], check: Callable[[], None] = never,
) -> list[dict[str, float]]:  # fmt: skip
    """Train one epoch, in place, and return each member's mean loss and accuracy over its minibatches.

    Args:
        pack: the members.
        optimizer: `None` with `lr` given: plain SGD, folded into the backward pass.
        lr: `(K, 1, 1)`, or `None` with an optimizer.
        split: the data.
        spec: what the members have in common.
        keys: each member's `(seed, epoch)`, which decide the order of its minibatches and its dropout masks.
        check: called before each minibatch; what it raises ends training there.
    """
    distinct = list(dict.fromkeys(keys))
    by_key = [data.generator(seed, epoch, "dropout", split.train.device) for seed, epoch in distinct]
    generators = [by_key[distinct.index(key)] for key in keys]
    if not spec["shuffle"]:
        distinct, owner = distinct[:1], [0] * len(keys)
    else:
        owner = [distinct.index(key) for key in keys]
    orders = torch.stack([
        data.epoch_order(split.train, seed=seed, epoch=epoch, shuffle=spec["shuffle"]) for seed, epoch in distinct
    ])  # fmt: skip
    sums = _Sums(len(pack), split.train.device)
    for first in range(0, orders.shape[1], spec["batch_size"]):
        check()
        x, y = split.batch(orders[:, first : first + spec["batch_size"]], spec)
        if len(distinct) == 1:
            x, y = x.expand(len(pack), -1, -1), y.expand(len(pack), -1)
        else:
            x, y = x[owner], y[owner]
        with _precision(spec):
            logits = pack.forward(x, lr=lr, generators=generators)
        logits = logits.float()
        loss, weight = loss_sums(logits, y, spec["loss"])
        total = (loss / weight).sum()  # members do not touch each other: the gradient of each is its own mean's
        if optimizer is None:
            total.backward()
        else:
            optimizer.step(torch.autograd.grad(total, pack.parameters))
        sums.add(logits.detach(), y, loss, weight)
    return sums.means("train")


def _precision(spec: Mapping):
    if spec["precision"] == "bfloat16":
        return torch.autocast(spec["device"], torch.bfloat16)
    return contextlib.nullcontext()
