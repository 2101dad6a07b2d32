"""What the fault suite needs: a sweep of real processes, what it leaves, and a tally of what went wrong.

`make test` runs a short pass of the suite, with a fixed seed; `make faults` the full counts, with a printed seed.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sweeps import trained, wait_until, workers

from stagetree.storage import checkpoints

GRID = [
    "model.hidden_sizes=[8],[6,5]", "model.dropout=0.1", "optimizer=sgd,adam", "seed=0,1",
    "schedule.stages=[(40,5e-2),(10,1e-2)],[(40,5e-2),(10,1e-3)],[(50,5e-2)]",
]  # fmt: skip
"""24 runs of 8 trunks: 560 epochs, kept one by one."""


@dataclass
class Tally:
    """A row of the closing table: how often a fault was injected, and what it cost. All but the first should be 0."""

    fault: str
    injected: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    slowest_s: float = 0.0
    """Until the last process had ended, where that is asked."""
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.differing)


def kill_a_worker(sweep: subprocess.Popen, folder: Path, row: Tally, random: random.Random, within: float) -> None:
    """Once workers are at work, wait a random time of some seconds, and kill one."""
    wait_until(lambda: sweep.poll() is not None or workers(folder))
    time.sleep(random.uniform(0, within))
    if pids := workers(folder):
        os.kill(random.choice(pids), signal.SIGKILL)
        row.injected += 1


def results(folder: Path) -> dict[str, tuple]:
    """All that runs leave but their times, by uid: digest of the weights, metrics of every epoch, final metrics."""
    states, kept = folder / "mlruns/checkpoints", {}
    for uid in checkpoints.finished(states).tested:
        record, weights, _ = checkpoints.load(states, uid)
        history = [{name: value for name, value in line.items() if name != "seconds"} for line in record.history]
        kept[uid] = (checkpoints.weights_digest(weights), history, record.test)
    return kept


def recorded(folder: Path) -> tuple[dict[str, list[str]], int]:
    """What MLflow holds: the states of each uid's runs, and how many of its values stand there twice."""
    with sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True) as database:
        rows = database.execute(
            "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'stagetree.uid'"
        ).fetchall()
        values = database.execute("select count(*) from metrics group by run_uuid, key, step").fetchall()
        parents = database.execute("select value from tags where key = 'stagetree.kind' and value = 'sweep'").fetchall()
        sweeps = database.execute("select distinct value from tags where key = 'stagetree.sweep'").fetchall()
    database.close()
    states: dict[str, list[str]] = {}
    for uid, status in rows:
        states.setdefault(uid, []).append(status)
    return states, sum(count > 1 for (count,) in values) + len(parents) - len(sweeps)


def compare(folder: Path, reference: dict[str, tuple], tally: Tally, *, kills: int) -> None:
    """Count what a folder lacks, has twice or has otherwise than an undisturbed sweep."""
    found = results(folder)
    states, doubled_values = recorded(folder)
    lines = (folder / "leaderboard.csv").read_text().splitlines()
    tally.lost += len(reference.keys() - found.keys())
    tally.lost += sum(set(states.get(uid, ["missing"])) != {"FINISHED"} for uid in reference)
    tally.lost += abs(len(lines) - 1 - len(reference))
    tally.doubled += doubled_values + sum(len(run) > 1 for run in states.values())
    # after each kill at most one epoch of a run is trained again
    twice: Counter[str] = Counter()
    for (uid, _), times in trained(folder).items():
        twice[uid] += times - 1
    tally.doubled += sum(times > kills for times in twice.values())
    tally.differing += sum(found[uid] != reference[uid] for uid in reference.keys() & found.keys())
    if not tally.clean:
        tally.notes.append(f"{folder}: {states} {twice}\n{(folder / 'out.txt').read_text()[-3000:]}")


def rng(seed: int) -> random.Random:
    return random.Random(seed)


def table(tallies: list[dict]) -> list[str]:
    """Add up the rows of equal faults."""
    counts = ("injected", "lost", "doubled", "differing")
    rows: dict[str, Counter] = {}
    slowest: dict[str, float] = {}
    for one in tallies:
        rows.setdefault(one["fault"], Counter()).update({name: one[name] for name in counts})
        slowest[one["fault"]] = max(slowest.get(one["fault"], 0.0), one["slowest_s"])
    width = max(map(len, rows))
    lines = [f"{'fault':{width}}  injected  runs lost  runs doubled  bits differing  slowest stop"]
    for fault, row in sorted(rows.items()):
        stop = f"{slowest[fault]:10.1f} s" if slowest[fault] else ""
        numbers = f"{row['injected']:8}  {row['lost']:9}  {row['doubled']:12}  {row['differing']:14}  {stop}"
        lines.append(f"{fault:{width}}  {numbers}".rstrip())
    return lines


def dumped(tally: Tally) -> str:
    return json.dumps({name: value for name, value in vars(tally).items() if name != "notes"})
