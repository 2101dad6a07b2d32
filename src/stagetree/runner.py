"""One command's runs, from the plan to the leaderboard.

Nothing is trained before all configurations are checked, all data is prepared and the plan is written down.
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
from stagetree.execution.shutdown import Interrupted, Launching
from stagetree.execution.supervisor import Crew, MachineError
from stagetree.planning.descriptions import write_entries
from stagetree.planning.planner import Plan, plan
from stagetree.redact import redact, redact_words
from stagetree.storage import checkpoints
from stagetree.storage.locks import store_claims
from stagetree.tracking.follower import EventFollower, Listener, in_a_line
from stagetree.tracking.tracker import Tracker

if TYPE_CHECKING:
    from pandas import DataFrame

NOTED = 20
"""Lines of the leaderboard in the sweep's description in MLflow."""
NOTED_CHARACTERS = 1500
"""Of the command there, so that the lines have their place; the whole is a tag."""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    exit_code: int
    """0: all runs finished; 3: some failed, or could not be recorded."""
    objective: float
    """The best validation accuracy, or test accuracy where there is no validation set; NaN if no run finished."""
    text: str
    """What to print last."""
    leaderboard: "DataFrame | None" = None
    """Of this sweep's runs; `None` if they could not be recorded."""


def run(
    jobs: Sequence[Job], *, engine: Engine, command: Sequence[str], progress: Callable[[Plan], Listener]
) -> Outcome:
    """Train what is not finished, track it, and rank the runs.

    Args:
        jobs: the points of the grid.
        engine: runs the units.
        command: as typed, for the record, where its secrets are hidden.
        progress: makes what shows the progress of a plan.

    Raises:
        Interrupted: by a signal, once all workers have ended.
        OSError: the output folder cannot be written.
    """
    command = redact_words(command)
    planned = plan(jobs, workers=engine.workers, here=engine.here)
    if not planned.config.quiet:
        planned.show(Console())
    output_dir = Path(planned.config.output_dir).resolve()
    states = checkpoints.folder_of(output_dir)
    for folder in (states, output_dir / "data"):
        checkpoints.remove_leftovers(folder)
    # Each launch of a sweep keeps its own units and logs; what it reached before is in the checkpoints.
    # To the microsecond: a notebook launches the same sweep twice within a second.
    launch_id = f"{datetime.now():%Y%m%dT%H%M%S.%f}-{socket.gethostname()}-{os.getpid()}"
    folder = output_dir / "sweeps" / planned.sweep_id / launch_id
    folder.mkdir(parents=True)
    write_entries(folder / "runs.jsonl.gz", planned.entries)
    config, tracking = planned.config, planned.config.tracking
    since = folder.stat().st_mtime if config.trainer.fresh else 0.0
    begun: dict[str, str] = {}

    def new_tracker(at_once: int) -> Tracker:
        return Tracker(
            uri=config.store_uri, experiment=tracking.experiment, output_dir=output_dir, sweep_id=planned.sweep_id,
            launch=folder.name, command=shlex.join(command), runs=planned.entries, begun=begun,
            since=since, artifacts=tracking.artifacts, at_once=at_once,
        )  # fmt: skip

    trouble = None
    follower = EventFollower(folder / "events", progress(planned), new_tracker)
    with follower, Launching(folder, store_claims(output_dir), on_signal=follower.hurry) as launching:
        # whoever finds this file finds its launch alive
        said = {**planned.summary, "command": list(command)}
        checkpoints.write_atomic(folder / "sweep.json", json.dumps(said).encode())
        try:
            Crew(planned, output_dir, folder, engine, since).train(planned.units)
        except MachineError as error:
            trouble = error
    if launching.signal is not None:
        raise Interrupted(launching.signal)
    return _outcome(planned, since, shlex.join(command), follower.tracking_error, trouble)


def _outcome(
    planned: Plan, since: float, command: str, tracking_error: Exception | None, trouble: Exception | None
) -> Outcome:
    """Rank this sweep's runs, print the top and write the files."""
    config, several = planned.config, len(planned.runs) > 1
    folder = checkpoints.folder_of(Path(config.output_dir))
    records = [checkpoints.find(folder, uid, since=since) for uid in planned.runs]
    finished = [record for record in records if record is not None and record.test is not None]
    scores = [record.history[-1].get("val/acc", record.test["test/acc"]) for record in finished]
    objective = max(scores, default=math.nan)
    if tracking_error is not None:
        message = (
            f"tracking at {redact(config.store_uri)} failed: {in_a_line(tracking_error)}\n"
            "The results are kept; run the same command again to record them."
        )
        return Outcome(3, objective, f"{trouble}\n{message}" if trouble else message)
    from stagetree.report import ranking, table
    from stagetree.tracking import store
    from stagetree.tracking.connection import cut

    experiment = store.load(config.store_uri, config.tracking.experiment)
    frame = experiment[experiment["uid"].isin(planned.runs)]
    ranked = ranking.rank(frame, config.report.metric)
    files = _write(config, ranked, frame, command) if several else []
    best = frame[frame["run_id"].isin(ranked.loc[ranked["rank"] == 1, "run_id"])]
    note = f"`{cut(command, NOTED_CHARACTERS)}`\n\n{table.summary(ranked)}\n\n{table.to_markdown(ranked, NOTED)}"
    _publish(planned, best, note, files, ranking.useful_columns(experiment))
    lines = []
    if not config.quiet:
        table.show(ranked, config.report.top, Console(), files[0] if files else None)
        if len(files) > 1:
            lines.append(f"{files[1]}  shows this with curves, settings and mistakes, in any browser")
        lines.append("stagetree ui  opens these runs in MLflow")
    n_missing = len(planned.runs) - len(finished)
    if trouble:
        lines = [f"{trouble}", f"{n_missing} of {len(planned.runs)} runs are not finished; what is finished is kept. "
                 "Run the same command again to go on."]  # fmt: skip
    elif n_missing:
        lines.insert(0, f"{n_missing} of {len(planned.runs)} runs failed")
    return Outcome(3 if n_missing or trouble else 0, objective, "\n".join(lines), ranked)


def _write(config: Config, ranked: "DataFrame", frame: "DataFrame", command: str = "") -> list[Path]:
    """Write the leaderboard as CSV and, if it is wanted, as a page; return both paths."""
    from stagetree.report import table

    paths = [Path(config.report.output)]
    table.write_csv(ranked, paths[0])
    if config.report.page_path and not frame.empty:
        from stagetree.report.page import Source, write_page

        paths.append(config.report.page_path)
        source = Source(frame, config.store_uri, Path(config.output_dir), config.report.metric, command)
        write_page(source, paths[1])
    return paths


def _publish(
    planned: Plan, best: "DataFrame", note: str, files: Sequence[Path], columns: tuple[list[str], list[str]]
) -> None:
    """Describe the sweep in MLflow, and log its best run as a model. The results do not depend on it."""
    from stagetree.report.publishing import Publisher

    config = planned.config
    try:
        publisher = Publisher(
            uri=config.store_uri, experiment=config.tracking.experiment, output_dir=Path(config.output_dir).resolve(),
            sweep_id=planned.sweep_id,
        )  # fmt: skip
        publisher.describe(note, files)
        publisher.choose_columns(*columns)
        for run in best.itertuples():
            publisher.add_model(run.run_id, run.uid)
    except Exception as error:  # of many kinds: MLflow's, the database's, the network's
        print(f"note: MLflow did not take the sweep's description or model: {in_a_line(error)}", file=sys.stderr)


def leaderboard(config: Config, overrides: Sequence[str]) -> None:
    """Rank the runs of the experiment that the overrides select, print the top and write the files."""
    from stagetree.report import table

    ranked, frame = rank_all(config, overrides)
    files = _write(config, ranked, frame)
    table.show(ranked, config.report.top, Console(), files[0])
    for page in files[1:]:
        print(f"{page}  shows this with curves, settings and mistakes, in any browser")


def rank_all(config: Config, overrides: Sequence[str]) -> "tuple[DataFrame, DataFrame]":
    """Rank the runs of the experiment that the overrides select: the leaderboard, and what it was made from."""
    from stagetree.report import ranking, selection
    from stagetree.tracking import store

    frame = selection.select(store.load(config.store_uri, config.tracking.experiment), config, overrides)
    if config.report.group_by:
        return ranking.aggregate(frame, config.report.group_by, config.report.metric), frame
    return ranking.rank(frame, config.report.metric), frame
