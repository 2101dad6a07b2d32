"""The interface of engines, which find workers for units, and the engine that trains in this process."""

import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stagetree.errors import InputError
from stagetree.execution.shutdown import hold_unit, ignore_ctrl_c, is_unit_held, stop_asked
from stagetree.storage.locks import output_dir_locks
from stagetree.storage.unit_files import UnseenError, mark_ended, output_dir_of, take_unit

WAIT_S = 0.1
BEFORE = "before it began"

Units = Mapping[str, Collection[str]]
"""The ids of units in the order to start them, each with the ids of the units that train the states it starts from."""


@dataclass(frozen=True)
class Result:
    """A worker's report on a unit, for people; event logs and checkpoints are what counts."""

    unit: str
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why each node failed, by its uid."""
    stopped: str = ""
    """Why the worker was asked to end before the unit was trained."""
    error: str = ""
    """The error that the worker could not deal with: a sentence or a traceback."""
    unseen: bool = False
    """Whether the worker could not see the launching process's files."""


class Engine(Protocol):
    """Finds workers for units."""

    workers: int
    """The number of units that run at a time."""
    outlives: bool
    """Whether workers continue when the launching process is gone."""
    here: bool
    """Whether all workers are certain to be on this machine, and so have no device that it lacks."""

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        """Have each unit trained by `run_unit`, at least one of them; return when all have ended.

        The results may lack units, and the launch may raise: the supervisor relies on event logs and checkpoints alone.
        """
        ...


def run_unit(sweep_dir: Path, unit_id: str) -> Result:
    """Train one unit. Errors are returned, since with some launchers an exception would end other units."""
    ignore_ctrl_c()
    if stop_asked(sweep_dir):
        return Result(unit_id, stopped=BEFORE)
    try:
        from stagetree.execution.worker import train_unit  # imports torch

        result = train_unit(sweep_dir, unit_id)
        if not result.stopped:
            mark_ended(sweep_dir, unit_id)
        return result
    except (InputError, OSError) as error:
        return Result(unit_id, error=str(error), unseen=isinstance(error, UnseenError))
    except Exception:
        return Result(unit_id, error=traceback.format_exc())


def run_next(sweep_dir: Path, units: Units) -> Result | None:
    """Train the next unit that can start, in a worker that is not bound to one; return `None` if none is left."""
    if not sweep_dir.is_dir():
        return run_unit(sweep_dir, next(iter(units)))  # which says so
    locks = output_dir_locks(output_dir_of(sweep_dir))
    while not (unit_id := take_unit(sweep_dir, units, lambda other: is_unit_held(sweep_dir, other, locks))):
        if unit_id is None:
            return None
        if stop_asked(sweep_dir):
            return Result("", stopped=BEFORE)
        time.sleep(WAIT_S)
    with hold_unit(sweep_dir, unit_id, locks):  # from now on, since importing torch takes seconds
        return run_unit(sweep_dir, unit_id)


class InProcess:
    """Runs units one after the other in this process."""

    workers, outlives, here = 1, False, True

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        return [run_unit(sweep_dir, unit_id) for unit_id in units]
