"""Packs on a CUDA device: against the tutorial's loop and a lone run there, against HFTA, and against the floor.

    STAGETREE_DATA=folder python benchmarks/gpu.py    # MNIST, downloaded if it is not there

784-300-10, plain SGD, a seed for each member. Throughput is counted in members' epochs of 60,000 pictures a second. The
floor counts the operations, and the bytes of the weights, which are read by the forward pass and read and written by
the update, at the peaks of a large product and a large copy that are measured in the same run.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from engine import ROOT, Engine, datasets, fit, mlp
from rich.console import Console
from rich.progress import track
from rich.table import Table
from setting import figure, setting
from torch.utils.data import DataLoader

SIZES = (1, 4, 16, 64, 256, 1024)
PICTURES = 6400
REPEATS = 3
HFTA = "3.3 to 15.1"  # times a lone run, over its workloads: Wang et al., arXiv 2102.02344, abstract


def seconds(action, repeats: int = 5) -> float:
    """The quickest of a few calls, the device's work included."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def peaks() -> tuple[float, float]:
    """Operations and bytes a second, in the precision that is set."""
    a = torch.randn(8192, 8192, device="cuda")
    flops = 2 * 8192**3 / seconds(lambda: a @ a)
    source, target = torch.empty(2, 2**28, device="cuda")
    return flops, 2 * 4 * 2**28 / seconds(lambda: target.copy_(source))


class OnDevice:
    """A loader whose minibatches are moved to the device, as tutorials do in the loop."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __iter__(self):
        for x, y in self.loader:
            yield x.cuda(), y.cuda()

    def __len__(self) -> int:
        return len(self.loader)


def tutorial(batch_size: int) -> float:
    """Epochs a second of the tutorial's loop on this device."""
    train, _ = datasets("mnist", ROOT)
    model = mlp(train[0][0], [300]).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = OnDevice(DataLoader(train, batch_size=batch_size, shuffle=True))
    return 1 / seconds(lambda: fit(model, loader, optimizer), repeats=1)


def lone(engine: Engine) -> float:
    """Epochs a second of one run with its data on the device, without a CUDA graph."""
    training = engine.training([0], PICTURES)
    training._step = training._advance
    return PICTURES / 60_000 / seconds(lambda: training.epoch(0), repeats=2)


def packed(engine: Engine, size: int) -> float:
    """Members' epochs a second of a pack."""
    training = engine.training(range(size), PICTURES)
    training.epoch(0)  # records the graph
    return size * PICTURES / 60_000 / seconds(lambda: training.epoch(0), repeats=2)


def floor(engine: Engine, flops: float, bandwidth: float) -> float:
    """Members' epochs a second at which arithmetic or memory would be exhausted."""
    steps = 60_000 / engine.spec.batch_size
    traffic = 3 * 4 * engine.spec.n_params * steps
    return 1 / max(engine.flops(60_000) / flops, traffic / bandwidth)


def same_bits(engine: Engine, size: int) -> bool:
    """Whether a member of a pack ends with the bits that it has alone, on this device."""
    states = []
    for seeds in ([0], range(size)):
        training = engine.training(seeds, PICTURES)
        training.epoch(0)
        states.append(training.pack.state(0))
    one, other = states
    return all(torch.equal(one[name], other[name]) for name in one)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here")
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        for batch_size in (32, 128):
            loop = [tutorial(batch_size) for _ in range(REPEATS)]
            console.print(f"\nbatch {batch_size}; the tutorial's loop: {figure(loop)} epochs a second", highlight=False)
            for precision in ("float32", "tf32", "bfloat16"):
                engine = Engine([300], "sgd", batch_size, Path(folder), "cuda", precision)
                flops, bandwidth = peaks()
                lowest = floor(engine, flops, bandwidth)
                resident = [lone(engine) for _ in range(REPEATS)]
                table = Table("members", "epochs a second", "times the loop", "times a lone run", "of the floor",
                              "bits of a lone run", box=None, title=precision, title_justify="left")  # fmt: skip
                for size in track(SIZES, "measuring", console=Console(stderr=True), transient=True):
                    rates = [packed(engine, size) for _ in range(REPEATS)]
                    rate = statistics.median(rates)
                    table.add_row(
                        str(size), figure(rates), f"{rate / statistics.median(loop):.0f}",
                        f"{rate / statistics.median(resident):.1f}", f"{rate / lowest:.0%}",
                        "same" if same_bits(engine, size) else "other",
                    )  # fmt: skip
                console.print(table)
                console.print(
                    f"lone run without a graph {figure(resident)}; HFTA reports {HFTA} times a lone run; peaks "
                    f"{flops / 1e12:.1f} Tflop/s, {bandwidth / 1e12:.2f} TB/s", highlight=False,
                )  # fmt: skip
    where = f"{torch.cuda.get_device_name()}, {setting('torch')}, CUDA {torch.version.cuda}"
    console.print(f"\nmedians of {REPEATS} (range); {where}", highlight=False)


if __name__ == "__main__":
    main()
