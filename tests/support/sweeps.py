"""Sweeps as users launch them: real processes in a folder, what they write there, and their end."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from stagetree.storage.event_log import EventReader
from stagetree.storage.events import EpochEnded, Event, UnitBegan, UnitEnded

PATIENCE_S = 600
"""Tests wait so long for what must come: no test is red because its machine is busy."""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "stagetree", *words]


def stagetree(folder: Path, *words: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S, **kwargs
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
        "trainer.batch_size=16", "trainer.device=cpu", "execution.workers=2", "execution.checkpoint_every_s=0",
    ]  # fmt: skip


def events(folder: Path) -> list[Event]:
    """What all launches of all sweeps did."""
    launches = sorted((folder / "mlruns/sweeps").glob("*/*/events"))
    return [event for launch in launches for event in EventReader(launch, on_damage=lambda _: None).read()]


def trained(folder: Path) -> Counter:
    """How often each epoch of each state was trained."""
    return Counter((e.uid, e.epoch) for e in events(folder) if isinstance(e, EpochEnded) and e.epoch > 0)


def wait_until(condition, seconds: float = PATIENCE_S):
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError


def alive(session: int) -> list[str]:
    """Processes of a session that still run."""
    listed = subprocess.run(["ps", "-eo", "sid,stat,pid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()[1:]]
    return [" ".join(row[2:]) for row in rows if row[0] == str(session) and not row[1].startswith("Z")]


def succeed(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a started command, which must end well."""
    assert process.wait(PATIENCE_S) == 0, (folder / "out.txt").read_text()


def rows(folder: Path) -> list[dict]:
    """The leaderboard's lines."""
    with open(folder / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Signal all processes of a session, and wait for their end."""
    for line in alive(process.pid):
        try:
            os.kill(int(line.split()[0]), number)
        except ProcessLookupError:
            continue
    process.wait(PATIENCE_S)
    wait_until(lambda: not alive(process.pid))


def workers(folder: Path) -> list[int]:
    """Process numbers of the workers at work in the last launch."""
    launch = max((folder / "mlruns/sweeps").glob("*/*/events"), default=None)
    if launch is None:
        return []
    seen = list(EventReader(launch, on_damage=lambda _: None).read())
    over = {event.unit for event in seen if isinstance(event, UnitEnded)}
    pids = [event.pid for event in seen if isinstance(event, UnitBegan) and event.unit not in over]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
