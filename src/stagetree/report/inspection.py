"""Find the differences between the checkpoints, MLflow and the leaderboard."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stagetree.config.metrics import METRICS
from stagetree.config.schema import Config
from stagetree.errors import InputError
from stagetree.planning.descriptions import RunEntry, read_entries
from stagetree.report.publishing import MODEL
from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import StateError
from stagetree.storage.files import file_digest
from stagetree.tracking import audit
from stagetree.tracking.connection import TrackingStore

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from pandas import DataFrame

    from stagetree.tracking.store import Recorded


@dataclass(frozen=True)
class Sweep:
    """The last launch of a sweep, as it lies in the output folder."""

    sweep_id: str
    command: str
    launch: str
    entries: Mapping[str, RunEntry]
    """The runs by uid."""


@dataclass(frozen=True)
class Problem:
    """One thing that is damaged, missing, doubled or different."""

    where: str
    what: str
    uid: str = ""
    """Uid of the run or state that it concerns; empty if it concerns none."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class OutputFolder:
    """One output folder with its store, as it is now. Nothing is changed.

    Args:
        config: names the folder and the store.

    Raises:
        InputError: nothing was trained in it.
    """

    def __init__(self, config: Config):
        self.store = TrackingStore.of(config)
        self.checkpoints = self.store.checkpoints
        self._table = Path(config.report.output)
        self.sweeps = list(_sweeps(self.store.output_dir, self.store.experiment))
        """The sweeps recorded in the experiment, in the order of their launches."""
        self._entries = {uid: entry for sweep in self.sweeps for uid, entry in sweep.entries.items()}
        if not self.checkpoints.is_dir():
            raise InputError(f"output_dir: nothing was trained in {self.store.output_dir} (give output_dir=...)")

    def problems(self) -> list[Problem]:
        """Check states, database, runs, models and leaderboard; after a damaged database, nothing that needs it."""
        found = list(self.states())
        database = self.database()
        if database:
            return [*found, database]
        return [*found, *self.runs(), *self.models(), *self.leaderboard()]

    def states(self) -> Iterator[Problem]:
        """Yield the states that are damaged or lack a file."""
        for path in sorted(self.checkpoints.glob("[0-9a-f]*.json")):
            try:
                record = checkpoints.read_record(self.checkpoints, path.stem)
            except StateError as error:
                yield Problem(*_divided(error.what), path.stem)
                continue
            error = record and checkpoints.damage(self.checkpoints, record)
            if error:
                yield Problem(*_divided(error.what), path.stem)

    def database(self) -> Problem | None:
        """Say whether MLflow's database is missing or damaged; a server is not checked."""
        path = self.store.sqlite_path
        if path is None:
            return None
        if not path.exists():
            return Problem(str(path), "MLflow's database is missing")
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                said = [line for (line,) in connection.execute("PRAGMA integrity_check(1)")]
                connection.execute("SELECT count(*) FROM metrics JOIN runs USING (run_uuid)").fetchall()
            self.store.read()
        except (sqlite3.Error, InputError) as error:
            said = [str(error)]
        return None if said == ["ok"] else Problem(str(path), f"MLflow's database is damaged: {said[0]}")

    def runs_of(self, sweep: Sweep) -> "DataFrame":
        """Load the runs of one sweep, as `store.load` does."""
        frame = self.store.load()
        return frame[frame["uid"].isin(sweep.entries.keys())]

    def runs(self) -> Iterator[Problem]:
        """Yield the runs that differ between checkpoints and MLflow, or are recorded twice or not at all."""
        finished = [run for run in self.store.read() if run.status == "FINISHED"]
        params = {uid: entry.params for uid, entry in self._entries.items()}
        for run, _, differences in audit.examine(self.store, finished, params):
            if differences:
                yield Problem(_named(run), str(differences), run.tags["stagetree.uid"])
        uids = Counter(run.tags["stagetree.uid"] for run in finished)
        for run in finished:
            if uids[run.tags["stagetree.uid"]] > 1:
                yield Problem(_named(run), "is recorded twice", run.tags["stagetree.uid"])
        for uid in self._entries.keys() - uids.keys():
            record = checkpoints.find(self.checkpoints, uid)
            if record is not None and record.test is not None:
                yield Problem(f"run {self._entries[uid].name}", "is finished, and MLflow has no record of it", uid)

    def models(self) -> Iterator[Problem]:
        """Yield the logged models that are unfinished or damaged."""
        for model, uid in self.logged_models():
            folder = audit.local_path(model.artifact_location)
            record = checkpoints.find(self.checkpoints, uid)
            if folder is None or record is None:
                continue
            weights, what = folder / "data" / "weights.safetensors", ""
            if model.status != "READY":
                what = "is unfinished"
            elif not (folder / "MLmodel").is_file() or not weights.is_file():
                what = "its files are missing"
            elif file_digest(weights) != record.files.get(f"{uid}.safetensors"):
                what = "its weights are damaged"
            if what:
                yield Problem(f"model of run {str(model.source_run_id)[:8]}", what, uid)

    def logged_models(self) -> "list[tuple[LoggedModel, str]]":
        """Models of runs that are not superseded, each with its run's uid."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store.uri)
        experiment = client.get_experiment_by_name(self.store.experiment)
        found = client.search_logged_models([experiment.experiment_id]) if experiment else []
        uids = {run.run_id: run.tags["stagetree.uid"] for run in self.store.read()}
        ours = ((model, uids.get(str(model.source_run_id))) for model in found if model.name == MODEL)
        return [(model, uid) for model, uid in ours if uid]

    def leaderboard(self) -> Iterator[Problem]:
        """Compare each row with its run; the rows are those of one sweep or of the whole experiment."""
        import pandas as pd

        path = self._table
        if not path.exists():
            return
        try:
            table = pd.read_csv(path)
        except ValueError as error:
            yield Problem(str(path), f"cannot be read, got {error}")
            return
        if "run_id" not in table:  # means over seeds
            return
        frame = self.store.load().set_index("run_id")
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
        """Select the rows of the smallest sweep that all these runs belong to; without one, these rows."""
        uids = set(uids)
        several = [sweep.entries.keys() for sweep in self.sweeps if uids <= sweep.entries.keys()]
        return frame[frame["uid"].isin(min(several, key=len, default=uids))]


def _sweeps(output_dir: Path, experiment: str) -> Iterator[Sweep]:
    """Yield the last launch of each sweep recorded in an experiment, in the order of the launches."""
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
