"""The engine alone, on one thread: against the tutorial's loop, against the arithmetic, and over sizes of packs.

    STAGETREE_DATA=folder python benchmarks/engine.py    # MNIST, downloaded if it is not there

Nothing is shared here, nothing tracked, and no process started. All is measured in turns, several times.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from setting import configuration, figure, setting
from torch.utils.data import DataLoader

from stagetree.config import identity
from stagetree.data import cache
from stagetree.models.mlp import initial_state
from stagetree.training import throughput
from stagetree.training.epochs import Member, PackTraining, Split, never, prepare_device
from stagetree.tree.runs import Run
from stagetree.tree.stage_tree import Node, StageTree

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from common import datasets, mlp
from joblib_loop import fit

ROOT = os.environ.get("STAGETREE_DATA", "data")
SHAPES = {
    "784-300-10, SGD, batch 32": ([300], "sgd", 32),
    "784-256-128-10, Adam, batch 64": ([256, 128], "adam", 64),
    "784-64-64-64-10, Adam, batch 10": ([64, 64, 64], "adam", 10),
    "784-300-10, SGD, batch 128": ([300], "sgd", 128),
}
GRID = (1, 2, 4, 8, 16, 32, 64)
PICTURES = 4096


class Engine:
    """Trains packs of one shape on MNIST."""

    def __init__(
        self, hidden_sizes: list[int], optimizer: str, batch_size: int, output_dir: Path, device: str = "cpu",
        precision: str = "float32",
    ):  # fmt: skip
        checked = configuration(
            "dataset=mnist", f"dataset.root={ROOT}", "dataset.val_size=0", f"model.hidden_sizes={hidden_sizes}",
            f"optimizer={optimizer}", "schedule.stages=[(1,0.01)]", f"trainer.batch_size={batch_size}",
            f"trainer.device={device}", f"trainer.precision={precision}", f"output_dir={output_dir}",
        )  # fmt: skip
        info = cache.prepare(checked.dataset, output_dir)
        self.run: Run = identity.to_run(
            checked, digest=info.digest, in_features=info.in_features, n_classes=10, device=device
        )
        self.output_dir, self.folder = output_dir, Path(info.folder)
        self.spec, self.optimizer = self.run.trunk.pack_key, self.run.trunk.optimizer
        prepare_device(self.spec)
        self.split = Split.load(self.folder, self.spec)

    def training(self, seeds: Sequence[int], pictures: int) -> PackTraining:
        """A pack of a member a seed, that trains on so many pictures."""
        split = replace(self.split, train=self.split.train[:pictures])
        states = {seed: initial_state(seed, 784, 10, self.spec.model) for seed in seeds}
        members = [Member(states[seed], self.optimizer, 0.001, seed, 0) for seed in seeds]
        return PackTraining(members, split, self.spec)

    def epoch_s(self, size: int, pictures: int) -> float:
        """Seconds of one member's epoch over so many pictures, in a pack of `size`, all with one seed."""
        training = self.training([0] * size, pictures)
        started = time.perf_counter()
        training.epoch(0)
        return (time.perf_counter() - started) / size

    def chosen(self) -> int:
        """The size that a worker with many members of this shape would choose."""
        node: Node = StageTree.build([self.run]).roots[0]
        load = partial(Split.load, self.folder)
        return throughput.look_up_or_measure(self.output_dir, node, 64, load, never).best_size

    def flops(self, pictures: int) -> float:
        """Operations of an epoch: forward, weights' gradients, and inputs' gradients but for the first layer."""
        pairs = list(pairwise([784, *self.spec.model["hidden_sizes"], 10]))
        return 2.0 * pictures * (2 * sum(i * o for i, o in pairs) + sum(i * o for i, o in pairs[1:]))


def peak() -> float:
    """Operations a second of a large product of matrices on this thread, at the best of a few."""
    a = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def tutorial_s() -> float:
    """Seconds of one epoch of the tutorial's loop: R16's model."""
    train, _ = datasets("mnist", ROOT)
    model = mlp(train[0][0], [300])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    started = time.perf_counter()
    fit(model, DataLoader(train, batch_size=32, shuffle=True), optimizer)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: Engine(*shape, Path(folder)) for name, shape in SHAPES.items()}
        chosen = {name: engine.chosen() for name, engine in engines.items()}
        r16, *_, wide = SHAPES
        tutorial, own, alone, floors = [], [], [], []
        grid: dict[str, dict[int, list[float]]] = {name: {} for name in SHAPES}
        for _ in track(range(repeats), "measuring", console=Console(stderr=True)):
            peaks = [peak()]
            tutorial.append(tutorial_s())
            own.append(engines[r16].epoch_s(chosen[r16], 60_000))
            alone.append(engines[r16].epoch_s(1, 60_000))
            for name, engine in engines.items():
                for size in GRID:
                    grid[name].setdefault(size, []).append(engine.epoch_s(size, PICTURES))
            peaks.append(peak())
            best = min(min(values) for values in grid[wide].values())
            floors.append(engines[wide].flops(PICTURES) / max(peaks) / best)
    table = Table("784-300-10, SGD, batch 32, one thread", "s an epoch", "times as fast", box=None)
    for name, values in (("the tutorial's loop", tutorial), ("alone", alone), (f"in packs of {chosen[r16]}", own)):
        ratio = statistics.median(one / other for one, other in zip(tutorial, values, strict=True))
        table.add_row(name, figure(values), f"{ratio:.1f}")
    console.print(table)
    console.print(f"\nShare of the arithmetic floor, {wide}, best pack: {figure(floors)}\n", highlight=False)
    table = Table(
        f"ms a member's epoch of {PICTURES} pictures, by the pack's size",
        *map(str, GRID),
        "chosen",
        "to best",
        box=None,
    )
    for name, sizes in grid.items():
        medians = {size: statistics.median(values) for size, values in sizes.items()}
        loss = medians[chosen[name]] / min(medians.values()) - 1
        cells = [f"{1000 * seconds:.1f}" for seconds in medians.values()]
        table.add_row(name, *cells, str(chosen[name]), f"+{loss:.0%}")
    console.print(table)
    console.print(f"\nmedians of {repeats} (range); {setting('torch')}", highlight=False)


if __name__ == "__main__":
    main()
