"""Write one run to MLflow, from its beginning to its end.

Metrics go out live, in batches. When a run is done or found done, `RunWriter.finish` adds from the checkpoint whatever
is missing, and corrects what a crash left.
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

from stagetree.planning.descriptions import RunEntry
from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import Record
from stagetree.tracking.audit import Epochs, compare, expected, metrics_of
from stagetree.tracking.connection import (
    LONGEST_TAG,
    MOST_METRICS,
    MOST_PARAMS,
    REPLACES,
    TrackingStore,
    cut,
    end_killed,
    in_pieces,
)
from stagetree.tracking.curves import draw
from stagetree.tree.notation import WRITTEN_OUT
from stagetree.tree.runs import canonical_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from stagetree.tracking.store import Metrics


@dataclass(frozen=True)
class Destination:
    """The place in MLflow where the runs of a sweep are written."""

    store: TrackingStore
    client: "MlflowClient"
    experiment_id: str
    tags: dict[str, str]
    """The tags of each run."""
    since: float = 0.0
    """States written before this do not count; a file's time in seconds."""


class RunWriter:
    """Writes one run. Several threads may call it; nothing is written twice."""

    def __init__(self, entry: RunEntry, destination: Destination):
        self.entry = entry
        self._run_id: str | None = None
        self.ended = False
        """Whether MLflow has its final status."""
        self.is_complete = False
        """Whether MLflow is known to agree with its checkpoint."""
        self.supersedes: list[str] = []
        """Ids of the runs in MLflow that this one replaces once it is finished."""
        self._to, self._client = destination, destination.client
        self._waiting: deque[tuple[int, Mapping[str, float]]] = deque()  # filled by one thread, emptied by another
        self._recorded: dict[str, list[tuple[int, float]]] = {}
        """All its metrics that MLflow holds."""
        self._epochs: set[int] = set()
        """The epochs of which MLflow holds metrics."""
        self._begun = self._is_running = False
        """Whether this process wrote to it, and whether it is RUNNING in MLflow."""
        self._has_prefix = False
        """Whether the epochs trained before this launch are written."""
        self._lock = threading.Lock()

    @property
    def run_id(self) -> str:
        """MLflow's, once the run is begun."""
        assert self._run_id is not None
        return self._run_id

    def add(self, epoch: int, line: Mapping[str, Any]) -> None:
        """Take an epoch's metrics, which `flush` writes."""
        self._waiting.append((epoch, metrics_of(line)))

    @property
    def is_waiting(self) -> bool:
        """Whether epochs wait to be written."""
        return bool(self._waiting)

    def flush(self) -> None:
        """Write the epochs that wait."""
        with self._lock:
            epochs = self._take_waiting()
            if epochs and not self.ended:
                self._write_new(epochs)

    def finish(self) -> None:
        """Make MLflow agree with the checkpoint, if the final state exists; else write nothing.

        Missing values are added. MLflow takes nothing back: if a value is doubled or wrong, the run is recorded anew,
        and the old record is superseded.
        """
        with self._lock:
            if self.is_complete:
                return
            record = checkpoints.find(self._to.store.checkpoints, self.entry.uid, since=self._to.since)
            if record is None or record.test is None or checkpoints.damage(self._to.store.checkpoints, record):
                return  # a damaged state is no result: the same command trains it again
            self._waiting.clear()
            wanted = expected(record)
            found = compare(wanted, self._recorded)
            if found.wrong:
                self._start_anew()
                found = compare(wanted, {})
            tags = {"stagetree.weights_sha256": record.weights_sha256}
            if self.supersedes:
                tags["stagetree.supersedes"] = " ".join(self.supersedes)
            self._write(found.missing, tags=tags)
            with _artifacts(self.entry, record, self._to.store.checkpoints) as folder:
                self._client.log_artifacts(self.run_id, folder)
            if not self.ended:
                self._end("FINISHED")
            self.is_complete = True
            self._recorded.clear()
            while self.supersedes:
                self._client.set_tag(self.supersedes.pop(), "stagetree.superseded", "true")

    def fail(self, reason: str, trace: str) -> None:
        """End a run as failed and say why."""
        with self._lock:
            if self.ended:
                return
            self._write_new(self._take_waiting(), tags={"stagetree.reason": reason[:LONGEST_TAG]})
            if trace:
                self._client.log_text(self.run_id, trace, "traceback.txt")
            self._end("FAILED")

    def kill(self, timeout: float) -> None:
        """End a run that was begun and will not go on, unless a thread works on it for `timeout` seconds."""
        if self._lock.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX))):
            try:
                if self._is_running:
                    end_killed(self._client, self.run_id, replaces=bool(self.supersedes))
            finally:
                self._lock.release()

    def resume(self, run_id: str, recorded: "Metrics", status: str, *, anew: bool = False) -> None:
        """Go on with a run that an earlier process began, or correct one that it finished.

        Args:
            run_id: MLflow's.
            recorded: all its metrics that MLflow holds.
            status: MLflow's; a run that is not FINISHED becomes RUNNING with the next write.
            anew: whether MLflow holds wrong values, which it cannot take back, so that another run must supersede it.
        """
        self._run_id, self.ended, self.is_complete = run_id, status == "FINISHED", False
        self._is_running = status == "RUNNING"
        self._recorded = {name: list(points) for name, points in recorded.items()}
        self._epochs = {step for points in recorded.values() for step, _ in points}
        if anew:
            self._start_anew()

    # ------------------------------------------------------------ with the lock held

    def _take_waiting(self) -> dict[int, Mapping[str, float]]:
        return dict(self._waiting.popleft() for _ in range(len(self._waiting)))

    def _start_anew(self) -> None:
        """Give up the MLflow run, which the next one supersedes."""
        self.supersedes.append(self.run_id)
        self._run_id, self._recorded = None, {}
        self.ended = self._begun = self._is_running = False
        self._epochs.clear()

    def _begin(self) -> None:
        if self._begun:
            return
        if self._run_id is None:
            self._create()
        elif not self.ended:
            self._client.update_run(self.run_id, status="RUNNING")
        self._is_running = not self.ended
        self._describe()  # again: an earlier process may have died before it did
        self._begun = True

    def _create(self) -> None:
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
        if self.supersedes:
            tags[REPLACES] = " ".join(self.supersedes)
        self._run_id = self._client.create_run(self._to.experiment_id, run_name=entry.name, tags=tags).info.run_id

    def _describe(self) -> None:
        """Write params and the digests of trunk and data; writing them again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
        from mlflow.exceptions import MlflowException

        entry = self.entry
        params = [Param(key, str(value)) for key, value in entry.params.items()]
        trunk = in_pieces("stagetree.trunk_json", entry.trunk_json) if entry.trunk_json else {}
        tags = [RunTag("stagetree.trunk", entry.trunk), *(RunTag(*piece) for piece in trunk.items())]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[first : first + MOST_PARAMS], tags=tags)
        digest, profile = entry.dataset["digest"], json.dumps(dict(entry.dataset))
        source = json.dumps({"digest": digest})
        dataset = Dataset(entry.dataset["name"], digest[:32], "stagetree", source, profile=profile)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self._client.log_inputs(self.run_id, inputs)
        except MlflowException:  # two were the first to tell of this data set, and MLflow made an entry for one of them
            self._client.log_inputs(self.run_id, inputs)

    def _write_new(self, epochs: Mapping[int, Mapping[str, float]], tags: Mapping[str, str] | None = None) -> None:
        """Write epochs that MLflow holds nothing of, at first those that were trained before this launch too."""
        if not self._has_prefix:
            epochs = {**self._reached(), **epochs}
            self._has_prefix = True
        self._write({epoch: values for epoch, values in epochs.items() if epoch not in self._epochs}, tags)

    def _reached(self) -> dict[int, Mapping[str, float]]:
        """The epochs of the last state on its way that exists."""
        for uid in reversed(self.entry.path):
            record = checkpoints.find(self._to.store.checkpoints, uid, since=self._to.since)
            if record is not None:
                return {int(line["epoch"]): metrics_of(line) for line in record.history}
        return {}

    def _write(self, epochs: Epochs, tags: Mapping[str, str] | None = None) -> None:
        """Write metrics and tags. A call takes 1,000 metrics at most, and writes all of them or none."""
        from mlflow.entities import Metric, RunTag

        self._begin()
        now = int(time.time() * 1000)
        points = [(name, value, epoch) for epoch in sorted(epochs) for name, value in epochs[epoch].items()]
        metrics = [Metric(name, value, now, epoch) for name, value, epoch in points]
        run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        for first in range(0, max(len(metrics), 1), MOST_METRICS):
            some = metrics[first : first + MOST_METRICS]
            self._client.log_batch(self.run_id, metrics=some, tags=run_tags)
            for metric in some:
                self._recorded.setdefault(metric.key, []).append((metric.step, metric.value))
                self._epochs.add(metric.step)

    def _end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)
        self.ended, self._is_running = True, False


@contextlib.contextmanager
def _artifacts(entry: RunEntry, record: Record, states: Path) -> Iterator[str]:
    """Lay out a run's artifacts in a temporary folder: weights, configuration, curves."""
    with tempfile.TemporaryDirectory(dir=states, prefix=".artifacts-") as folder:
        weights = states / f"{entry.uid}.safetensors"
        try:
            os.link(weights, Path(folder) / "weights.safetensors")
        except OSError:  # not every shared folder has links
            shutil.copy(weights, Path(folder) / "weights.safetensors")
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(entry.config, sort_keys=False))
        curves = draw(entry.name, record.history, [stage.epochs for stage in entry.stages])
        (Path(folder) / "curves.svg").write_text(curves, encoding="utf-8")
        yield folder
