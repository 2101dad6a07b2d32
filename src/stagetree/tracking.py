"""Events -> MLflow. The only module that writes MLflow, and only the launching process runs it.

Metrics go out live, in batches. The truth is elsewhere: whatever could not be written, or was written before a crash,
is made good from the checkpoints by `Tracker.finish` when a run is done or found done.
"""

import contextlib
import io
import json
import logging
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from stagetree import checkpoint
from stagetree.checkpoint import Record
from stagetree.describe import RunEntry

LONGEST_TAG = 5000  # characters; MLflow refuses 8,000

SHARE_OF_TIME = 0.03
"""Most of the launching process's time that live metrics may take: they wait longer where the store is slow."""


class Tracker:
    """Writes one sweep's runs to MLflow.

    Args:
        uri: a tracking URI.
        experiment: name; made if it does not exist.
        artifacts: where the experiment's artifacts go if it is made now and the store is a local database.
        sweep_id: names the parent run; a relaunched sweep goes on with the same.
        runs: of the sweep.
        checkpoints: folder of records.
    """

    def __init__(
        self, *, uri: str, experiment: str, artifacts: Path, sweep_id: str, command: str, runs: Sequence[RunEntry],
        checkpoints: Path,
    ):  # fmt: skip
        self.runs = {run.uid: run for run in runs}
        self._below: dict[str, list[RunEntry]] = {}
        for run in runs:
            for uid in run.path:
                self._below.setdefault(uid, []).append(run)
        self._checkpoints = checkpoints
        self._ids: dict[str, str] = {}
        self._logged: dict[str, int] = {}  # last epoch written, by uid; -1: none
        self._ended: set[str] = set()
        self._pending: dict[str, dict[int, Mapping[str, float]]] = {}
        self._next_flush = 0.0
        self._client = _client(uri)
        self._experiment = _experiment(self._client, experiment, uri, artifacts)
        self._sweep_id = sweep_id
        self._tags = _environment_tags()
        self._parent = self._find_parent(command)
        self._find_runs(uri, experiment)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the sweep's logs; what it leads to may be written later."""
        kind = event["kind"]
        if kind == "epoch":
            metrics = _metrics(event)
            for run in self._open(event["uid"]):
                self._pending.setdefault(run.uid, {})[event["epoch"]] = metrics
        elif kind == "done":
            run = self.runs.get(event["uid"])
            if run:
                self.finish(run)
        elif kind == "failed":
            for run in self._open(event["uid"]):
                self.fail(run, event["reason"], event["traceback"])

    def _open(self, node_uid: str) -> list[RunEntry]:
        return [run for run in self._below.get(node_uid, []) if run.uid not in self._ended]

    def flush(self, *, force: bool = False) -> None:
        """Write live metrics that wait, if it is time to."""
        started = time.monotonic()
        if not self._pending or (started < self._next_flush and not force):
            return
        for uid in list(self._pending):
            self._write_epochs(uid, self._pending.pop(uid))
        spent = time.monotonic() - started
        self._next_flush = started + max(1.0, spent / SHARE_OF_TIME)

    def finish(self, run: RunEntry) -> None:
        """Write what is missing of a run whose final state exists, and end it."""
        record = checkpoint.read_record(self._checkpoints, run.uid)
        if run.uid in self._ended or record is None or record.test is None:
            return
        run_id = self._begin(run)
        self._pending.pop(run.uid, None)
        epochs = {line["epoch"]: _metrics(line) for line in record.history}
        final = {**record.test, "train_seconds": sum(line.get("seconds", 0.0) for line in record.history)}
        tags = {"stagetree.weights_sha256": record.weights_sha256}
        self._write_epochs(run.uid, epochs, final=final, tags=tags)
        with _artifacts(run, record, self._checkpoints) as folder:
            self._client.log_artifacts(run_id, folder)
        self._client.set_terminated(run_id, "FINISHED")
        self._ended.add(run.uid)

    def fail(self, run: RunEntry, reason: str, trace: str) -> None:
        """End a run as failed and say why."""
        run_id = self._begin(run)
        self._write_epochs(run.uid, self._pending.pop(run.uid, {}), tags={"stagetree.reason": reason[:LONGEST_TAG]})
        if trace:
            self._client.log_text(run_id, trace, "traceback.txt")
        self._client.set_terminated(run_id, "FAILED")
        self._ended.add(run.uid)

    def close(self) -> None:
        """Write all that is missing and end the sweep's parent run."""
        self.flush(force=True)
        for run in self.runs.values():
            self.finish(run)
        for uid, run_id in self._ids.items():
            if uid not in self._ended:
                self._client.set_terminated(run_id, "KILLED")
        complete = self._ended >= self.runs.keys()
        self._client.set_terminated(self._parent, "FINISHED" if complete else "FAILED")

    # ------------------------------------------------------------ MLflow

    def _find_parent(self, command: str) -> str:
        query = f"tags.`stagetree.kind` = 'sweep' AND tags.`stagetree.sweep` = '{self._sweep_id}'"
        found = self._client.search_runs([self._experiment], query, max_results=1)
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        tags = self._tags | {
            "stagetree.kind": "sweep",
            "stagetree.sweep": self._sweep_id,
            "mlflow.note.content": f"`{command[:LONGEST_TAG]}`",
        }
        name = f"sweep of {len(self.runs)} runs {self._sweep_id}" if len(self.runs) > 1 else f"train {self._sweep_id}"
        return self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id

    def _find_runs(self, uri: str, experiment: str) -> None:
        """Take over what the experiment holds of these runs already: one MLflow run for each configuration."""
        from stagetree.store import load  # pandas

        for row in load(uri, experiment).itertuples():
            if row.uid in self.runs and row.status == "finished":
                self._ended.add(row.uid)
            elif row.uid in self.runs:
                self._resume(row.uid, row.run_id)

    def _resume(self, uid: str, run_id: str) -> None:
        """Go on with a run that an earlier process began, without doubling what it wrote."""
        history = self._client.get_metric_history(run_id, "lr")
        self._ids[uid] = run_id
        self._logged[uid] = max((metric.step for metric in history), default=-1)
        self._client.update_run(run_id, status="RUNNING")

    def _begin(self, run: RunEntry) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        if run.uid in self._ids:
            return self._ids[run.uid]
        tags = self._tags | {
            "stagetree.kind": "run",
            "stagetree.uid": run.uid,
            "stagetree.sweep": self._sweep_id,
            "stagetree.shared_epochs": str(run.shared_epochs),
            "mlflow.parentRunId": self._parent,
        }
        run_id = self._client.create_run(self._experiment, run_name=run.name, tags=tags).info.run_id
        self._ids[run.uid] = run_id
        self._logged[run.uid] = -1
        params = [Param(key, str(value)) for key, value in run.params.items()]
        for first in range(0, len(params), 100):  # MLflow takes no more at once
            self._client.log_batch(run_id, params=params[first : first + 100])
        inputs = [
            DatasetInput(
                Dataset(
                    run.dataset["name"], run.dataset["digest"][:32], "stagetree",
                    json.dumps({"digest": run.dataset["digest"]}), profile=json.dumps(dict(run.dataset)),
                ),
                [InputTag("mlflow.data.context", "training")],
            )
        ]  # fmt: skip
        self._client.log_inputs(run_id, inputs)
        return run_id

    def _write_epochs(
        self, uid: str, epochs: Mapping[int, Mapping[str, float]], *,
        final: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Write those epochs that are not written yet, final figures and tags: one call for each 1,000 metrics."""
        from mlflow.entities import Metric, RunTag

        run_id = self._begin(self.runs[uid])
        now, last = int(time.time() * 1000), self._logged[uid]
        metrics = [
            Metric(name, value, now, epoch)
            for epoch, values in sorted(epochs.items()) if epoch > last
            for name, value in values.items()
        ]  # fmt: skip
        reached = max([last, *epochs])
        metrics += [Metric(name, value, now, reached) for name, value in (final or {}).items()]
        run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        for first in range(0, max(len(metrics), 1), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000], tags=run_tags)
        self._logged[uid] = reached


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("kind", "uid", "epoch", "seconds")}


def _client(uri: str):
    """Connect. A new SQLite database gets its schema under a lock, as making it takes none and races."""
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri)
    from filelock import FileLock

    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _experiment(client, name: str, uri: str, artifacts: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            location = artifacts.resolve().as_uri() if uri.startswith("sqlite:") else None
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another sweep was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _environment_tags() -> dict[str, str]:
    tags = {f"version.{name}": metadata.version(name) for name in ("stagetree", "torch", "mlflow", "hydra-core")}
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if git.returncode == 0:
        tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags


@contextlib.contextmanager
def _artifacts(run: RunEntry, record: Record, checkpoints: Path) -> Iterator[str]:
    """Lay out a run's artifacts in a temporary folder: weights, configuration, curves."""
    with tempfile.TemporaryDirectory(dir=checkpoints) as folder:
        weights = checkpoints / f"{run.uid}.safetensors"
        os.link(weights, Path(folder) / "weights.safetensors")
        (Path(folder) / "config.yaml").write_text(run.config)
        (Path(folder) / "curves.png").write_bytes(draw_curves(run.name, record.history, run.params["epochs"]))
        yield folder


def draw_curves(title: str, history: Sequence[Mapping[str, float]], epochs: Sequence[int]) -> bytes:
    """Draw loss and accuracy over epochs, a line at each stage's end: PNG.

    Args:
        title: above the plot.
        history: a line an epoch; epoch 0 is before training.
        epochs: of each stage.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        for part in ("train", "val", "test"):
            points = [(line["epoch"], line[f"{part}/{kind}"]) for line in history if f"{part}/{kind}" in line]
            if points and all(math.isfinite(y) for _, y in points):
                axes.plot(*zip(*points, strict=True), marker=".", label=part)
        for end in [sum(epochs[: i + 1]) for i in range(len(epochs) - 1)]:
            axes.axvline(end, color="gray", linestyle=":", linewidth=1)
        axes.set(xlabel="epoch", ylabel="accuracy" if kind == "acc" else kind)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
