"""Events -> MLflow, live. Only this and `publish` write there, and only the launching process runs them.

Metrics go out live, in batches. The truth is elsewhere: whatever could not be written, or was written before a crash,
is made good from the checkpoints by `Tracker.finish` when a run is done or found done.
"""

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from stagetree import checkpoint
from stagetree.checkpoint import Record
from stagetree.claims import store_claims
from stagetree.connect import connect, default_artifacts, experiment_id, find_sweep
from stagetree.curves import draw
from stagetree.describe import RunEntry

LONGEST_TAG = 5000  # characters; MLflow refuses 8,000

OTHERS_S = 30.0
"""How long a sweep waits at its end for another one to record what both contain."""

SHARE_OF_TIME = 0.03
"""Most of the launching process's time that live metrics may take: they wait longer where the store is slow."""


class Tracker:
    """Writes one sweep's runs to MLflow.

    Each run and sweep has one writer at a time, who holds a claim on it: what is RUNNING in MLflow and claimed by
    nobody was left by a dead process.

    Args:
        uri: a tracking URI.
        experiment: name; made if it does not exist.
        output_dir: of checkpoints and claims.
        sweep_id: names the parent run; a relaunched sweep goes on with the same.
        launch: name of the launch's folder, to find its logs.
        command: as typed.
        runs: of the sweep.
        begun: MLflow's id for each uid that this launch has begun; a tracker after an outage gets the same.
        since: states written before do not count: their runs are recorded anew, and supersede the older ones once they
            are finished. A file's time in seconds.
        artifacts: where those of a new experiment go; `None`: into `output_dir`, or where a server puts them.
    """

    def __init__(
        self, *, uri: str, experiment: str, output_dir: Path, sweep_id: str, launch: str, command: str,
        runs: Sequence[RunEntry], begun: dict[str, str], since: float = 0.0, artifacts: str | None = None,
    ):  # fmt: skip
        self.runs = {run.uid: run for run in runs}
        self._below: dict[str, list[RunEntry]] = {}
        for run in runs:
            for uid in run.path:
                self._below.setdefault(uid, []).append(run)
        self._uri, self._experiment_name = uri, experiment
        self._checkpoints = checkpoint.folder_of(output_dir)
        self._ids: dict[str, str] = {}
        self._begun = begun
        self._since = since
        self._older: dict[str, list[str]] = {}
        self._logged: dict[str, int] = {}  # last epoch written, by uid; -1: none
        self._final: set[str] = set()  # with their final figures written
        self._ended: set[str] = set()
        self._pending: dict[str, dict[int, Mapping[str, float]]] = {}
        self._next_flush = 0.0
        self._client = connect(uri)
        self._experiment = experiment_id(self._client, experiment, artifacts or default_artifacts(uri, output_dir))
        self._sweep_id = sweep_id
        self._writer = f"{socket.gethostname()} {output_dir.resolve()}"
        self._tags = _environment_tags() | {"stagetree.writer": self._writer, "stagetree.launch": launch}
        # Claimed before the store is read: what is seen of these runs then is all there is.
        self._claims = store_claims(output_dir)
        self._theirs = {uid for uid in self.runs if not self._claims.take(self._claim("run", uid))}
        running = self._end_what_died()
        self._parent = self._find_parent(command)
        self._take_over(self.runs.keys() - self._theirs, running)

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
        below = self._below.get(node_uid, [])
        return [run for run in below if run.uid not in self._ended and run.uid not in self._theirs]

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
        record = checkpoint.find(self._checkpoints, run.uid, since=self._since)
        done = record is not None and record.test is not None
        if not done or run.uid in self._ended or run.uid in self._theirs:
            return
        run_id = self._begin(run)
        self._pending.pop(run.uid, None)
        epochs = {line["epoch"]: _metrics(line) for line in record.history}
        final = {**record.test, "train_seconds": sum(line.get("seconds", 0.0) for line in record.history)}
        tags = {"stagetree.weights_sha256": record.weights_sha256}
        self._write_epochs(run.uid, epochs, final=final, tags=tags)
        with _artifacts(run, record, self._checkpoints) as folder:
            self._client.log_artifacts(run_id, folder)
        self._end(run.uid, "FINISHED")
        for older in self._older.pop(run.uid, []):
            self._client.set_tag(older, "stagetree.superseded", "true")

    def fail(self, run: RunEntry, reason: str, trace: str) -> None:
        """End a run as failed and say why."""
        run_id = self._begin(run)
        self._write_epochs(run.uid, self._pending.pop(run.uid, {}), tags={"stagetree.reason": reason[:LONGEST_TAG]})
        if trace:
            self._client.log_text(run_id, trace, "traceback.txt")
        self._end(run.uid, "FAILED")

    def _end(self, uid: str, status: str) -> None:
        self._client.set_terminated(self._ids[uid], status)
        self._ended.add(uid)
        self._claims.release(self._claim("run", uid))

    def close(self) -> None:
        """Write all that is missing and end the sweep's parent run."""
        self.flush(force=True)
        for run in self.runs.values():
            self.finish(run)
        self._wait_for_others()
        complete = self._ended >= self.runs.keys()
        self.leave(math.inf, "FINISHED" if complete else "FAILED")

    def leave(self, until: float, status: str = "KILLED") -> None:
        """End what is left in MLflow as far as time allows; the next start ends the rest.

        Args:
            until: on the clock of `time.monotonic`.
            status: of the parent run.
        """
        if self._claims.take(self._claim("sweep", self._sweep_id)):
            self._client.set_terminated(self._parent, status)
            self._claims.release(self._claim("sweep", self._sweep_id))
        for uid in self._ids.keys() - self._ended:
            if time.monotonic() > until:
                return
            self._client.set_terminated(self._ids[uid], "KILLED")
        for uid in self.runs.keys() - self._theirs:
            self._claims.release(self._claim("run", uid))

    def _wait_for_others(self) -> None:
        """Let other sweeps record what they share with this one; what they cannot is recorded here."""
        deadline = time.monotonic() + OTHERS_S
        while self._theirs and time.monotonic() < deadline:
            free = {uid for uid in self._theirs if self._claims.take(self._claim("run", uid))}
            if free:
                self._theirs -= free
                self._take_over(free, self._end_what_died())
                for uid in free:
                    self.finish(self.runs[uid])
            else:
                time.sleep(0.2)

    # ------------------------------------------------------------ MLflow

    def _claim(self, kind: str, name: str) -> str:
        return f"{kind} {name} in {self._experiment_name} at {self._uri}"

    def _end_what_died(self) -> dict[str, Mapping[str, str]]:
        """End all that is RUNNING in the experiment and whose writer is dead; return the rest: tags by run id."""
        running, token = {}, None
        while True:
            page = self._client.search_runs([self._experiment], "attributes.status = 'RUNNING'", page_token=token)
            running |= {run.info.run_id: run.data.tags for run in page}
            token = page.token
            if not token:
                break
        return {run_id: tags for run_id, tags in running.items() if not self._end_if_dead(run_id, tags)}

    def _end_if_dead(self, run_id: str, tags: Mapping[str, str]) -> bool:
        host, _, folder = tags.get("stagetree.writer", "").partition(" ")
        if host != socket.gethostname():
            return False  # not ours, or on a machine that cannot be asked
        if not Path(folder).is_dir():
            self._client.set_terminated(run_id, "KILLED")
            return True
        kind = tags["stagetree.kind"]
        claims, claim = store_claims(Path(folder)), self._claim(kind, _name(tags))
        if claims.holds(claim) or not claims.take(claim):
            return False
        # A writer ends its run before it gives the claim back: what is RUNNING now has none.
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, "KILLED")
        claims.release(claim)
        return True

    def _find_parent(self, command: str) -> str:
        deadline = time.monotonic() + OTHERS_S
        while True:
            mine = self._claims.take(self._claim("sweep", self._sweep_id))
            found = find_sweep(self._client, self._experiment, self._sweep_id)
            if found or mine or time.monotonic() > deadline:
                break
            time.sleep(0.2)  # the same command runs twice, and the other process is about to make it
        if found:
            if mine:
                self._client.update_run(found, status="RUNNING")
            return found
        tags = self._tags | {
            "stagetree.kind": "sweep",
            "stagetree.sweep": self._sweep_id,
            "mlflow.note.content": f"`{command[:LONGEST_TAG]}`",
        }
        name = f"sweep of {len(self.runs)} runs {self._sweep_id}" if len(self.runs) > 1 else f"train {self._sweep_id}"
        return self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id

    def _take_over(self, uids: Iterable[str], running: Mapping[str, Mapping[str, str]]) -> None:
        """Go on with what the experiment holds of these runs: one MLflow run for each configuration.

        Args:
            uids: of runs whose claim is held.
            running: tags of runs in MLflow that are RUNNING; another machine's are left to it.
        """
        from stagetree.store import load  # pandas

        frame = load(self._uri, self._experiment_name)
        frame = frame[frame["uid"].isin(set(uids))].sort_values("status", key=lambda column: column != "finished")
        for row in frame.itertuples():
            writer = running.get(row.run_id, {}).get("stagetree.writer", self._writer)
            if self._since and row.run_id not in self._begun.values():
                self._older.setdefault(row.uid, []).append(row.run_id)
            elif row.status == "finished":
                self._ended.add(row.uid)
            elif row.uid in self._ended:
                self._client.set_tag(row.run_id, "stagetree.superseded", "true")
            elif writer == self._writer:
                self._resume(row.uid, row.run_id)
        for uid in self._ended:
            self._claims.release(self._claim("run", uid))

    def _resume(self, uid: str, run_id: str) -> None:
        """Go on with a run that an earlier process began, without doubling what it wrote."""
        steps = [
            metric.step
            for name in ("lr", "val/loss", "test/loss")  # epoch 0 has no learning rate
            for metric in self._client.get_metric_history(run_id, name)
        ]
        self._ids[uid] = run_id
        self._logged[uid] = max(steps, default=-1)
        if self._client.get_metric_history(run_id, "train_seconds"):
            self._final.add(uid)
        self._client.update_run(run_id, status="RUNNING")
        self._describe(self.runs[uid], run_id)  # the earlier process may have died before it did

    def _begin(self, run: RunEntry) -> str:
        if run.uid in self._ids:
            return self._ids[run.uid]
        tags = self._tags | {
            "stagetree.kind": "run",
            "stagetree.uid": run.uid,
            "stagetree.sweep": self._sweep_id,
            "stagetree.shared_epochs": str(run.shared_epochs),
            "stagetree.command": run.command[:LONGEST_TAG],
            "mlflow.note.content": f"`{run.command[:LONGEST_TAG]}` trains this run alone.",
            "mlflow.parentRunId": self._parent,
        }
        run_id = self._client.create_run(self._experiment, run_name=run.name, tags=tags).info.run_id
        self._ids[run.uid] = self._begun[run.uid] = run_id
        self._logged[run.uid] = -1
        self._describe(run, run_id)
        return run_id

    def _describe(self, run: RunEntry, run_id: str) -> None:
        """Write params and the data set's digest; writing them again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

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

    def _write_epochs(
        self, uid: str, epochs: Mapping[int, Mapping[str, float]], *,
        final: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Write those epochs that are not written yet, final figures and tags.

        A call takes 1,000 metrics at most and writes all of them or none. An epoch is never divided between two, so
        that one whose learning rate is there is there as a whole.
        """
        from mlflow.entities import Metric, RunTag

        run_id = self._begin(self.runs[uid])
        now, last = int(time.time() * 1000), self._logged[uid]
        reached = max([last, *epochs])
        lines = [
            [Metric(name, value, now, epoch) for name, value in values.items()]
            for epoch, values in sorted(epochs.items()) if epoch > last
        ]  # fmt: skip
        if final and uid not in self._final:
            # with trainer.test_every_epoch the last epoch's line has them already
            there = epochs.get(reached, {})
            lines.append([Metric(name, value, now, reached) for name, value in final.items() if name not in there])
        batches: list[list[Metric]] = [[]]
        for line in lines:
            if len(batches[-1]) + len(line) > 1000:
                batches.append([])
            batches[-1] += line
        run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        for metrics in batches:
            self._client.log_batch(run_id, metrics=metrics, tags=run_tags)
        self._logged[uid] = reached
        if final:
            self._final.add(uid)


def _name(tags: Mapping[str, str]) -> str:
    return tags["stagetree.uid" if tags["stagetree.kind"] == "run" else "stagetree.sweep"]


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("kind", "uid", "epoch", "seconds")}


def _environment_tags() -> dict[str, str]:
    tags = {f"version.{name}": metadata.version(name) for name in ("stagetree", "torch", "mlflow", "hydra-core")}
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags


@contextlib.contextmanager
def _artifacts(run: RunEntry, record: Record, checkpoints: Path) -> Iterator[str]:
    """Lay out a run's artifacts in a temporary folder: weights, configuration, curves."""
    with tempfile.TemporaryDirectory(dir=checkpoints, prefix=".artifacts-") as folder:
        weights = checkpoints / f"{run.uid}.safetensors"
        try:
            os.link(weights, Path(folder) / "weights.safetensors")
        except OSError:  # not every shared folder has links
            shutil.copy(weights, Path(folder) / "weights.safetensors")
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(run.config, sort_keys=False))
        (Path(folder) / "curves.svg").write_text(draw(run.name, record.history, run.params["epochs"]), encoding="utf-8")
        yield folder
