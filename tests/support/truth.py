"""What MLflow, the checkpoints and the leaderboard must agree on, looked up in the files themselves.

Nothing here goes through the project's own readers, so that what they pass over is seen. `differences` is called at the
end of every test that leaves a store (see `conftest.agreement`).
"""

import csv
import hashlib
import json
import math
import shlex
import sqlite3
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import yaml

Points = Counter[tuple[str, int, float]]
"""How often each (metric, step, value) is there."""


@dataclass
class Recorded:
    """A run as the tables of MLflow's database hold it."""

    run_id: str
    status: str
    artifacts: str
    ended: int
    """In ms; 0: not yet."""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: Points = field(default_factory=Counter)
    latest: dict[str, float] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return self.tags["stagetree.uid"]

    @property
    def artifact_folder(self) -> Path | None:
        """`None`: not in this machine's files."""
        parts = urlparse(self.artifacts)
        return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None

    def artifact(self, name: str) -> Path:
        return self.artifact_folder / name

    @property
    def overrides(self) -> list[str]:
        """Of the command that trains this run alone."""
        return shlex.split(self.tags["stagetree.command"])[2:]

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load(self.artifact("config.yaml").read_text())


def recorded(database: Path) -> list[Recorded]:
    """Read the runs that were trained and not superseded."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        rows = connection.execute(
            "select run_uuid, status, artifact_uri, coalesce(end_time, 0) from runs where lifecycle_stage = 'active'"
        ).fetchall()
        runs = {row[0]: Recorded(*row) for row in rows}

        def values(table: str, columns: str) -> Iterator[tuple[Recorded, tuple]]:
            for run_id, *rest in connection.execute(f"select run_uuid, {columns} from {table}"):
                if run_id in runs:
                    yield runs[run_id], tuple(rest)

        for run, (key, value) in values("tags", "key, value"):
            run.tags[key] = value
        for run, (key, value) in values("params", "key, value"):
            run.params[key] = value
        for run, (key, step, value, is_nan) in values("metrics", "key, step, value, is_nan"):
            run.points[key, step, _number(value, is_nan)] += 1
        for run, (key, value, is_nan) in values("latest_metrics", "key, value, is_nan"):
            run.latest[key] = _number(value, is_nan)
    told = {
        old for run in runs.values() if run.status == "FINISHED"
        for old in run.tags.get("stagetree.supersedes", "").split()
    }  # fmt: skip
    return [
        run for run in runs.values()
        if run.tags.get("stagetree.kind") == "run" and run.tags.get("stagetree.superseded") != "true"
        and run.run_id not in told
    ]  # fmt: skip


def _number(value: float, is_nan: int) -> float:
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def record_of(checkpoints: Path, uid: str) -> dict[str, Any] | None:
    """Read a checkpoint's record; `None` if it is missing or damaged."""
    try:
        digest, _, body = (checkpoints / f"{uid}.json").read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    body = body.removesuffix(b"\n")
    return json.loads(body) if hashlib.sha256(body).hexdigest().encode() == digest else None


def differences(
    database: Path, checkpoints: Path, leaderboard: Path | None = None, *, damaged: Collection[str] = ()
) -> list[str]:
    """Say in a sentence each where a store, the checkpoints beside it and a leaderboard differ.

    A run that is FINISHED must have each metric of its checkpoint's history at its epoch, once, with the same bits; its
    final metrics once; its parameters and artifacts. Without a checkpoint, which may be deleted, a run must still have
    all of its epochs.

    Args:
        database: MLflow's, in SQLite.
        checkpoints: folder of the states.
        leaderboard: the CSV of the last sweep.
        damaged: names of files in `checkpoints` that the caller damaged.
    """
    runs = recorded(database)
    said = [
        f"{uid[:8]}: {count} runs that are not superseded"
        for uid, count in Counter(run.uid for run in runs).items() if count > 1
    ]  # fmt: skip
    for run in runs:
        if run.status == "FINISHED":
            record = record_of(checkpoints, run.uid)
            faults = [*_epochs(run), *_artifacts(run)]
            if record is not None and record["test"] is not None:
                written = (checkpoints / f"{run.uid}.json").stat().st_mtime_ns // 1_000_000
                faults += [
                    *_points(run, record, trained_again=written > run.ended),
                    *_params(run, record),
                    *_weights(run, record, checkpoints, damaged),
                ]
            said += [f"{run.uid[:8]} {run.tags['mlflow.runName']}: {fault}" for fault in faults]
    if leaderboard is not None:
        said += _rows(leaderboard, {run.run_id: run for run in runs})
    return said


def _epochs(run: Recorded) -> Iterator[str]:
    """A checkpoint may be gone, but the schedule says how many epochs there were."""
    epochs, lrs = json.loads(run.params["epochs"]), json.loads(run.params["lrs"])
    lr_by_epoch = [lr for count, lr in zip(epochs, lrs, strict=True) for _ in range(count)]
    found = Counter({(step, value): n for (name, step, value), n in run.points.items() if name == "lr"})
    if found != Counter(enumerate(lr_by_epoch, 1)):
        yield f"learning rates {sorted(found.elements())}, expected {lr_by_epoch}"
    for name in ("train/loss", "train/acc"):
        steps = sorted(step for (key, step, _) in run.points.elements() if key == name)
        if steps != list(range(1, len(lr_by_epoch) + 1)):
            yield f"{name} at steps {steps}, expected 1 to {len(lr_by_epoch)}, once each"
    for name, value in run.latest.items():
        last = max(step for key, step, _ in run.points if key == name)
        if (name, last, value) not in run.points and not math.isnan(value):
            yield f"the latest value of {name} is {value}, not that of step {last}"


def _points(run: Recorded, record: Mapping[str, Any], *, trained_again: bool) -> Iterator[str]:
    """What was trained again since, as its state was gone, took another time, and was tested at other epochs maybe."""
    history = record["history"]
    last = history[-1]
    expected: Points = Counter(
        (name, line["epoch"], value)
        for line in history for name, value in line.items() if name not in ("epoch", "seconds")
    )  # fmt: skip
    expected.update((name, last["epoch"], value) for name, value in record["test"].items() if name not in last)
    seconds = sum(line.get("seconds", 0.0) for line in history)
    expected["train_seconds", last["epoch"], seconds] += 1
    for what, points in (("lacks", expected - run.points), ("has besides", run.points - expected)):
        if trained_again:
            points = Counter({key: n for key, n in points.items() if not key[0].startswith(("train_seconds", "test/"))})
        if points:
            yield f"{what} {sorted(points.elements())}"


def _params(run: Recorded, record: Mapping[str, Any]) -> Iterator[str]:
    trunk = json.loads(record["trunk"])
    expected = {name: value for name, value in trunk.items() if not isinstance(value, dict)}
    for group in ("model", "optimizer", "loss"):
        settings = dict(trunk[group])
        expected |= {group: settings.pop("name", None), **settings}
    for name, value in expected.items():
        if name in run.params and run.params[name] != str(value):
            yield f"param {name} is {run.params[name]}, the checkpoint says {value}"
    missing = {"optimizer", "loss", "seed", "batch_size", "hidden_sizes", "lrs", "epochs"} - run.params.keys()
    if missing:
        yield f"no params {sorted(missing)}"
    text = json.loads(run.params["epochs"]), json.loads(run.params["lrs"])
    stages = [{"epochs": epochs, "lr": lr} for epochs, lr in zip(*text, strict=True)]
    if run.artifact_folder is not None and run.config["schedule"]["stages"] != stages:
        yield f"config.yaml has the stages {run.config['schedule']['stages']}, the params {text}"


def _artifacts(run: Recorded) -> Iterator[str]:
    if run.artifact_folder is not None:
        for name in ("weights.safetensors", "config.yaml", "curves.svg"):
            if not run.artifact(name).is_file():
                yield f"no artifact {name}"


def _weights(run: Recorded, record: Mapping[str, Any], checkpoints: Path, damaged: Collection[str]) -> Iterator[str]:
    if run.tags.get("stagetree.weights_sha256") != record["weights_sha256"]:
        yield f"tagged with weights {run.tags.get('stagetree.weights_sha256')}, not {record['weights_sha256']}"
    name = f"{run.uid}.safetensors"
    files = {} if name in damaged else {"checkpoint": checkpoints / name}
    if run.artifact_folder is not None:
        files["artifact"] = run.artifact("weights.safetensors")
    for what, path in files.items():
        if not path.is_file():
            yield f"its {what}'s weights are missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != record["files"][name]:
            yield f"its {what}'s weights are not those that its record vouches for"


def _rows(leaderboard: Path, runs: Mapping[str, Recorded]) -> Iterator[str]:
    with open(leaderboard, newline="") as file:
        for row in csv.DictReader(file):
            run = runs.get(row["run_id"])
            if run is None or run.status.lower() != row["status"]:
                yield f"{leaderboard}: {row['run_id']} is {row['status']}, in MLflow {run and run.status}"
                continue
            for name, cell in row.items():
                key = name.replace("_loss", "/loss").replace("_acc", "/acc")
                if key in run.latest and cell and float(cell) != run.latest[key]:
                    yield f"{leaderboard}: {name} of {run.uid[:8]} is {cell}, in MLflow {run.latest[key]}"
                if key in ("test/loss", "test/acc") and row["status"] == "finished" and not cell:
                    yield f"{leaderboard}: {run.uid[:8]} has no {name}"
