"""An unbalanced tree with and without waves: wall time, and the share of it for which workers had nothing to do.

    STAGETREE_DATA=folder python benchmarks/waves.py [repeats]

Two workers, MNIST: a long chain beside a trunk that forks in six. In waves, what forks waits for the chain as well.
Speeds are measured beforehand, so that both ways cut the same units.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from setting import figure, setting

from stagetree import runner
from stagetree.api import composed, plan
from stagetree.cli.progress import ProgressDisplay
from stagetree.execution.engine import Engine, Result, Units
from stagetree.execution.engine_choice import choose_engine
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import UnitBegan, UnitEnded

GRID = [
    "dataset=mnist", "model.hidden_sizes=[300]", "dataset.val_size=0", "execution.workers=2", "trainer.device=cpu",
    "schedule.stages=[(35,1e-1)],"
    + ",".join(f"[(10,5e-2),(5,{lr})]" for lr in ("1e-2", "8e-3", "6e-3", "4e-3", "2e-3", "1e-3")),
    "quiet=true",
]  # fmt: skip


class InWaves:
    """Launches what waits for nothing, then what waited for that, and so on."""

    def __init__(self, engine: Engine):
        self.workers, self.outlives, self.here, self._engine = engine.workers, engine.outlives, engine.here, engine

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        left, results = dict(units), []
        while left:
            wave = [unit_id for unit_id, after in left.items() if not left.keys() & set(after)]
            results += self._engine.launch(sweep_dir, dict.fromkeys(wave, ()))
            left = {unit_id: after for unit_id, after in left.items() if unit_id not in wave}
        return results


def measure(waves: bool) -> tuple[float, float]:
    """Seconds from the first unit's begin to the last one's end, and the idle share of both workers in between."""
    with tempfile.TemporaryDirectory() as folder, composed([*GRID, f"output_dir={folder}"], None) as (
        context, config, jobs,
    ):  # fmt: skip
        for path in Path("mlruns/speeds").glob("*"):
            (Path(folder) / "speeds").mkdir(exist_ok=True)
            (Path(folder) / "speeds" / path.name).write_bytes(path.read_bytes())
        engine = choose_engine(context, config, jobs[0])
        chosen = InWaves(engine) if waves else engine
        runner.run(jobs, engine=chosen, command=["benchmark"], progress=ProgressDisplay.of_plan)
        (events,) = Path(folder).glob("sweeps/*/*/events")
        begins, ends = {}, {}
        for event in EventReader(events).read():
            if isinstance(event, UnitBegan):
                begins[event.unit] = event.time
            elif isinstance(event, UnitEnded):
                ends[event.unit] = event.time
    wall = max(ends.values()) - min(begins.values())
    busy = sum(ends[unit_id] - begins[unit_id] for unit_id in begins)
    return wall, 1 - busy / (2 * wall)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    os.environ["STAGETREE_DATA"] = str(Path(os.environ.get("STAGETREE_DATA", "data")).resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        planned = plan(*GRID)  # measures
        print(json.dumps([unit["after"] for unit in planned.attrs["units"]]))
        found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for repeat in range(repeats):
            for waves in (True, False)[:: 1 if repeat % 2 else -1]:
                found[waves].append(measure(waves))
        os.chdir("/")
    for waves, values in found.items():
        walls, idles = zip(*values, strict=True)
        print(f"{'in waves' if waves else 'without':10} {figure(walls)} s, idle {figure(idles)}, n = {repeats}")
    ratio = statistics.median(w for w, _ in found[True]) / statistics.median(w for w, _ in found[False])
    print(f"{ratio:.2f} times; {setting('torch', 'joblib')}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
