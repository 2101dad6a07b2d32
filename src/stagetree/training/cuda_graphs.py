"""Replay a training step as a CUDA graph: launching its kernels costs more than computing them."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Number of calls before recording, in which libraries set themselves up and optimizers make their state."""


class Replayed:
    """Calls a step and, after a few calls, replays a recording of it; a step that cannot be recorded is called on.

    The first calls train like all others, so a recording begins where they end and nothing is computed twice.

    Args:
        step: takes tensors and returns nothing. All other memory that it reads or changes must keep its place, and
            nothing in it may wait for the device.
        record: takes a function, and returns one that has the same effect on the device.
    """

    def __init__(self, step: Callable[..., None], record: Callable[[Callable[[], None]], Callable[[], None]]):
        self._step, self._record = step, record
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        if self._inputs and [own.shape for own in self._inputs] != [new.shape for new in inputs]:
            self._step(*inputs)  # an epoch's last minibatch, if it is smaller
            return
        self._calls += 1
        if self._calls <= WARM_UP or (self._inputs and self._replay is None):
            self._step(*inputs)
            return
        if self._replay is None:
            self._inputs = tuple(value.clone() for value in inputs)
            try:
                self._replay = self._record(lambda: self._step(*self._inputs))
            except RuntimeError as error:
                warnings.warn(f"trains without a CUDA graph: {error}", stacklevel=2)
                self._step(*inputs)
                return
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._replay()


def record_cuda(step: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the current stream's device, without doing it, as a CUDA graph.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay
