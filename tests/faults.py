"""What the fault suite needs: a sweep of real processes, what it leaves, and a tally of what went wrong.

`make test` runs a short pass of the suite, with a fixed seed; `make faults` the full counts, with a printed seed.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stagetree import checkpoint
from stagetree.events import EventReader

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


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "stagetree", *words]


def stagetree(folder: Path, *words: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), cwd=folder, capture_output=True, text=True, check=False, timeout=600, **kwargs
    )  # fmt: skip


def start(folder: Path, *words: str, **kwargs) -> subprocess.Popen:
    """Start a command in a session of its own, its output in `out.txt`."""
    with open(folder / "out.txt", "ab") as out:
        return subprocess.Popen(
            command(*words), cwd=folder, stdout=out, stderr=out, start_new_session=True, preexec_fn=_signals_as_usual,
            **kwargs,
        )  # fmt: skip


def _signals_as_usual() -> None:
    """A suite that runs in the background, or under nohup, has some ignored, and its children inherit that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def small(arrays: Path) -> list[str]:
    """Overrides that choose the small data, and keep every epoch's state."""
    return [
        "dataset=npz", f"dataset.root={arrays.parent}", f"dataset.file={arrays.name}", "dataset.val_size=40",
        "trainer.batch_size=16", "trainer.device=cpu", "trainer.workers=2", "trainer.checkpoint_every_s=0",
    ]  # fmt: skip


def events(folder: Path) -> list[dict]:
    """What all launches of all sweeps did."""
    launches = sorted((folder / "mlruns/sweeps").glob("*/*/events"))
    return [event for launch in launches for event in EventReader(launch, on_damage=lambda _: None).read()]


def trained(folder: Path) -> Counter:
    """How often each epoch of each state was trained."""
    return Counter((e["uid"], e["epoch"]) for e in events(folder) if e["kind"] == "epoch" and e["epoch"] > 0)


def wait_until(condition, seconds: float = 120.0):
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError


def results(folder: Path) -> dict[str, tuple]:
    """All that runs leave but their times, by uid: digest of the weights, metrics of every epoch, final figures."""
    checkpoints = folder / "mlruns/checkpoints"
    kept = {}
    for uid in checkpoint.finished(checkpoints).tested:
        record, weights, _ = checkpoint.load(checkpoints, uid)
        history = [{name: value for name, value in line.items() if name != "seconds"} for line in record.history]
        kept[uid] = (checkpoint.weights_digest(weights), history, record.test)
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


def alive(session: int) -> list[str]:
    """Processes of a session that still run."""
    listed = subprocess.run(["ps", "-eo", "sid,stat,pid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()[1:]]
    return [" ".join(row[2:]) for row in rows if row[0] == str(session) and not row[1].startswith("Z")]


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Signal all processes of a session, and wait for their end."""
    for line in alive(process.pid):
        try:
            os.kill(int(line.split()[0]), number)
        except ProcessLookupError:
            continue
    process.wait(60)
    wait_until(lambda: not alive(process.pid), 60)


def workers(folder: Path) -> list[int]:
    """Process numbers of the workers at work in the last launch."""
    launch = max((folder / "mlruns/sweeps").glob("*/*/events"), default=None)
    if launch is None:
        return []
    seen = list(EventReader(launch, on_damage=lambda _: None).read())
    over = {event["unit"] for event in seen if event["kind"] == "unit_done"}
    pids = [event["pid"] for event in seen if event["kind"] == "unit" and event["unit"] not in over]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


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
