"""Trains and evaluates a pack for one pass over the data, which lies on the device."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stagetree.data import cache, sampling
from stagetree.errors import InputError
from stagetree.models.losses import loss_gradient, loss_sums
from stagetree.models.mlp import Layer, Pack
from stagetree.models.optimizers import PackOptimizer
from stagetree.storage.checkpoints import State
from stagetree.training.cuda_graphs import Replayed, record_cuda
from stagetree.training.devices import lacking
from stagetree.tree.runs import PackKey, Settings


@dataclass(frozen=True)
class Split:
    """A prepared data set on a device; `train` and `val` are indices of the training images `(n, in_features)`."""

    info: cache.DataInfo
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    train: Tensor
    val: Tensor

    @classmethod
    def load(cls, folder: Path, spec: PackKey) -> "Split":
        """Bring a prepared data set to the device of a pack key."""
        arrays = cache.load(folder, spec.data)
        parts = (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels)
        tensors = [torch.from_numpy(array).to(spec.device) for array in parts]
        members = sampling.split(arrays.info.n_train, spec.val_size, spec.val_seed)
        return cls(arrays.info, *tensors, *(indices.to(spec.device) for indices in members))

    def batch(self, rows: Tensor, spec: PackKey, *, test: bool = False) -> tuple[Tensor, Tensor]:
        """Gather images: indices `(..., b)` -> float32 `(..., b, in_features)` and labels `(..., b)`."""
        images, labels = (self.test_images, self.test_labels) if test else (self.train_images, self.train_labels)
        flat = rows.reshape(-1)
        pixels = images.index_select(0, flat).view(*rows.shape, -1)
        return sampling.to_float(pixels, self.info, spec.mean, spec.std), labels[flat].view(rows.shape)


class _Sums:
    """Sums of each member's loss and hits on the device; the loss is float64, as it has many terms."""

    def __init__(self, k: int, device: torch.device):
        device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self._loss = torch.zeros(k, dtype=torch.float64, device=device)
        self._weight = torch.zeros(k, dtype=torch.float64, device=device)
        self._hits = torch.zeros(k, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, weight: Tensor | float) -> None:
        hits = (logits.argmax(-1) == labels).sum(1)
        device = self._loss.device
        self._loss += loss.to(device)
        self._weight += weight.to(device) if isinstance(weight, Tensor) else weight
        self._hits += hits.to(device)

    def means(self, part: str, n_images: int) -> list[dict[str, float]]:
        columns = zip((self._loss / self._weight).tolist(), self._hits.tolist(), strict=True)
        return [{f"{part}/loss": loss, f"{part}/acc": hits / n_images} for loss, hits in columns]

    def reset(self) -> None:
        for value in (self._loss, self._weight, self._hits):
            value.zero_()


def prepare_device(spec: PackKey) -> None:
    """Set threads, denormals and precision, which are global in torch.

    Raises:
        InputError: this machine lacks the device.
    """
    device = spec.device
    if said := lacking(device):
        raise InputError(said)
    if device == "cpu":
        torch.set_num_threads(spec.threads)
        # Moments of weights that are trained no more decay to numbers that a CPU multiplies a hundred times as slowly.
        torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = spec.precision == "tf32"


@contextlib.contextmanager
def prepared_device(spec: PackKey) -> Iterator[None]:
    """Apply `prepare_device`, and restore the settings afterwards for other users of torch in this process."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    flushes = sys.float_info.min / 2 == 0.0  # torch does not say
    try:
        prepare_device(spec)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
        torch.backends.cuda.matmul.allow_tf32 = tf32


def never() -> None:
    """Raise nothing, so that training goes on."""


@torch.no_grad()
def evaluate(
    pack: Pack, split: Split, spec: PackKey, part: str, check: Callable[[], None] = never
) -> list[dict[str, float]]:
    """Compute each member's mean loss and accuracy on `val` or `test`: `{"val/loss": ..., "val/acc": ...}`."""
    test = part == "test"
    rows = torch.arange(split.info.n_test, device=split.train.device) if test else split.val
    sums = _Sums(len(pack), split.train.device)
    for first in range(0, len(rows), spec.eval_batch_size):
        check()
        x, y = split.batch(rows[first : first + spec.eval_batch_size], spec, test=test)
        y = y.expand(len(pack), -1)
        with _precision(spec):
            logits = pack.forward(x.expand(len(pack), -1, -1))
        sums.add(logits.float(), y, *loss_sums(logits.float(), y, spec.loss))
    return sums.means(part, len(rows))


@dataclass(frozen=True)
class Member:
    """A member of a pack as it begins to train."""

    weights: State
    optimizer: Settings
    """The optimizer group's settings; all members have an optimizer of one name."""
    lr: float
    seed: int
    first_epoch: int
    """Counted from 0 over the whole schedule."""


class PackTraining:
    """Train a pack, in place, one epoch at a time.

    A member's seed and the number of the epoch decide the order of its minibatches and its dropout masks. On a CUDA
    device the whole step, optimizer included, is replayed as a CUDA graph where it can be.

    Args:
        members: all of one pack key.
        split: the data.
        spec: their pack key.

    Attributes:
        pack: the members' weights.
        optimizer: `None` for plain SGD, which is folded into the backward pass.
    """

    def __init__(self, members: Sequence[Member], split: Split, spec: PackKey):
        self._split, self._spec, self._device = split, spec, split.train.device
        # torch.optim's fused kernels take contiguous weights only
        spaced = spec.folded and self._device.type == "cpu"
        form = {"activation": spec.model["activation"], "dropout": spec.model["dropout"], "spaced": spaced}
        self.pack = Pack([member.weights for member in members], device=self._device, **form)
        self._lr = self.optimizer = None
        lrs = [member.lr for member in members]
        if spec.folded:
            self._lr = torch.tensor(lrs, device=self._device)[:, None, None]
        else:
            self.optimizer = PackOptimizer(self.pack.parameters, [member.optimizer for member in members], lrs)
        keys = [(member.seed, member.first_epoch) for member in members]
        self._keys = list(dict.fromkeys(keys))  # members with equal keys see the same minibatches and masks
        self._members = [self._keys.index(key) for key in keys]
        self._orders = self._keys if spec.shuffle else self._keys[:1]
        self._owner = torch.tensor(self._members, device=self._device)
        self._sums = _Sums(len(members), self._device)
        self._step: Callable[..., None] = self._advance
        self._stream = None
        if self._device.type == "cuda" and (self.optimizer is None or self.optimizer.capturable):
            self._step = Replayed(self._advance, record_cuda)
            self._stream = torch.cuda.Stream(self._device)

    @property
    def steps(self) -> int:
        """Minibatches of an epoch."""
        return -(-len(self._split.train) // self._spec.batch_size)

    def epoch(self, epoch: int, check: Callable[[], None] = never) -> list[dict[str, float]]:
        """Train an epoch and return each member's mean loss and accuracy over its minibatches.

        Args:
            epoch: counted from each member's first, from 0.
            check: called before each minibatch; an error that it raises ends training there.
        """
        keys = [(seed, first + epoch) for seed, first in self._keys]
        generators = [sampling.generator(*key, "dropout", self._device) for key in keys]
        generators = [generators[member] for member in self._members]
        rows, shuffle = self._split.train, self._spec.shuffle
        shuffled = keys[: len(self._orders)]
        orders = torch.stack([sampling.epoch_order(rows, seed=seed, epoch=n, shuffle=shuffle) for seed, n in shuffled])
        with self._own_stream():
            self._sums.reset()
            for first in range(0, orders.shape[1], self._spec.batch_size):
                check()
                rows = orders[:, first : first + self._spec.batch_size]
                self._step(rows, *self.pack.masks(rows.shape[1], generators))
        return self._sums.means("train", orders.shape[1])

    @torch.no_grad()
    def _advance(self, rows: Tensor, *masks: Tensor) -> None:
        """Train on one minibatch of each member: rows `(orders, b)`."""
        x, y = self._split.batch(rows, self._spec)
        if len(self._orders) == 1:
            x, y = x.expand(len(self.pack), -1, -1), y.expand(len(self.pack), -1)
        elif len(self._orders) < len(self.pack):
            x, y = x[self._owner], y[self._owner]
        tape: list[Layer] = []
        with _precision(self._spec):
            logits = self.pack.forward(x, masks=masks, tape=tape)
        loss, weight, grad = loss_gradient(logits.float(), y, self._spec.loss)
        with _precision(self._spec):
            grads = self.pack.backward(tape, grad.to(logits.dtype), self._lr)
        if self.optimizer is not None:
            self.optimizer.step(grads)
        self._sums.add(logits, y, loss, weight)

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Work on a stream of our own, since a step is recorded on the stream where it was warmed up."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _precision(spec: PackKey):
    if spec.precision == "bfloat16":
        # the weights change with each step: no cast copy may be kept, nor may a CUDA graph refer to one
        return torch.autocast(spec.device, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()
