"""Sweeps too large to run here, simulated: planning, makespan against its lower bound, what tracking must take.

    STAGETREE_DATA=folder python benchmarks/scale.py    # 1,000 to 1,000,000 runs on 1 to 10,000 workers (15 minutes)
    python benchmarks/scale.py --runs 1000 10000    # some of it
    python benchmarks/scale.py --picture scale.svg

The planner is the real one, and so is the cost of an epoch: packs of MNIST's 784-300-10 at batch 32, measured on this
machine at the start. Workers, and their number, are simulated; a unit's true duration differs from its estimate by a
factor drawn for it (log-normal, 20 %). Each count of runs is planned in a process of its own, for its memory.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from setting import configuration, setting

from stagetree.data.cache import DataInfo
from stagetree.planning.estimate import epoch_costs, makespan, unit_s
from stagetree.storage.event_log import EventLog, EventReader
from stagetree.storage.events import UnitBegan, UnitEnded
from stagetree.training.throughput import Throughput
from stagetree.tree.runs import Run, Stage, Trunk
from stagetree.tree.stage_tree import StageTree
from stagetree.tree.units import cut_units, predecessors

INFO = DataInfo("", "d", "mnist", (1, 28, 28), tuple("0123456789"), n_train=60_000, n_test=10_000, scale=255.0)
TRUNK = Trunk(
    data="d",
    mean=(),
    std=(),
    val_size=0,
    val_seed=0,
    model={"hidden_sizes": [300]},
    n_params=238_510,
    loss={"name": "cross_entropy"},
    reset_optimizer=True,
    batch_size=32,
    eval_batch_size=1024,
    shuffle=True,
    precision="float32",
    device="cpu",
    threads=1,
    optimizer={"name": "sgd"},
    seed=0,
)
KEY = TRUNK.pack_key
LRS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005)
FOUR_HUNDRED = [
    "dataset=digits", "model.hidden_sizes=[64],[32]", "optimizer=sgd,adam",
    "schedule.stages=" + ",".join(f"[(2,{a}),(1,{b})]" for a in LRS for b in LRS),
]  # fmt: skip
EPOCHS = (10, 5, 5)
"""Of the three stages of each schedule: 1,000 schedules for each seed."""
SPREAD = 0.2
RUNS, WORKERS = (1_000, 10_000, 100_000, 1_000_000), (1, 10, 100, 1_000, 10_000)
UNIT_S = 0.2
"""What an engine needs for a unit beside training it; `make launchers` measures it."""


def runs(count: int) -> list[Run]:
    """A grid of three stages and as many seeds as it takes."""
    made = []
    for seed in range(math.ceil(count / len(LRS) ** 3)):
        trunk = replace(TRUNK, seed=seed)
        made += [
            Run(trunk, tuple(Stage(n, lr) for n, lr in zip(EPOCHS, lrs, strict=True)))
            for lrs in ((a, b, c) for a in LRS for b in LRS for c in LRS)
        ]
    return made[:count]


def simulate(count: int, steps: Mapping[str, float], image_s: float) -> list[dict]:
    """Plan a sweep for each count of workers, and see how long it takes."""
    own = Throughput({int(size): seconds for size, seconds in steps.items()}, image_s)
    throughputs, infos = {KEY: own}, {"d": INFO}
    asked = runs(count)
    started = time.perf_counter()
    tree = StageTree.build(asked)
    build_s = time.perf_counter() - started
    cost = epoch_costs([KEY], throughputs, infos)
    work = tree.epochs * cost[KEY]
    path = sum(EPOCHS) * math.ceil(INFO.n_train / 32) * own.step_s(1)
    rows = []
    for workers in WORKERS:
        started = time.perf_counter()
        units = cut_units(tree, workers, cost, {KEY: own.best_size})
        after = predecessors(units)
        cut_s = time.perf_counter() - started
        draw = random.Random(0)
        durations = [
            UNIT_S + unit_s(unit, throughputs, infos, "auto") * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD)
            for unit in units
        ]
        wall = makespan(durations, after, workers)
        rows.append({
            "runs": count, "workers": workers, "units": len(units), "plan_s": build_s + cut_s, "wall_s": wall,
            "in_waves_s": in_waves(durations, after, workers), "bound_s": max(work / workers, path),
            "idle": 1 - sum(durations) / (workers * wall), "runs_s": count / wall,
            "peak_mb": peak_mb(),
        })  # fmt: skip
    return rows


def peak_mb() -> float:
    """Of this process; unlike `ru_maxrss`, without that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def in_waves(durations: Sequence[float], after: Sequence[set[int]], workers: int) -> float:
    """When the last unit ends if units are launched once all of the wave before have ended."""
    wave = [0] * len(after)
    for place, those in enumerate(after):
        wave[place] = max((wave[other] + 1 for other in those), default=0)
    members: dict[int, list[float]] = {}
    for place, number in enumerate(wave):
        members.setdefault(number, []).append(durations[place])
    return sum(makespan(some, [()] * len(some), workers) for some in members.values())


def plan_command(seeds: int) -> None:
    """Plan 400 runs a seed by the real command: what it takes from being typed to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stagetree", "plan", *FOUR_HUNDRED, f"seed={','.join(map(str, range(seeds)))}"]
        for note in ("the first time, when shapes are measured", "again"):
            started = time.perf_counter()
            with open(Path(folder) / "out.txt", "wb") as out:
                process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
                _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said = (Path(folder) / "out.txt").read_text()
            if process.returncode:
                sys.exit(said)
            wall = time.perf_counter() - started
            print(f"stagetree plan, {note}: {wall:.0f} s, {used.ru_maxrss / 1e6:.2f} GB", flush=True)
        print("\n".join(line for line in said.splitlines() if line.startswith(("sweep", "epochs", "units"))))


def look_at_logs(units: int) -> None:
    """What the launching process does twice a second: see what is new in the log of each unit."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(units):
            log = EventLog(Path(folder), f"{number:06d}")
            log.append(UnitBegan(f"{number:06d}", 0, "host", 0.0), UnitEnded(f"{number:06d}", 0.0))
            log.close()
        reader, looks = EventReader(Path(folder)), []
        for _ in range(4):
            started = time.perf_counter()
            for _ in reader.read():
                pass
            looks.append(time.perf_counter() - started)
    print(f"a look at the logs of {units:,} units: {min(looks[1:]):.3f} s", flush=True)


def measured() -> Throughput:
    """How fast this machine trains packs of the shape."""
    import torch

    from stagetree.config.identity import to_run
    from stagetree.data import cache
    from stagetree.training.epochs import Split, never
    from stagetree.training.measurement import measure

    torch.set_num_threads(1)
    config = configuration(
        "dataset=mnist", f"dataset.root={data_root()}", "dataset.val_size=0", "model.hidden_sizes=[300]",
        "schedule.stages=[(1,0.1)]", "trainer.batch_size=32", "trainer.device=cpu",
    )  # fmt: skip
    info = cache.prepare(config.dataset, Path("mlruns"))
    run = to_run(config, digest=info.digest, in_features=784, n_classes=10, device="cpu")
    (node,) = StageTree.build([run]).roots
    return measure(node, 64, lambda spec: Split.load(Path(info.folder), spec), never)


def data_root() -> Path:
    return Path(os.environ.get("STAGETREE_DATA", "data")).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=int, default=RUNS)
    parser.add_argument("--seeds", type=int, default=250, help="of the grid that the command plans, 400 runs each")
    parser.add_argument("--picture", type=Path, help="a file for the curves, .svg or .png")
    parser.add_argument("--tracking", nargs="*", default=[], metavar="NAME=MS", help="what a store takes for a run")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        count, steps, image_s = arguments.child
        print(json.dumps(simulate(int(count), json.loads(steps), float(image_s))))
        return
    plan_command(arguments.seeds)
    for units in (100, 1_000, 10_000):
        look_at_logs(units)
    own = measured()
    rows = []
    for count in arguments.runs:
        child = [sys.executable, __file__, "--child", str(count), json.dumps(own.steps), str(own.image_s)]
        done = subprocess.run(child, stdout=subprocess.PIPE, check=True)
        rows += json.loads(done.stdout)
    show(rows, own)
    if arguments.picture:
        stores = dict(word.split("=") for word in arguments.tracking)
        draw(rows, {name: float(ms) for name, ms in stores.items()}, arguments.picture)


def show(rows: Sequence[Mapping], own: Throughput) -> None:
    columns = (
        "runs", "workers", "units", "planned in s", "MB", "makespan h", "times the bound", "in waves", "idle",
        "runs a second",
    )  # fmt: skip
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(
            f"{row['runs']:,}", f"{row['workers']:,}", f"{row['units']:,}", f"{row['plan_s']:.2f}",
            f"{row['peak_mb']:,.0f}", f"{row['wall_s'] / 3600:.3g}", f"{row['wall_s'] / row['bound_s']:.2f}",
            f"{row['in_waves_s'] / row['bound_s']:.2f}", f"{row['idle']:.0%}",
            f"{row['runs_s']:.3g}",
        )  # fmt: skip
    console = Console(width=150)
    console.print(table)
    best = own.step_s(own.best_size) / own.best_size * 1e6
    console.print(
        f"an epoch of a member: {INFO.n_train / 32 * best / 1e6:.3f} s in packs of {own.best_size}; "
        f"{setting('torch', 'numpy')}",
        highlight=False,
    )


def draw(rows: Sequence[Mapping], stores: Mapping[str, float], path: Path) -> None:
    """Three curves: planning, makespan over its bound, runs a second beside what stores take."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    counts = sorted({row["runs"] for row in rows})
    slowest = {
        count: max((row for row in rows if row["runs"] == count), key=lambda row: row["plan_s"]) for count in counts
    }
    left.loglog(counts, [slowest[count]["plan_s"] for count in counts], "o-", label="seconds to plan")
    left.loglog(counts, [slowest[count]["peak_mb"] / 1e3 for count in counts], "s--", label="GB")
    left.set(xlabel="runs", title="planning: tree, units, dependencies")
    for count in counts:
        own = [row for row in rows if row["runs"] == count]
        workers = [row["workers"] for row in own]
        (line,) = middle.semilogx(
            workers, [row["wall_s"] / row["bound_s"] for row in own], "o-", label=f"{count:,} runs"
        )
        middle.semilogx(workers, [row["in_waves_s"] / row["bound_s"] for row in own], ":", color=line.get_color())
        right.loglog(workers, [row["runs_s"] for row in own], "o-", label=f"{count:,} runs")
    middle.set(xlabel="workers", title="makespan over its lower bound (dotted: in waves)", ylim=(0.9, None))
    for name, ms in stores.items():
        right.axhline(1000 / ms, linestyle="--", color="gray")
        right.annotate(f"{name}: {1000 / ms:.0f}/s", (1, 1000 / ms), va="bottom", fontsize=8)
    right.set(xlabel="workers", title="runs that end a second")
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
