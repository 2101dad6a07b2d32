"""Run one command's runs, from the plan to the leaderboard.

Nothing is trained before all configurations are checked, all data is prepared and the plan is written.
"""

import json
import math
import os
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stagetree.config.composition import Job
from stagetree.config.schema import Config
from stagetree.execution.engine import Engine
from stagetree.execution.shutdown import Interrupted, LaunchingProcess
from stagetree.execution.supervisor import MachineError, Supervisor
from stagetree.planning.descriptions import write_entries
from stagetree.planning.planner import Plan, plan
from stagetree.redact import redact, redact_words
from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import Record
from stagetree.storage.files import remove_leftovers, write_atomic
from stagetree.storage.locks import output_dir_locks
from stagetree.tracking.connection import TrackingStore, cut
from stagetree.tracking.follower import EventFollower, Listener, in_a_line
from stagetree.tracking.tracker import SweepRecord, Tracker

if TYPE_CHECKING:
    from pandas import DataFrame

NOTED = 20
"""The number of leaderboard lines in the sweep's description in MLflow."""
NOTED_CHARACTERS = 1500
"""The most characters of the command there, which leave room for these lines; a tag has the whole command."""


@dataclass(frozen=True)
class Outcome:
    """The end of a sweep."""

    exit_code: int
    """0 if all runs finished; 3 if some failed, or could not be recorded."""
    objective: float
    """The best validation accuracy, or test accuracy where there is no validation set; NaN if no run finished."""
    text: str
    """The last lines to print."""
    leaderboard: "DataFrame | None" = None
    """The leaderboard of this sweep's runs; `None` if they could not be recorded."""


def run(
    jobs: Sequence[Job], *, engine: Engine, command: Sequence[str], progress: Callable[[Plan], Listener]
) -> Outcome:
    """Train the runs that are not finished, track them, and rank all.

    Args:
        jobs: the points of the grid.
        engine: the engine that runs the units.
        command: the command as typed; it is recorded with its secrets hidden.
        progress: makes the display of a plan's progress.

    Raises:
        Interrupted: a signal came; all workers have ended.
        OSError: the output folder cannot be written.
    """
    command = redact_words(command)
    planned = plan(jobs, workers=engine.workers, here=engine.here)
    config, store = planned.config, TrackingStore.of(planned.config)
    if not config.quiet:
        planned.show(Console())
    for folder in (store.checkpoints, store.output_dir / "data"):
        remove_leftovers(folder)
    launch = _new_launch(planned, store.output_dir)
    since = launch.stat().st_mtime if config.execution.fresh else 0.0
    sweep = SweepRecord(planned.sweep_id, launch.name, shlex.join(command), planned.entries)

    def open_tracker(at_once: int) -> Tracker:
        return Tracker.open(store, sweep, since=since, at_once=at_once)

    trouble = None
    follower = EventFollower(launch / "events", progress(planned), open_tracker)
    with follower, LaunchingProcess(launch, output_dir_locks(store.output_dir), on_signal=follower.hurry) as launching:
        # whoever finds this file finds its launch alive
        summary = planned.summary.to_json() | {"command": list(command)}
        write_atomic(launch / "sweep.json", json.dumps(summary).encode())
        try:
            Supervisor(planned, store.output_dir, launch, engine, since).train(planned.units)
        except MachineError as error:
            trouble = error
    if launching.signal is not None:
        raise Interrupted(launching.signal)
    records = [checkpoints.find(store.checkpoints, uid, since=since) for uid in planned.runs]
    finished = [record for record in records if record is not None and record.test is not None]
    return _outcome(planned, sweep, finished, trouble, follower.tracking_error)


def _new_launch(planned: Plan, output_dir: Path) -> Path:
    """Make the folder of a launch, and write the list of the runs that it is to record.

    Each launch of a sweep has its own units and logs; earlier progress is in the checkpoints.
    """
    # The name has microseconds, since a notebook may launch the same sweep twice within a second.
    name = f"{datetime.now():%Y%m%dT%H%M%S.%f}-{socket.gethostname()}-{os.getpid()}"
    folder = output_dir / "sweeps" / planned.sweep_id / name
    folder.mkdir(parents=True)
    write_entries(folder / "runs.jsonl.gz", planned.entries)
    return folder


def _outcome(
    planned: Plan,
    sweep: SweepRecord,
    finished: Sequence[Record],
    trouble: Exception | None,
    tracking_error: Exception | None,
) -> Outcome:
    """Rank and publish the runs, if they could be recorded, and say what is missing."""
    scores = [one.history[-1].get("val/acc", one.test["test/acc"]) for one in finished if one.test]
    objective = max(scores, default=math.nan)
    problems = [str(trouble)] if trouble else []
    if tracking_error is not None:
        problems += [
            f"tracking at {redact(planned.config.store_uri)} failed: {in_a_line(tracking_error)}",
            "The results are kept; run the same command again to record them.",
        ]
        return Outcome(3, objective, "\n".join(problems))
    ranked, hints = _conclude(planned, sweep)
    n_runs, n_missing = len(planned.runs), len(planned.runs) - len(finished)
    if trouble:
        kept = "what is finished is kept. Run the same command again to go on."
        problems.append(f"{n_missing} of {n_runs} runs are not finished; {kept}")
    elif n_missing:
        problems.append(f"{n_missing} of {n_runs} runs failed")
    return Outcome(3 if problems else 0, objective, "\n".join(problems if trouble else problems + hints), ranked)


def _conclude(planned: Plan, sweep: SweepRecord) -> "tuple[DataFrame, list[str]]":
    """Rank the runs, write the files, publish and print; return the leaderboard, and hints on where to look next."""
    from stagetree.report import ranking, table

    config = planned.config
    experiment = TrackingStore.of(config).load()
    frame = experiment[experiment["uid"].isin(planned.runs)]
    ranked = ranking.rank(frame, config.report.metric)
    files = _write(config, ranked, frame, sweep.command) if len(planned.runs) > 1 else []
    best = frame[frame["run_id"].isin(ranked.loc[ranked["rank"] == 1, "run_id"])]
    parts = f"`{cut(sweep.command, NOTED_CHARACTERS)}`", table.summary(ranked), table.to_markdown(ranked, NOTED)
    _publish(planned, best, "\n\n".join(parts), files, ranking.useful_columns(experiment))
    if config.quiet:
        return ranked, []
    table.show(ranked, config.report.top, Console(), files[0] if files else None)
    return ranked, [*map(_page_hint, files[1:]), "stagetree ui  opens these runs in MLflow"]


def _write(config: Config, ranked: "DataFrame", frame: "DataFrame", command: str = "") -> list[Path]:
    """Write the leaderboard as CSV and, if it is wanted, as a page; return both paths."""
    from stagetree.report import table

    paths = [Path(config.report.output)]
    table.write_csv(ranked, paths[0])
    if config.report.page_path and not frame.empty:
        from stagetree.report.page import PageInputs, write_page

        paths.append(config.report.page_path)
        inputs = PageInputs(frame, config.store_uri, Path(config.output_dir), config.report.metric, command)
        write_page(inputs, paths[1])
    return paths


def _page_hint(page: Path) -> str:
    return f"{page}  shows this with curves, settings and misclassified images, in any browser"


def _publish(
    planned: Plan, best: "DataFrame", note: str, files: Sequence[Path], columns: tuple[list[str], list[str]]
) -> None:
    """Describe the sweep in MLflow, and log its best run as a model. The results do not depend on it."""
    from stagetree.report.publishing import Publisher

    try:
        publisher = Publisher.open(TrackingStore.of(planned.config), planned.sweep_id)
        publisher.describe(note, files)
        publisher.choose_columns(*columns)
        for run_id, uid in zip(best["run_id"], best["uid"], strict=True):
            publisher.add_model(run_id, uid)
    except Exception as error:  # of MLflow, the database or the network
        print(f"note: MLflow did not take the sweep's description or model: {in_a_line(error)}", file=sys.stderr)


def leaderboard(config: Config, overrides: Sequence[str]) -> None:
    """Rank the runs of the experiment that the overrides select, print the top and write the files."""
    from stagetree.report import table

    ranked, frame = rank_all(config, overrides)
    files = _write(config, ranked, frame)
    table.show(ranked, config.report.top, Console(), files[0])
    for page in files[1:]:
        print(_page_hint(page))


def rank_all(config: Config, overrides: Sequence[str]) -> "tuple[DataFrame, DataFrame]":
    """Rank the runs of the experiment that the overrides select; return the leaderboard and these runs."""
    from stagetree.report import ranking, selection

    frame = selection.select(TrackingStore.of(config).load(), config, overrides)
    if config.report.group_by:
        return ranking.aggregate(frame, config.report.group_by, config.report.metric), frame
    return ranking.rank(frame, config.report.metric), frame
