"""Sweeps in processes of their own, which kill themselves at a chosen step: a real SIGKILL at a repeatable place.

They are forked from this one, which has imported what takes seconds, and holds no connection to their store.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Literal, NoReturn

from stagetree.storage.events import EpochEnded

PATIENCE_S = 120
"""After that a process is ended, which the caller reports."""
EPOCH_S = 0.04
"""What an epoch takes at least where live metrics are asked for: the log is read five times a second."""


@dataclass(frozen=True)
class Death:
    """SIGKILL at one of the process's own steps."""

    step: Literal["file", "event", "store"]
    """A file is renamed into place, an event is logged, MLflow is written to."""
    number: int
    """Of that step, from 0; a process that comes to its end before is not killed."""
    after: bool
    """Once the step is done, or just before it."""


def sweep(folder: Path, words: Sequence[str], *, live: bool = False, death: Death | None = None) -> bool:
    """Run `stagetree.sweep` in a folder, its output in `out.txt`; return whether it came to its end.

    Args:
        folder: the working directory.
        words: overrides.
        live: metrics are written while epochs are trained, as in a long run.
        death: where the process kills itself.

    Raises:
        AssertionError: it ended otherwise, with what it said.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests do not concern the child
        pid = os.fork()
    if pid == 0:
        _run(folder, list(words), live, death)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGKILL and death is not None:
        return False
    assert code == 0, f"{words} ended with {code}: {(folder / 'out.txt').read_text()[-5000:]}"
    return True


def warm_up(words: Sequence[str]) -> None:
    """Import and compose once what each child would: it takes seconds."""
    for name in ("mlflow.store.tracking.sqlalchemy_store", "stagetree.report.publishing", "stagetree.execution.worker"):
        import_module(name)
    import stagetree

    stagetree.plan(*words)


def _run(folder: Path, words: list[str], live: bool, death: Death | None) -> NoReturn:
    os.chdir(folder)
    signal.alarm(PATIENCE_S)
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    warnings.simplefilter("default")  # not errors, as in tests
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import stagetree

    if live:
        _write_live()
    if death is not None:
        _die(death)
    code = 1
    try:
        stagetree.sweep(*words)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _write_live() -> None:
    from stagetree.storage.event_log import EventLog
    from stagetree.tracking import follower
    from stagetree.tracking.tracker import Tracker

    def flush(tracker: Tracker) -> None:
        tracker._live_began = -1e9  # else once a second at most
        real(tracker)

    real, Tracker.flush = Tracker.flush, flush
    follower.POLL_S = 0.01
    append = EventLog.append

    def slowly(log: EventLog, *events: Any) -> None:
        append(log, *events)
        if any(isinstance(event, EpochEnded) for event in events):
            time.sleep(EPOCH_S)

    EventLog.append = slowly


def _die(death: Death) -> None:
    from mlflow import MlflowClient

    from stagetree.storage.event_log import EventLog

    steps = {
        "file": [(os, "replace")],
        "event": [(EventLog, "append")],
        "store": [
            (MlflowClient, name)
            for name in ("create_run", "log_batch", "log_inputs", "log_artifacts", "set_tag", "set_terminated")
        ],
    }
    calls = count()
    for owner, name in steps[death.step]:
        setattr(owner, name, _deadly(getattr(owner, name), calls, death))


def _deadly(real: Callable, calls: Iterator[int], death: Death) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        dies = next(calls) == death.number
        if dies and not death.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call
