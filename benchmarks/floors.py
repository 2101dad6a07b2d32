"""What no engine can avoid: the matrix products of a step, and an optimizer's pass over weights and moments, alone.

    python benchmarks/floors.py               # all grids
    python benchmarks/floors.py --quick R16   # without waiting for steady figures

Each is measured with buffers that are there already, in two processes of one thread at a time, as a sweep on two cores
trains. From it follows how long the training of each of `make bench`'s grids takes at least on this machine.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from setting import setting

REPEATS = 5
WORKERS = 2
SIZES = (1, 2, 4, 8, 16)  # of packs; the best counts


@dataclass(frozen=True)
class Work:
    """The epochs of one shape in a grid, once shared prefixes are trained once."""

    sizes: tuple[int, ...]
    batch_size: int
    epochs: int
    steps: int
    """Of an epoch."""
    adam: bool = False


GRIDS = {
    "R16": [Work((784, 300, 10), 32, 24, 1875)],
    "R64": [Work((784, 256, 128, 10), 64, 48, 938), Work((784, 256, 128, 10), 64, 48, 938, adam=True)],
    "B8": [Work((3072, 2048, 1024, 64, 10), 128, 8, 391)],
}


def quickest(action: Callable[[], None], at_least_s: float) -> float:
    """Seconds of one call, the median of several."""
    action()
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < at_least_s:
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def products(work: Work, k: int) -> Callable[[], None]:
    """Forward, gradients of inputs but for the first layer, gradients of weights; plain SGD's update is in the last."""
    layers = []
    for i, (n_in, n_out) in enumerate(pairwise(work.sizes)):
        x, bias = torch.randn(k, work.batch_size, n_in), torch.randn(k, 1, n_out)
        weight = torch.randn(k, n_in, n_out + (0 if n_out % 1024 else 16))[
            ..., :n_out
        ]  # rows apart, as `model.Pack` has
        out, grad = torch.empty(k, work.batch_size, n_out), torch.randn(k, work.batch_size, n_out) * 1e-6
        layers.append((x, weight, bias, out, grad, torch.empty_like(x) if i else None, torch.empty_like(weight)))

    def step() -> None:
        for x, weight, bias, out, *_ in layers:
            torch.baddbmm(bias, x, weight, out=out)
        for x, weight, _, _, grad, below, weight_grad in reversed(layers):
            if below is not None:
                torch.bmm(grad, weight.transpose(1, 2), out=below)
            if work.adam:
                torch.bmm(x.transpose(1, 2), grad, out=weight_grad)
            else:
                weight.baddbmm_(x.transpose(1, 2), grad, alpha=-1)

    return step


def update(work: Work, k: int) -> Callable[[], None]:
    """Adam's pass over weights, gradients and both moments, as torch's fused kernel makes it."""
    shapes = [(k, n_in, n_out) for n_in, n_out in pairwise(work.sizes)]
    parts = [[torch.rand(shape) for shape in shapes] for _ in range(4)]
    steps = [torch.tensor(10.0) for _ in shapes]

    def step() -> None:
        torch._fused_adam_(
            *parts,
            [],
            steps,
            amsgrad=False,
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    return step


def measure(work: Work, at_least_s: float) -> tuple[float, float]:
    """Seconds of a member's step: products, update."""
    torch.set_num_threads(1)
    with torch.no_grad():
        sizes = SIZES if work.sizes[1] < 1000 else (1,)
        best = min(quickest(products(work, k), at_least_s) / k for k in sizes)
        return best, min(quickest(update(work, k), at_least_s) / k for k in sizes) if work.adam else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", default=list(GRIDS), help=f"of {', '.join(GRIDS)}")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    at_least_s = 0.0 if arguments.quick else 0.5
    table = Table("grid", "shape", "products, ms", "update, ms", "training at least, s", box=None)
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        for name in arguments.grids:
            works, total = GRIDS[name], 0.0
            for work in works:
                both = pool.starmap(measure, [(work, at_least_s)] * WORKERS, chunksize=1)
                step, pass_ = (statistics.mean(column) for column in zip(*both, strict=True))
                total += work.epochs * work.steps * (step + pass_) / WORKERS
                shape = f"{'-'.join(map(str, work.sizes))}, batch {work.batch_size}, {'Adam' if work.adam else 'SGD'}"
                last = f"{total:.1f}" if work is works[-1] else ""
                table.add_row(name, shape, f"{1000 * step:.3f}", f"{1000 * pass_:.3f}", last)
    console = Console(width=130)
    console.print(table)
    console.print(f"\nof a member's step, {WORKERS} processes at a time; {setting('torch')}", highlight=False)


if __name__ == "__main__":
    main()
