"""The same work by stagetree and by what users would pick instead: wall time, memory, accuracy.

    python benchmarks/peers.py r16                     # once each
    python benchmarks/peers.py r16 n32 --repeats 3     # alternating orders, medians
    STAGETREE_DATA=folder python benchmarks/peers.py b8 --cifar cifar10.npz
    python benchmarks/peers.py r16 --record walls.jsonl --repeats 3    # goes on from what the file holds
    python benchmarks/peers.py r16 --record walls.jsonl --repeats 0    # only its table

Each peer's script is written as its own documentation teaches, runs two jobs of one thread side by side, records
everything in MLflow on SQLite and ends with a ranked table. Wall time is that of the whole command. The data and
MLflow's empty database are made before the clock starts, for all of them.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from setting import setting

HERE = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True)
class Workload:
    """A grid: every learning rate of the first stage with every one of the second, each optimizer and seed."""

    dataset: str
    hidden_sizes: tuple[int, ...]
    batch_size: int
    epochs: tuple[int, int]
    lr_0: tuple[float, ...]
    lr_1: tuple[float, ...]
    optimizers: tuple[str, ...] = ("sgd",)
    seeds: tuple[int, ...] = (0,)

    @property
    def runs(self) -> int:
        return len(self.lr_0) * len(self.lr_1) * len(self.optimizers) * len(self.seeds)

    def of_stagetree(self, npz: Path | None) -> list[str]:
        """The command's overrides."""
        stages = [f"[({self.epochs[0]},{a}),({self.epochs[1]},{b})]" for a in self.lr_0 for b in self.lr_1]
        if not self.epochs[1]:
            stages = [f"[({self.epochs[0]},{a})]" for a in self.lr_0]
        dataset = [f"dataset={self.dataset}"]
        if self.dataset == "npz":
            dataset += [f"dataset.root={npz.parent}", f"dataset.file={npz.name}", "dataset.duplicates=warn"]
        return [
            *dataset, "dataset.val_size=0", f"model.hidden_sizes={list(self.hidden_sizes)}".replace(" ", ""),
            f"optimizer={_listed(self.optimizers)}", f"trainer.batch_size={self.batch_size}",
            f"schedule.stages={','.join(stages)}", f"seed={_listed(self.seeds)}", "trainer.device=cpu",
        ]  # fmt: skip

    def of_peers(self, npz: Path | None, root: Path) -> list[str]:
        """The overrides that the peers' scripts take."""
        names = {"sgd": "SGD", "adam": "Adam"}
        dataset = npz.name if self.dataset == "npz" else self.dataset
        return [
            f"dataset={dataset}", f"root={npz.parent if self.dataset == 'npz' else root}",
            f"hidden_sizes={list(self.hidden_sizes)}".replace(" ", ""), f"batch_size={self.batch_size}",
            f"epochs={list(self.epochs)}".replace(" ", ""), f"lr_0={_listed(self.lr_0)}",
            f"lr_1={_listed(self.lr_1)}", f"optimizer={_listed([names[one] for one in self.optimizers])}",
            f"seed={_listed(self.seeds)}",
        ]  # fmt: skip


def _listed(values) -> str:
    return ",".join(map(str, values))


WORKLOADS = {
    "r16": Workload("mnist", (300,), 32, (2, 1), (0.2, 0.1, 0.05, 0.02), (0.05, 0.02, 0.01, 0.005)),
    "r64": Workload(
        "fashion_mnist", (256, 128), 64, (2, 1), (0.02, 0.01, 0.005, 0.002), (0.005, 0.002, 0.001, 0.0005),
        ("sgd", "adam"), (0, 1),
    ),
    "n32": Workload("digits", (64,), 32, (20, 10), (0.1,), (0.01,), seeds=tuple(range(32))),
    "b8": Workload("npz", (2048, 1024, 64), 128, (1, 0), (0.05,), (0.05,), seeds=tuple(range(8))),
}  # fmt: skip
PEERS = ("stagetree", "joblib", "lightning", "ray")
PACKAGES = ("torch", "lightning", "ray", "mlflow", "hydra-core")


@dataclass
class Measured:
    """One command."""

    wall_s: float
    peak_bytes: int
    accuracies: list[float] = field(default_factory=list)


class Records:
    """What was measured, in memory and, if there is a path, in a file with a line each, which is read first.

    A line counts only for the machine and the versions that made it.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._lines = []
        if path and path.exists():
            self._lines = [json.loads(line) for line in path.read_text().splitlines()]

    def of(self, workload: str, peer: str) -> list[Measured]:
        """All that was measured of a peer on a workload, here."""
        here = {"workload": workload, "peer": peer, "setting": setting(*PACKAGES)}
        return [Measured(**line["measured"]) for line in self._lines if here.items() <= line.items()]

    def add(self, workload: str, peer: str, measured: Measured) -> None:
        line = {"workload": workload, "peer": peer, "setting": setting(*PACKAGES), "measured": asdict(measured)}
        self._lines.append(line | {"time": time.strftime("%Y-%m-%d %H:%M:%S")})
        if self._path:
            with open(self._path, "a") as file:
                file.write(json.dumps(self._lines[-1]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=WORKLOADS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--repeats", type=int, default=1, help="of each; the median counts")
    parser.add_argument("--cifar", type=Path, help="an .npz file with CIFAR-10's arrays, for b8")
    parser.add_argument("--record", type=Path, help="a file that keeps what is measured, and is gone on from")
    arguments = parser.parse_args()
    root = Path(os.environ.get("STAGETREE_DATA", "data")).resolve()
    os.environ["STAGETREE_DATA"] = str(root)
    records = Records(arguments.record)
    for name in arguments.workloads:
        workload = WORKLOADS[name]
        if workload.dataset == "npz" and arguments.cifar is None and arguments.repeats:
            parser.error("b8 needs --cifar FILE.npz with train_x, train_y, test_x, test_y")
        npz = arguments.cifar.resolve() if arguments.cifar else None
        for repeat in range(arguments.repeats):
            for peer in list(arguments.peers)[:: 1 if repeat % 2 == 0 else -1]:  # alternating orders
                if len(records.of(name, peer)) <= repeat:
                    measured = measure(peer, workload, npz, root)
                    records.add(name, peer, measured)
                    print(f"{name} {peer}: {measured.wall_s:.1f} s", file=sys.stderr, flush=True)
        show(name, workload, {peer: runs for peer in arguments.peers if (runs := records.of(name, peer))})


def measure(peer: str, workload: Workload, npz: Path | None, root: Path) -> Measured:
    """Run one peer's whole command in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/{'mlruns/' if peer == 'stagetree' else ''}mlflow.db"
        Path(folder, "mlruns").mkdir()
        # two processes at once would break each other's schema, and each other's experiment
        make = "search_experiments()" if peer == "stagetree" else "set_experiment('peers')"
        create = f"import mlflow; mlflow.set_tracking_uri('{uri}'); mlflow.{make}"
        run([sys.executable, "-c", create], folder)
        if peer == "stagetree":
            words = workload.of_stagetree(npz)
            dataset = [word for word in words if word.startswith("dataset")]
            run([sys.executable, "-m", "stagetree", "data", *dataset], folder)  # as a download does
            measured = run([sys.executable, "-m", "stagetree", "sweep", *words], folder)
        else:
            script = {"joblib": "joblib_loop.py", "lightning": "lightning_loop.py", "ray": "ray_tune.py"}[peer]
            multirun = [] if peer == "ray" else ["-m"]
            words = [*workload.of_peers(npz, root), f"tracking_uri={uri}"]
            train = shlex.join([sys.executable, str(HERE / script), *multirun, *words])
            measured = run(
                ["sh", "-c", f"{train} && {shlex.join([sys.executable, str(HERE / 'rank.py'), uri])}"], folder
            )
        with open(Path(folder) / "leaderboard.csv", newline="") as file:
            measured.accuracies = [float(row["test_acc"]) for row in csv.DictReader(file)]
    if len(measured.accuracies) != workload.runs:
        sys.exit(f"{peer}: {len(measured.accuracies)} runs in its leaderboard, expected {workload.runs}")
    return measured


def run(command: list[str], folder: str) -> Measured:
    """Run a command to its end; its memory is that of all processes that carry its mark in their environment."""
    mark = f"BENCHMARK_MARK={time.monotonic_ns()}"
    name, value = mark.split("=")
    environment = {**os.environ, name: value, "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_DEDUP_LOGS": "0"}
    over, peak = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.5):
            peak[0] = max(peak[0], memory(mark.encode()))

    watcher = threading.Thread(target=watch)
    started = time.perf_counter()
    with open(Path(folder) / "log.txt", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        watcher.start()
        code = process.wait()
    wall = time.perf_counter() - started
    over.set()
    watcher.join()
    if code:
        sys.exit(f"{shlex.join(command)}: exit status {code}\n{(Path(folder) / 'log.txt').read_text()[-4000:]}")
    return Measured(wall, peak[0])


def memory(mark: bytes) -> int:
    """Proportional set size, in bytes: pages that processes share count once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                rollup = (process / "smaps_rollup").read_text()
                total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def show(name: str, workload: Workload, measured: dict[str, list[Measured]]) -> None:
    """Print the table of a workload."""
    walls = {peer: statistics.median(one.wall_s for one in runs) for peer, runs in measured.items()}
    columns = ("peer", "wall s", "range", "n", "runs an hour", "times stagetree", "peak MB", "test accuracy (range) %")
    table = Table(*columns, box=None, title=f"{name}: {workload.runs} runs", title_justify="left")
    own = walls.get("stagetree")
    for peer, runs in measured.items():
        every = [one.wall_s for one in runs]
        accuracies = [100 * acc for acc in runs[-1].accuracies]
        table.add_row(
            peer, f"{walls[peer]:.1f}", f"{min(every):.1f} to {max(every):.1f}", str(len(runs)),
            f"{workload.runs * 3600 / walls[peer]:,.0f}", f"{walls[peer] / own:.1f}" if own else "",
            f"{max(one.peak_bytes for one in runs) / 1e6:,.0f}",
            f"{statistics.mean(accuracies):.2f} ({min(accuracies):.2f} to {max(accuracies):.2f})",
        )  # fmt: skip
    console = Console(width=140)
    console.print(table)
    console.print(f"medians; {setting(*PACKAGES)}\n", highlight=False)


if __name__ == "__main__":
    main()
