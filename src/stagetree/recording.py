"""One run in MLflow, from its beginning to its end.

Metrics go out live, in batches. The truth is elsewhere: whatever could not be written, or was written before a crash,
is made good from the checkpoints by `RunWriter.finish` when a run is done or found done.
"""

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stagetree import checkpoint
from stagetree.checkpoint import Record
from stagetree.connect import LONGEST_TAG, MOST_METRICS, MOST_PARAMS, cut, in_pieces
from stagetree.curves import draw
from stagetree.describe import RunEntry
from stagetree.notation import WRITTEN_OUT
from stagetree.tree import canonical_json

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Destination:
    """Where the runs of a sweep are written."""

    client: "MlflowClient"
    experiment: str
    """Its id."""
    tags: Mapping[str, str]
    """Of each run."""
    checkpoints: Path
    begun: dict[str, str]
    """MLflow's id for each uid that this launch has begun."""
    since: float
    """States written before do not count; a file's time in seconds."""


class RunWriter:
    """Writes one run. Several threads may call it; what was written already is not written again."""

    def __init__(self, entry: RunEntry, destination: Destination):
        self.entry = entry
        self.run_id: str | None = None
        self.ended = False
        self.older: list[str] = []
        """Runs in MLflow that this one supersedes once it is finished."""
        self._to, self._client = destination, destination.client
        self._waiting: deque[tuple[int, Mapping[str, float]]] = deque()  # filled by one thread, emptied by another
        self._logged = -1
        """Last epoch written."""
        self._has_final = False
        self._lock = threading.Lock()

    def add(self, epoch: int, line: Mapping[str, Any]) -> None:
        """Take an epoch's metrics, which `flush` writes."""
        self._waiting.append((epoch, _metrics(line)))

    @property
    def waits(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._waiting)

    def flush(self) -> None:
        """Write the epochs that wait."""
        with self._lock:
            epochs = self._take_waiting()
            if epochs and not self.ended:
                self._write(epochs)

    def finish(self) -> None:
        """Write what is missing of a run whose final state exists, and end it; of another, write nothing."""
        with self._lock:
            record = checkpoint.find(self._to.checkpoints, self.entry.uid, since=self._to.since)
            if self.ended or record is None or record.test is None:
                return
            self._waiting.clear()
            epochs = {line["epoch"]: _metrics(line) for line in record.history}
            final = {**record.test, "train_seconds": sum(line.get("seconds", 0.0) for line in record.history)}
            self._write(epochs, final=final, tags={"stagetree.weights_sha256": record.weights_sha256})
            with _artifacts(self.entry, record, self._to.checkpoints) as folder:
                self._client.log_artifacts(self.run_id, folder)
            self._end("FINISHED")
            while self.older:
                self._client.set_tag(self.older.pop(), "stagetree.superseded", "true")

    def fail(self, reason: str, trace: str) -> None:
        """End a run as failed and say why."""
        with self._lock:
            if self.ended:
                return
            self._write(self._take_waiting(), tags={"stagetree.reason": reason[:LONGEST_TAG]})
            if trace:
                self._client.log_text(self.run_id, trace, "traceback.txt")
            self._end("FAILED")

    def kill(self, timeout: float) -> None:
        """End a run that was begun and will not be gone on with, unless a thread is at work on it for so long."""
        if self._lock.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX))):
            try:
                if self.run_id and not self.ended:
                    self._client.set_terminated(self.run_id, "KILLED")
            finally:
                self._lock.release()

    def resume(self, run_id: str) -> None:
        """Go on with a run that an earlier process began, without doubling what it wrote."""
        steps = [
            metric.step
            for name in ("lr", "val/loss", "test/loss")  # epoch 0 has no learning rate
            for metric in self._client.get_metric_history(run_id, name)
        ]
        self.run_id = run_id
        self._logged = max(steps, default=-1)
        self._has_final = bool(self._client.get_metric_history(run_id, "train_seconds"))
        self._client.update_run(run_id, status="RUNNING")
        self._describe()  # the earlier process may have died before it did

    # ------------------------------------------------------------ with the lock held

    def _take_waiting(self) -> dict[int, Mapping[str, float]]:
        return dict(self._waiting.popleft() for _ in range(len(self._waiting)))

    def _begin(self) -> None:
        if self.run_id is not None:
            return
        entry = self.entry
        tags = {
            **self._to.tags,
            "stagetree.kind": "run",
            "stagetree.uid": entry.uid,
            "stagetree.shared_epochs": str(entry.shared_epochs),
            **in_pieces("stagetree.command", entry.command),
            "mlflow.note.content": f"`{cut(entry.command)}` trains this run alone.",
        }
        if len(entry.stages) > WRITTEN_OUT:  # the params hold it in brief
            pairs = [[stage.epochs, stage.lr] for stage in entry.stages]
            tags |= in_pieces("stagetree.stages", canonical_json(pairs))
        self.run_id = self._client.create_run(self._to.experiment, run_name=entry.name, tags=tags).info.run_id
        self._to.begun[entry.uid] = self.run_id
        self._describe()

    def _describe(self) -> None:
        """Write params and the data set's digest; writing them again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param
        from mlflow.exceptions import MlflowException

        entry = self.entry
        params = [Param(key, str(value)) for key, value in entry.params.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[first : first + MOST_PARAMS])
        inputs = [
            DatasetInput(
                Dataset(
                    entry.dataset["name"], entry.dataset["digest"][:32], "stagetree",
                    json.dumps({"digest": entry.dataset["digest"]}), profile=json.dumps(dict(entry.dataset)),
                ),
                [InputTag("mlflow.data.context", "training")],
            )
        ]  # fmt: skip
        try:
            self._client.log_inputs(self.run_id, inputs)
        except MlflowException:  # two were the first to tell of this data set, and MLflow made an entry for one of them
            self._client.log_inputs(self.run_id, inputs)

    def _write(
        self, epochs: Mapping[int, Mapping[str, float]], *, final: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Write those epochs that are not written yet, final figures and tags.

        A call takes 1,000 metrics at most and writes all of them or none. An epoch is never divided between two, so
        that one whose learning rate is there is there as a whole.
        """
        from mlflow.entities import Metric, RunTag

        self._begin()
        now, last = int(time.time() * 1000), self._logged
        reached = max([last, *epochs])
        lines = [
            [Metric(name, value, now, epoch) for name, value in values.items()]
            for epoch, values in sorted(epochs.items()) if epoch > last
        ]  # fmt: skip
        if final and not self._has_final:
            # with trainer.test_every_epoch the last epoch's line has them already
            there = epochs.get(reached, {})
            lines.append([Metric(name, value, now, reached) for name, value in final.items() if name not in there])
        batches: list[list[Metric]] = [[]]
        for line in lines:
            if len(batches[-1]) + len(line) > MOST_METRICS:
                batches.append([])
            batches[-1] += line
        run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        for metrics in batches:
            self._client.log_batch(self.run_id, metrics=metrics, tags=run_tags)
        self._logged = reached
        if final:
            self._has_final = True

    def _end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)
        self.ended = True


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("kind", "uid", "epoch", "seconds")}


@contextlib.contextmanager
def _artifacts(entry: RunEntry, record: Record, checkpoints: Path) -> Iterator[str]:
    """Lay out a run's artifacts in a temporary folder: weights, configuration, curves."""
    with tempfile.TemporaryDirectory(dir=checkpoints, prefix=".artifacts-") as folder:
        weights = checkpoints / f"{entry.uid}.safetensors"
        try:
            os.link(weights, Path(folder) / "weights.safetensors")
        except OSError:  # not every shared folder has links
            shutil.copy(weights, Path(folder) / "weights.safetensors")
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(entry.config, sort_keys=False))
        curves = draw(entry.name, record.history, [stage.epochs for stage in entry.stages])
        (Path(folder) / "curves.svg").write_text(curves, encoding="utf-8")
        yield folder
