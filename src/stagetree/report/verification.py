"""`stagetree verify`: whether checkpoints, MLflow and the leaderboard say the same, and putting right what does not."""

import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stagetree.config.schema import Config
from stagetree.errors import InputError
from stagetree.planning.descriptions import RunEntry, read_entries
from stagetree.report.publishing import MODEL, Publisher
from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import StateError
from stagetree.tracking import audit
from stagetree.tracking.connection import TrackingStore
from stagetree.tracking.tracker import SweepRecord, Tracker

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from pandas import DataFrame

    from stagetree.tracking.store import Recorded


@dataclass(frozen=True)
class Sweep:
    """What the last launch of a sweep left in the output folder."""

    sweep_id: str
    command: str
    launch: str
    entries: Mapping[str, RunEntry]
    """By uid."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be."""

    where: str
    what: str
    uid: str = ""
    """Of the run or state it concerns, if it is one."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(config: Config, console: Console) -> bool:
    """Check an output folder and its store, print what is missing, doubled or different, and repair it if asked to.

    Nothing is trained. A state that is beyond repair is dropped, so that its sweep trains it again.

    Args:
        config: `verify.repair` asks for repairs.
        console: where to.

    Returns:
        Whether all is well now.
    """
    found = _Folder(config).problems()
    _print(found, console)
    if found and config.verify.repair:
        _Folder(config).repair(console)
        found = _Folder(config).problems()
        console.print("after the repair:", highlight=False)
        _print(found, console)
    elif found:
        console.print("stagetree verify --repair  puts this right, and trains nothing", highlight=False)
    return not found


def _print(problems: Iterable[Problem], console: Console) -> None:
    lines = [str(problem) for problem in problems]
    for line in lines or ["all is well: checkpoints, MLflow and the leaderboard say the same"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Folder:
    """One output folder with its store, as it is now."""

    def __init__(self, config: Config):
        self._config = config
        self._store = TrackingStore.of(config)
        self._output_dir, self._checkpoints = self._store.output_dir, self._store.checkpoints

    @cached_property
    def _sweeps(self) -> list[Sweep]:
        return list(_sweeps(self._output_dir, self._store.experiment))

    @cached_property
    def _entries(self) -> dict[str, RunEntry]:
        return {uid: entry for sweep in self._sweeps for uid, entry in sweep.entries.items()}

    def problems(self) -> list[Problem]:
        """Look at everything.

        Raises:
            InputError: nothing was trained.
        """
        if not self._checkpoints.is_dir():
            raise InputError(f"output_dir: nothing was trained in {self._output_dir} (give output_dir=...)")
        found = list(self._states())
        database = self._database()
        if database:
            return [*found, database]
        return [*found, *self._runs(), *self._models(), *self._leaderboard()]

    # ------------------------------------------------------------ what is looked at

    def _states(self) -> Iterator[Problem]:
        for path in sorted(self._checkpoints.glob("[0-9a-f]*.json")):
            try:
                record = checkpoints.read_record(self._checkpoints, path.stem)
            except StateError as error:
                yield Problem(*_divided(error.what), path.stem)
                continue
            error = record and checkpoints.damage(self._checkpoints, record)
            if error:
                yield Problem(*_divided(error.what), path.stem)

    def _database(self) -> Problem | None:
        path = self._store.sqlite_path
        if path is None:
            return None
        if not path.exists():
            return Problem(str(path), "MLflow's database is missing")
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                said = [line for (line,) in connection.execute("PRAGMA integrity_check(1)")]
                connection.execute("SELECT count(*) FROM metrics JOIN runs USING (run_uuid)").fetchall()
            self._store.read()
        except (sqlite3.Error, InputError) as error:
            said = [str(error)]
        return None if said == ["ok"] else Problem(str(path), f"MLflow's database is damaged: {said[0]}")

    def _runs(self) -> Iterator[Problem]:
        finished = [run for run in self._store.read() if run.status == "FINISHED"]
        params = {uid: entry.params for uid, entry in self._entries.items()}
        for run, _, differences in audit.examine(self._store, finished, params):
            if differences:
                yield Problem(_named(run), str(differences), run.tags["stagetree.uid"])
        uids = Counter(run.tags["stagetree.uid"] for run in finished)
        for run in finished:
            if uids[run.tags["stagetree.uid"]] > 1:
                yield Problem(_named(run), "is recorded twice", run.tags["stagetree.uid"])
        for uid in self._entries.keys() - uids.keys():
            record = checkpoints.find(self._checkpoints, uid)
            if record is not None and record.test is not None:
                yield Problem(f"run {self._entries[uid].name}", "is finished, and MLflow has no record of it", uid)

    def _models(self) -> Iterator[Problem]:
        for model, uid in self._logged_models():
            folder = audit.local_path(model.artifact_location)
            record = checkpoints.find(self._checkpoints, uid)
            if folder is None or record is None:
                continue
            weights = folder / "data" / "weights.safetensors"
            if model.status != "READY":
                yield Problem(f"model of run {model.source_run_id[:8]}", "is unfinished", uid)
            elif not (folder / "MLmodel").is_file() or not weights.is_file():
                yield Problem(f"model of run {model.source_run_id[:8]}", "its files are missing", uid)
            elif checkpoints.file_digest(weights) != record.files.get(f"{uid}.safetensors"):
                yield Problem(f"model of run {model.source_run_id[:8]}", "its weights are damaged", uid)

    def _logged_models(self) -> "list[tuple[LoggedModel, str]]":
        """Models of runs that are not superseded, each with its run's uid."""
        from mlflow import MlflowClient

        client = MlflowClient(self._store.uri)
        experiment = client.get_experiment_by_name(self._store.experiment)
        found = client.search_logged_models([experiment.experiment_id]) if experiment else []
        uids = {run.run_id: run.tags["stagetree.uid"] for run in self._store.read()}
        return [(model, uids[model.source_run_id]) for model in found
                if model.name == MODEL and model.source_run_id in uids]  # fmt: skip

    def _leaderboard(self) -> Iterator[Problem]:
        """Compare each row with its run; the rows are all those of one sweep, or of the whole experiment."""
        import pandas as pd

        from stagetree.tracking.store import METRICS

        path = Path(self._config.report.output)
        if not path.exists():
            return
        try:
            table = pd.read_csv(path)
        except ValueError as error:
            yield Problem(str(path), f"cannot be read, got {error}")
            return
        if "run_id" not in table:  # means over seeds
            return
        frame = self._store.load().set_index("run_id")
        unknown = [run_id for run_id in table["run_id"] if run_id not in frame.index]
        if unknown:
            yield Problem(str(path), f"{len(unknown)} rows are of runs that are superseded or not there")
            return
        rows = table.set_index("run_id")
        own = frame.loc[rows.index]
        for name in [name for name in METRICS if name in rows]:
            different = ~((rows[name] == own[name]) | (rows[name].isna() & own[name].isna()))
            if different.any():
                yield Problem(str(path), f"{name} differs from MLflow's in {int(different.sum())} rows")
        n_missing = len(self._rows_of(frame, own["uid"])) - len(rows)
        if n_missing > 0:
            yield Problem(str(path), f"{n_missing} rows are missing")

    def _rows_of(self, frame: "DataFrame", uids: Iterable[str]) -> "DataFrame":
        """Rows of the smallest sweep that all these runs belong to; without one, these rows."""
        uids = set(uids)
        several = [sweep.entries.keys() for sweep in self._sweeps if uids <= sweep.entries.keys()]
        return frame[frame["uid"].isin(min(several, key=len, default=uids))]

    # ------------------------------------------------------------ repairs

    def repair(self, console: Console) -> None:
        """Put right what can be, without training."""
        from mlflow import MlflowClient

        for problem in self._states():
            self._restore(problem)
        if problem := self._database():
            self._set_aside(problem, console)
        for sweep in self._sweeps:
            entries = tuple(sweep.entries.values())
            console.print(f"recording sweep {sweep.sweep_id}: {len(entries)} runs", highlight=False)
            record = SweepRecord(sweep.sweep_id, sweep.launch, sweep.command, entries)
            Tracker.open(self._store, record, thorough=True).close()
            self._publish(sweep)
        wrong = {problem.uid for problem in self._models()}
        for model, uid in self._logged_models():
            if model.status != "READY":
                MlflowClient(self._store.uri).delete_logged_model(model.model_id)
            elif uid in wrong:
                Publisher.open(self._store, self._sweeps[0].sweep_id if self._sweeps else "").write_model(model, uid)
        self._write_leaderboard()

    def _restore(self, problem: Problem) -> None:
        """Take a state's weights from the run's artifacts, where they are whole; else drop the state."""
        record = checkpoints.find(self._checkpoints, problem.uid)
        name = f"{problem.uid}.safetensors"
        if record is not None and self._database() is None:
            for run in self._store.read():
                folder = audit.local_path(run.artifact_uri)
                if folder is None or run.tags.get("stagetree.uid") != problem.uid:
                    continue
                weights = folder / "weights.safetensors"
                if weights.is_file() and checkpoints.file_digest(weights) == record.files.get(name):
                    shutil.copyfile(weights, self._checkpoints / f".{name}")
                    (self._checkpoints / f".{name}").replace(self._checkpoints / name)
        if record is None or checkpoints.damage(self._checkpoints, record):
            checkpoints.remove(self._checkpoints, problem.uid)

    def _set_aside(self, problem: Problem, console: Console) -> None:
        path = Path(problem.where)
        kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
        for suffix in ("", "-wal", "-shm"):
            if path.with_name(path.name + suffix).exists():
                path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
        console.print(
            f"{path}: made anew from the checkpoints; the damaged one is kept as {kept.name}", highlight=False
        )

    def _publish(self, sweep: Sweep) -> None:
        """Log a sweep's best run as a model, if it has none."""
        from stagetree.report import ranking

        frame = self._store.load()
        ranked = ranking.rank(frame[frame["uid"].isin(sweep.entries.keys())])
        best = frame[frame["run_id"].isin(ranked.loc[ranked["rank"] == 1, "run_id"])]
        for run in best.itertuples():
            if checkpoints.find(self._checkpoints, run.uid):
                Publisher.open(self._store, sweep.sweep_id).add_model(run.run_id, run.uid)

    def _write_leaderboard(self) -> None:
        """Write it again, if it is wrong, for the last sweep of several runs."""
        from stagetree.report import ranking, table

        several = [sweep for sweep in self._sweeps if len(sweep.entries) > 1]
        if several and list(self._leaderboard()):
            frame = self._store.load()
            frame = frame[frame["uid"].isin(several[-1].entries.keys())]
            table.write_csv(ranking.rank(frame, self._config.report.metric), Path(self._config.report.output))


def _sweeps(output_dir: Path, experiment: str) -> Iterator[Sweep]:
    """The last launch of each sweep that was recorded in an experiment, in the order of their launches."""
    last: dict[str, Path] = {}
    launches = sorted(output_dir.glob("sweeps/*/*/sweep.json"), key=lambda path: path.stat().st_mtime)
    for path in launches:
        last.pop(path.parent.parent.name, None)
        last[path.parent.parent.name] = path
    for sweep_id, path in last.items():
        try:
            command = " ".join(json.loads(path.read_bytes())["command"])
        except (ValueError, KeyError):
            command = "stagetree sweep"
        entries = {entry.uid: entry for entry in read_entries(path.parent / "runs.jsonl.gz")}
        if entries and next(iter(entries.values())).config["tracking"]["experiment"] == experiment:
            yield Sweep(sweep_id, command, path.parent.name, entries)


def _divided(what: str) -> tuple[str, str]:
    where, _, rest = what.partition(": ")
    return where, rest


def _named(run: "Recorded") -> str:
    return f"run {run.run_id[:8]} ({run.tags.get('mlflow.runName', '')})"
