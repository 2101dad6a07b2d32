"""Read the runs of an experiment from MLflow into a DataFrame. Reading never makes a store.

A SQL store is read with one query for each table: 10,000 runs take about 1 s, and 16 s through MLflow's own search
(2 cores).
"""

import json
import math
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sql
from pandas import DataFrame, Series
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from stagetree.config.metrics import METRICS, RECORDED, metric_name
from stagetree.config.params import COLUMNS, param
from stagetree.errors import InputError, choices
from stagetree.redact import redact
from stagetree.tracking.connection import is_sql, joined, pages
from stagetree.tree.notation import brief
from stagetree.tree.runs import Stage, Stages, canonical_json

if TYPE_CHECKING:
    from mlflow.entities import Run

ATTRIBUTES = ("run_id", "run_name", "sweep", "uid", "trunk", "trunk_json", "status", "reason", "command", "stages")
MOST_IDS = 500
"""The most ids in one query."""

Metrics = Mapping[str, Sequence[tuple[int, float]]]
"""All values of a run's metrics in a store: by name, each with its step, in the order of the steps."""


@dataclass(frozen=True)
class Recorded:
    """One run of any kind, as MLflow holds it."""

    run_id: str
    status: str
    artifact_uri: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each metric."""
    tags: dict[str, str] = field(default_factory=dict)


def load(uri: str, experiment: str) -> DataFrame:
    """Read all runs of an experiment, a row each, ordered by uid.

    Sweeps' parent runs, superseded runs and deleted runs are left out. A name that several data sets have is followed
    by the beginning of the digest, `small.npz 1a2b3c4d`. The columns are `ATTRIBUTES`, then `params.COLUMNS` and every
    other param of any run, then `METRICS`, float64. `stages` is the schedule as JSON, which `stages_of` reads; `lrs`
    and `epochs` shorten a schedule of more than `WRITTEN_OUT` stages. Params whose values are all numbers are Int64 or
    float64; missing text is None.

    Args:
        uri: MLflow's tracking URI.
        experiment: its name.

    Raises:
        InputError: the store cannot be read, or has no such experiment.
    """
    return _to_frame(read(uri, experiment))


def read(uri: str, experiment: str) -> list[Recorded]:
    """Read the runs of an experiment as they are recorded, without sweeps' parent runs and superseded runs.

    A finished run itself names the runs that it supersedes: a kill may come before they are tagged.

    Raises:
        InputError: as `load`.
    """
    found = (_read_sql if is_sql(uri) else _read_mlflow)(uri, experiment)
    superseded = {run.run_id for run in found if run.tags.get("stagetree.superseded") == "true"}
    for run in found:
        if run.status == "FINISHED":
            superseded |= set(run.tags.get("stagetree.supersedes", "").split())
    return [run for run in found if run.tags.get("stagetree.kind") == "run" and run.run_id not in superseded]


def _read_sql(uri: str, experiment: str) -> list[Recorded]:
    experiments = _sql_table("experiments", "experiment_id", "name", "lifecycle_stage")
    runs = _sql_table("runs", "run_uuid", "experiment_id", "status", "artifact_uri", "lifecycle_stage")
    try:
        with _engine(uri).connect() as connection:
            active = sql.select(experiments.c.name, experiments.c.experiment_id)
            ids = dict(iter(connection.execute(active.where(experiments.c.lifecycle_stage == "active"))))
            _check_experiment(experiment, ids)
            chosen = sql.and_(runs.c.experiment_id == ids[experiment], runs.c.lifecycle_stage == "active")

            def values(name: str, *columns: str) -> Iterable[tuple]:
                table = _sql_table(name, "run_uuid", *columns)
                of_run = table.c.run_uuid == runs.c.run_uuid
                return connection.execute(sql.select(*table.c).join(runs, of_run).where(chosen))

            # Runs first: whatever a writer adds meanwhile, a run that is finished here has all its values below.
            found = connection.execute(sql.select(runs.c.run_uuid, runs.c.status, runs.c.artifact_uri).where(chosen))
            recorded = {run_id: Recorded(run_id, status, folder) for run_id, status, folder in found}
            nobody = Recorded("", "")  # takes the values of runs that began after that
            for run_id, key, value in values("params", "key", "value"):
                recorded.get(run_id, nobody).params[key] = value
            for run_id, key, value in values("tags", "key", "value"):
                recorded.get(run_id, nobody).tags[key] = value
            for run_id, key, value, is_nan in values("latest_metrics", "key", "value", "is_nan"):
                # MLflow stores 0 for NaN
                recorded.get(run_id, nobody).metrics[key] = math.nan if is_nan else _unclamped(value)
    except (SQLAlchemyError, ImportError) as error:
        raise _unreadable(uri, getattr(error, "orig", None) or error) from error
    return list(recorded.values())


def load_histories(uri: str, run_ids: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Read the learning curves of runs: for each id, for each metric such as `train_acc`, its value by epoch.

    From an MLflow server this takes a request for each curve.

    Raises:
        InputError: the store cannot be read.
    """
    found = load_metrics(uri, run_ids, lambda name: name in RECORDED and bool(RECORDED[name].split))
    return {
        run_id: {RECORDED[name].name: dict(points) for name, points in curves.items()}
        for run_id, curves in found.items()
    }


def load_metrics(
    uri: str, run_ids: Sequence[str], wanted: Callable[[str], bool] = lambda name: True
) -> Mapping[str, Metrics]:
    """Read every value of the metrics of runs, by the runs' ids.

    Args:
        uri: of the store.
        run_ids: of the runs.
        wanted: tells whether a metric of this name is read; from an MLflow server each takes a request.

    Raises:
        InputError: the store cannot be read.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {run_id: {} for run_id in run_ids}
    if not is_sql(uri):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            client = MlflowClient(uri)
            for run_id, metrics in found.items():
                for name in filter(wanted, client.get_run(run_id).data.metrics):
                    history = client.get_metric_history(run_id, name)
                    metrics[name] = sorted((point.step, _unclamped(point.value)) for point in history)
        except MlflowException as error:
            raise _unreadable(uri, error) from error
        return found
    table = _sql_table("metrics", "run_uuid", "key", "step", "value", "is_nan")
    try:
        with _engine(uri).connect() as connection:
            for first in range(0, len(run_ids), MOST_IDS):
                chosen = table.c.run_uuid.in_(run_ids[first : first + MOST_IDS])
                query = sql.select(*table.c).where(chosen).order_by(table.c.run_uuid, table.c.key, table.c.step)
                for run_id, name, step, value, is_nan in map(tuple, connection.execute(query)):
                    if wanted(name):
                        point = (step, math.nan if is_nan else _unclamped(value))
                        found[run_id].setdefault(name, []).append(point)
    except SQLAlchemyError as error:
        raise _unreadable(uri, getattr(error, "orig", None) or error) from error
    return found


def _sql_table(name: str, *columns: str) -> sql.TableClause:
    return sql.table(name, *map(sql.column, columns))


def _engine(uri: str) -> sql.Engine:
    url = sql.make_url(uri)
    if url.get_backend_name() != "sqlite":
        return sql.create_engine(url, poolclass=NullPool)
    path = Path(url.database or "").absolute()
    if not path.is_file():
        raise InputError(
            f"tracking.uri: there is no database at {path} (train something first, or set tracking.uri or output_dir)"
        )
    connect = partial(sqlite3.connect, f"{path.as_uri()}?mode=ro", uri=True, timeout=20)
    return sql.create_engine("sqlite://", creator=connect, poolclass=NullPool)


def _read_mlflow(uri: str, experiment: str) -> list[Recorded]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(uri)
        ids = {found.name: found.experiment_id for found in pages(client.search_experiments)}
        _check_experiment(experiment, ids)
        return [_recorded(run) for run in pages(partial(client.search_runs, [ids[experiment]]))]
    except MlflowException as error:
        raise _unreadable(uri, error) from error


def _recorded(run: "Run") -> Recorded:
    info, data = run.info, run.data
    metrics = {name: _unclamped(value) for name, value in data.metrics.items()}
    return Recorded(info.run_id, info.status, info.artifact_uri, data.params, metrics, data.tags)


def _check_experiment(experiment: str, known: Iterable[str]) -> None:
    if experiment not in known:
        raise InputError(f"tracking.experiment: got {experiment!r}{choices(experiment, list(known))}")


def _unreadable(uri: str, error: Exception) -> InputError:
    return InputError(
        f"tracking.uri: cannot read {uri}, got {error} "
        "(give an MLflow database or the address of a running MLflow server)"
    )


def _to_frame(recorded: Iterable[Recorded]) -> DataFrame:
    runs = list(recorded)
    params = list(dict.fromkeys([*COLUMNS, *sorted({key for run in runs for key in run.params})]))
    rows = [
        {
            **run.params,
            **_schedule(run.params.get("lrs"), run.params.get("epochs"), joined(run.tags, "stagetree.stages")),
            **{metric_name(key): value for key, value in run.metrics.items()},
            "run_id": run.run_id,
            "run_name": run.tags.get("mlflow.runName"),
            "sweep": run.tags.get("stagetree.sweep"),
            "uid": run.tags.get("stagetree.uid"),
            "trunk": run.tags.get("stagetree.trunk") or None,
            "trunk_json": joined(run.tags, "stagetree.trunk_json"),
            "status": run.status.lower(),
            "reason": run.tags.get("stagetree.reason"),
            "command": redact(joined(run.tags, "stagetree.command") or "") or None,
        }
        for run in runs
    ]
    frame = DataFrame(rows, columns=[*ATTRIBUTES, *params, *METRICS], dtype=object)
    numbers = {key: _to_numbers(frame[key]) for key in params if not param(key).text}
    frame = _tell_data_apart(frame.assign(**numbers).astype(dict.fromkeys(METRICS, "float64")))
    return frame.sort_values(["uid", "run_id"], ignore_index=True)


def _tell_data_apart(frame: DataFrame) -> DataFrame:
    """Add the beginning of the digest to each name that several data sets share."""
    if "dataset_digest" not in frame:
        return frame
    several = frame.groupby("dataset")["dataset_digest"].transform("nunique") > 1
    return frame.assign(
        dataset=frame["dataset"].mask(several, frame["dataset"] + " " + frame["dataset_digest"].str[:8])
    )


@lru_cache(maxsize=1000)  # a sweep has few schedules and many runs
def _schedule(lrs: str | None, epochs: str | None, stages: str | None) -> dict[str, str | None]:
    """Convert a schedule to the present columns: earlier versions wrote out long lists."""
    if stages is not None:
        return {"stages": stages}
    try:
        lr_list, epoch_list = json.loads(lrs or ""), json.loads(epochs or "")
        pairs = [[int(n), float(lr)] for n, lr in zip(epoch_list, lr_list, strict=True)]
    except (ValueError, TypeError):  # MLflow had cut it, or there is none
        return {"stages": None}
    return {"stages": canonical_json(pairs), "lrs": str(brief(lr_list)), "epochs": str(brief(epoch_list))}


def stages_of(row: Series) -> Stages:
    """The schedule of a run; empty if its record is cut or missing.

    Args:
        row: of a frame from `load`.
    """
    return tuple(Stage(epochs, lr) for epochs, lr in json.loads(row["stages"] or "[]"))


def param_columns(frame: DataFrame) -> list[str]:
    """Name the columns of a frame from `load` that are params."""
    return [name for name in map(str, frame) if name not in ATTRIBUTES and name not in METRICS]


def _unclamped(value: float) -> float:
    """Restore infinity, which MLflow stores as the largest float."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _to_numbers(column: Series) -> Series:
    for dtype in ("Int64", "float64"):  # whole numbers stay exact: seeds go up to 2**63 - 1
        try:
            return column.astype(dtype)
        except (ValueError, OverflowError):
            pass
    return column
