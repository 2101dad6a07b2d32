"""Provide the commands as functions for programs and notebooks, with the same overrides and DataFrames as results.

    from stagetree import leaderboard, plan, sweep

    frame = sweep("dataset=mnist", "model=mlp,mlp_300", "schedule.stages=[(5,1e-1)],[(5,1e-2)]", "seed=1,2")

Each call composes its own configuration, leaves Hydra's global state unchanged and keeps nothing for later calls.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from stagetree import runner
from stagetree.cli import main
from stagetree.cli.progress import ProgressDisplay
from stagetree.config.composition import Job
from stagetree.config.grid import compose_grid
from stagetree.config.overrides import hydra_override
from stagetree.errors import InputError, composition_error
from stagetree.execution.engine_choice import choose_engine
from stagetree.execution.hydra_launchers import end_idle_workers
from stagetree.planning import planner

if TYPE_CHECKING:
    from pandas import DataFrame


def sweep(*overrides: str, config_dir: str | Path | None = None) -> "DataFrame":
    """Train a grid as `stagetree sweep` does, and rank its runs.

    Args:
        overrides: overrides as on the command line, such as `seed=1,2` for several values; `quiet=true` prints nothing.
        config_dir: a folder of further groups, as for `--config-dir`.

    Returns:
        The leaderboard: one row for each run, the best first, failed ones last with their reason.

    Raises:
        InputError: the configurations have errors, listed before anything trains.
        RuntimeError: runs are trained and kept, but could not be recorded.
        KeyboardInterrupt: the sweep was interrupted; states are kept, and the same call continues.
    """
    with composed(overrides, config_dir) as (context, config, jobs):
        engine = choose_engine(context, config, jobs[0])
        try:
            command = ["stagetree", "sweep", *overrides]
            outcome = runner.run(jobs, engine=engine, command=command, progress=ProgressDisplay.of_plan)
        except KeyboardInterrupt:
            end_idle_workers()
            raise
    if outcome.leaderboard is None:
        raise RuntimeError(outcome.text)
    return outcome.leaderboard


def plan(*overrides: str, config_dir: str | Path | None = None) -> "DataFrame":
    """Return the plan of what `sweep` would train with these overrides, and train nothing.

    Returns:
        One row for each run, with `uid`, `name`, `stages` and whether it is `finished`. The frame's `attrs` have the
        rest of the output of `stagetree plan --json`.

    Raises:
        InputError: the configurations have errors; the message has a line for each.
    """
    from pandas import DataFrame

    with composed(overrides, config_dir) as (context, config, jobs):
        engine = choose_engine(context, config, jobs[0])
        summary = planner.plan(jobs, workers=engine.workers, here=engine.here, measure=True).summary.to_json()
    frame = DataFrame(summary.pop("runs"))
    frame.attrs.update(summary)
    return frame


def leaderboard(*overrides: str, config_dir: str | Path | None = None) -> "DataFrame":
    """Rank the runs of the experiment as `stagetree report` does, and write nothing.

    Args:
        overrides: settings such as `report.metric=test_loss`, `report.group_by=seed` or `output_dir=...`;
            `dataset=mnist` and other settings of runs select the runs that have them.
        config_dir: a folder of further groups, as for `--config-dir`.

    Raises:
        InputError: no runs were recorded, or there is no such metric.
    """
    with composed(overrides, config_dir) as (_, _, jobs):
        return runner.rank_all(_only(jobs).config, _only(jobs).overrides)[0]


def _only(jobs: list[Job]) -> Job:
    if len(jobs) > 1:
        raise InputError(f"leaderboard: takes one value of each setting, got {len(jobs)} combinations")
    return jobs[0]


@contextmanager
def composed(
    overrides: Sequence[str], config_dir: str | Path | None
) -> Iterator[tuple[HydraContext, DictConfig, list[Job]]]:
    """Compose the grid; at the end, undo the changes of Hydra's launchers to the root logger."""
    search_path = create_config_search_path(str(main.conf_dir()))
    if config_dir is not None:
        path = Path(config_dir).resolve()
        if not path.is_dir():
            raise InputError(f"config_dir: there is no folder {path}")
        search_path.prepend("command-line", f"file://{path}", SearchPathQuery(provider="schema"))  # as Hydra's own flag
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        setup_globals()
        loader = ConfigLoaderImpl(search_path)
        try:
            words = [hydra_override(word) for word in overrides]
            config = loader.load_configuration("config", words, RunMode.MULTIRUN)
            jobs = compose_grid(loader, config, config.hydra.overrides.task)
        except InputError:
            raise
        except Exception as error:
            said = composition_error(error)
            if said is None:
                raise
            raise InputError(said) from error
        yield HydraContext(config_loader=loader, callbacks=Callbacks(config)), config, jobs
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
