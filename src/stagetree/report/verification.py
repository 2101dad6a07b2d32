"""`stagetree verify`: compare checkpoints, MLflow and the leaderboard, and repair what differs."""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from stagetree.config.schema import Config
from stagetree.report import ranking, table
from stagetree.report.inspection import OutputFolder, Problem, Sweep
from stagetree.report.publishing import Publisher
from stagetree.storage import checkpoints
from stagetree.storage.files import file_digest
from stagetree.tracking import audit
from stagetree.tracking.tracker import SweepRecord, Tracker


def verify(config: Config, console: Console, *, repair: bool = False) -> bool:
    """Check an output folder and its store, print the problems found, and repair them if asked to.

    Nothing is trained. A state that is beyond repair is dropped, so that its sweep trains it again.

    Args:
        config: names the output folder and the store.
        console: to print to.
        repair: whether problems are repaired.

    Returns:
        Whether all is well now.
    """
    found = OutputFolder(config).problems()
    _print(found, console)
    if found and repair:
        _repair(OutputFolder(config), config, console)
        found = OutputFolder(config).problems()
        console.print("after the repair:", highlight=False)
        _print(found, console)
    elif found:
        console.print("stagetree verify --repair  puts this right, and trains nothing", highlight=False)
    return not found


def _print(problems: Iterable[Problem], console: Console) -> None:
    lines = [str(problem) for problem in problems]
    for line in lines or ["all is well: checkpoints, MLflow and the leaderboard say the same"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _repair(folder: OutputFolder, config: Config, console: Console) -> None:
    """Repair as much as is possible without training."""
    from mlflow import MlflowClient

    for problem in folder.states():
        _restore(folder, problem)
    if problem := folder.database():
        _set_aside(problem, console)
    for sweep in folder.sweeps:
        console.print(f"recording sweep {sweep.sweep_id}: {len(sweep.entries)} runs", highlight=False)
        _record(folder, sweep)
        _publish(folder, sweep)
    wrong = {problem.uid for problem in folder.models()}
    for model, uid in folder.logged_models():
        if model.status != "READY":
            MlflowClient(folder.store.uri).delete_logged_model(model.model_id)
        elif uid in wrong:
            Publisher.open(folder.store, folder.sweeps[0].sweep_id if folder.sweeps else "").write_model(model, uid)
    several = [sweep for sweep in folder.sweeps if len(sweep.entries) > 1]
    if several and list(folder.leaderboard()):
        ranked = ranking.rank(folder.runs_of(several[-1]), config.report.metric)
        table.write_csv(ranked, Path(config.report.output))


def _restore(folder: OutputFolder, problem: Problem) -> None:
    """Restore a state's weights from the run's artifacts if they are whole there; else drop the state."""
    record = checkpoints.find(folder.checkpoints, problem.uid)
    name = f"{problem.uid}.safetensors"
    if record is not None and folder.database() is None:
        for run in folder.store.read():
            artifacts = audit.local_path(run.artifact_uri)
            if artifacts is None or run.tags.get("stagetree.uid") != problem.uid:
                continue
            weights = artifacts / "weights.safetensors"
            if weights.is_file() and file_digest(weights) == record.files.get(name):
                shutil.copyfile(weights, folder.checkpoints / f".{name}")
                (folder.checkpoints / f".{name}").replace(folder.checkpoints / name)
    if record is None or checkpoints.damage(folder.checkpoints, record):
        checkpoints.remove(folder.checkpoints, problem.uid)


def _set_aside(problem: Problem, console: Console) -> None:
    path = Path(problem.where)
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    for suffix in ("", "-wal", "-shm"):
        if path.with_name(path.name + suffix).exists():
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    console.print(f"{path}: made anew from the checkpoints; the damaged one is kept as {kept.name}", highlight=False)


def _record(folder: OutputFolder, sweep: Sweep) -> None:
    """Record the finished runs of a sweep, and check all that is recorded of it."""
    record = SweepRecord(sweep.sweep_id, sweep.launch, sweep.command, tuple(sweep.entries.values()))
    Tracker.open(folder.store, record, thorough=True).close()


def _publish(folder: OutputFolder, sweep: Sweep) -> None:
    """Log a sweep's best run as a model, if it has none."""
    frame = folder.runs_of(sweep)
    ranked = ranking.rank(frame)
    best = frame[frame["run_id"].isin(ranked.loc[ranked["rank"] == 1, "run_id"])]
    for run_id, uid in zip(best["run_id"], best["uid"], strict=True):
        if checkpoints.find(folder.checkpoints, uid):
            Publisher.open(folder.store, sweep.sweep_id).add_model(run_id, uid)
