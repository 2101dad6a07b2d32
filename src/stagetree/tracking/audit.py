"""Compare what MLflow holds of finished runs with their checkpoints."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import Record
from stagetree.storage.files import file_digest
from stagetree.tracking.connection import TrackingStore

if TYPE_CHECKING:
    from stagetree.tracking.store import Metrics, Recorded

Epochs = Mapping[int, Mapping[str, float]]
"""Metric values by epoch and by the metric's name in MLflow."""
Params = Mapping[str, Mapping[str, Any]]
"""Params by uid and name."""

ARTIFACTS = ("weights.safetensors", "config.yaml", "curves.svg")
"""The artifacts of each finished run."""
AT_ONCE = 500
"""Number of runs whose metrics are held in memory at a time."""


@dataclass(frozen=True)
class Differences:
    """The differences between a run in MLflow and its checkpoint."""

    missing: Epochs = field(default_factory=dict)
    """Missing metrics, which can be added."""
    wrong: tuple[str, ...] = ()
    """Values that MLflow cannot take back, a phrase each: such a run is recorded anew."""
    lacking: tuple[str, ...] = ()
    """Other missing parts, which can be added, a phrase each."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.wrong or self.lacking)

    def __str__(self) -> str:
        n_missing = sum(map(len, self.missing.values()))
        said = [f"{n_missing} metric values are missing, of epochs {_ranges(self.missing)}"] if n_missing else []
        return "; ".join([*said, *self.wrong, *self.lacking])


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Select the metrics from an epoch's event or from a line of a checkpoint's history."""
    return {name: value for name, value in line.items() if name not in ("kind", "uid", "epoch", "seconds")}


def expected(record: Record) -> Epochs:
    """All metrics that MLflow must hold of a finished run, once each."""
    epochs = {int(line["epoch"]): metrics_of(line) for line in record.history}
    last = max(epochs)
    seconds = sum(line.get("seconds", 0.0) for line in record.history)
    epochs[last] = {**(record.test or {}), "train_seconds": seconds, **epochs[last]}
    return epochs


def compare(wanted: Epochs, recorded: "Metrics") -> Differences:
    """Compare a run's metrics with the expected ones.

    Args:
        wanted: from `expected`.
        recorded: all points that MLflow holds.
    """
    missing = {epoch: dict(values) for epoch, values in wanted.items()}
    wrong = []
    for name, points in recorded.items():
        for step, value in points:
            if name not in wanted.get(step, {}):
                wrong.append(f"{name} has a value at step {step}, where there should be none")
            elif name not in missing[step]:
                wrong.append(f"{name} has two values at step {step}")
            elif not _same(missing[step].pop(name), value):
                wrong.append(f"{name} is {value!r} at step {step}, expected {wanted[step][name]!r}")
    return Differences({epoch: values for epoch, values in missing.items() if values}, tuple(wrong))


def examine(
    store: TrackingStore, runs: Sequence["Recorded"], params: Params | None = None
) -> Iterator[tuple["Recorded", "Metrics", Differences]]:
    """Compare finished runs with their checkpoints, if these exist, and yield each run with all its metrics.

    A server is asked for whole curves only if a run's last values differ, since each curve is a request.

    Args:
        store: in which they are recorded.
        runs: finished ones.
        params: the expected ones; if given, they are compared too, and every artifact and curve is read.
    """
    from stagetree.tracking.store import load_metrics  # pandas and SQLAlchemy

    for first in range(0, len(runs), AT_ONCE):
        some = runs[first : first + AT_ONCE]
        found = {run.run_id: checkpoints.find(store.checkpoints, run.tags["stagetree.uid"]) for run in some}
        records = {run_id: record for run_id, record in found.items() if record is not None and record.test is not None}
        all_curves = params is not None or store.is_sql
        doubtful = [run.run_id for run in some if all_curves or not _latest_agree(records.get(run.run_id), run)]
        metrics = load_metrics(store.uri, doubtful)
        for run in some:
            record, recorded = records.get(run.run_id), metrics.get(run.run_id)
            differences = _examine_run(store, run, record, recorded, params) if record is not None else Differences()
            yield run, recorded or {}, differences


def _examine_run(
    store: TrackingStore, run: "Recorded", record: Record, recorded: "Metrics | None", params: Params | None
) -> Differences:
    found = compare(expected(record), recorded) if recorded is not None else Differences()
    wrong, lacking = list(found.wrong), list(_lacking(run, record))
    if not found and not _latest_agree(record, run):
        wrong.append("its last values are not those of its curves")
    if params is not None:
        for name, value in params.get(record.uid, {}).items():
            if name not in run.params:
                lacking.append(f"param {name} is missing")
            elif run.params[name] != str(value):
                wrong.append(f"param {name} is {run.params[name]}, expected {value}")
        lacking += _damaged(store.uri, run, record)
    return Differences(found.missing, tuple(wrong), tuple(lacking))


def _latest_agree(record: Record | None, run: "Recorded") -> bool:
    if record is None:
        return True
    latest: dict[str, float] = {}
    for _, values in sorted(expected(record).items()):
        latest |= values
    return latest.keys() == run.metrics.keys() and all(_same(latest[name], run.metrics[name]) for name in latest)


def _lacking(run: "Recorded", record: Record) -> Iterator[str]:
    if run.tags.get("stagetree.weights_sha256") != record.weights_sha256:
        yield "the digest of its weights is another one, or missing"
    folder = local_path(run.artifact_uri)
    if folder is not None:
        yield from (f"artifact {name} is missing" for name in ARTIFACTS if not (folder / name).is_file())


def _damaged(uri: str, run: "Recorded", record: Record) -> Iterator[str]:
    """Yield what is wrong with the artifacts."""
    folder, digest = local_path(run.artifact_uri), record.files.get(f"{record.uid}.safetensors")
    if folder is None:
        from mlflow import MlflowClient

        there = {file.path for file in MlflowClient(uri).list_artifacts(run.run_id)}
        yield from (f"artifact {name} is missing" for name in ARTIFACTS if name not in there)
    elif (weights := folder / ARTIFACTS[0]).is_file() and file_digest(weights) != digest:
        yield f"artifact {weights.name} is damaged"


def local_path(uri: str | None) -> Path | None:
    """Find the folder of a run's artifacts; `None` if it is not in this machine's file system."""
    if not uri:
        return None
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _ranges(epochs: Epochs) -> str:
    """Write the epochs as ranges, as in `0 to 2, 7`."""
    parts: list[list[int]] = []
    for epoch in sorted(epochs):
        if parts and parts[-1][-1] == epoch - 1:
            parts[-1].append(epoch)
        else:
            parts.append([epoch])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
