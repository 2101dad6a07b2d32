"""Record a sweep in MLflow while it trains, from its events. Only the launching process writes there."""

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from stagetree.errors import InputError
from stagetree.planning.descriptions import RunEntry
from stagetree.storage import checkpoints
from stagetree.storage.events import EpochEnded, Event, Failed, StateReached
from stagetree.tracking.audit import Differences, Params, examine
from stagetree.tracking.connection import TrackingStore, cut, find_sweep, in_pieces
from stagetree.tracking.ownership import Ownership
from stagetree.tracking.run_writer import Destination, RunWriter
from stagetree.tracking.threads import Threads

if TYPE_CHECKING:
    from stagetree.tracking.store import Metrics, Recorded

OTHERS_S = 30.0
"""Seconds that a sweep waits at its end for another one to record the runs that both contain."""

SHARE_OF_TIME = 0.03
"""Largest share of its time that a thread spends on live metrics, which wait longer if the store is slow."""


@dataclass(frozen=True)
class SweepRecord:
    """A launch of a sweep, as it is recorded."""

    sweep_id: str
    """The id in the parent run's tags; a relaunched sweep goes on with the same."""
    launch: str
    """Name of the launch's folder, which has its logs; no two launches have the same."""
    command: str
    """The command as typed."""
    runs: Sequence[RunEntry] = ()


@dataclass(eq=False)
class Tracker:
    """Writes one sweep's runs to MLflow; `open` makes one.

    Calls do not wait for writes: `backlog` counts those on their way, and a later call raises their errors.
    """

    sweep: SweepRecord
    destination: Destination
    parent: str
    """MLflow's id of the sweep's parent run."""
    ownership: Ownership
    """This process writes all runs but `others`."""
    others: set[str]
    """Uids of the runs that other processes write."""
    threads: Threads
    params: Params | None = None
    """If given, the params and artifacts of finished runs are checked too."""

    def __post_init__(self) -> None:
        self._writers = {run.uid: RunWriter(run, self.destination) for run in self.sweep.runs}
        self._writers_by_node: dict[str, list[RunWriter]] = {}
        for writer in self._writers.values():
            for uid in writer.entry.path:
                self._writers_by_node.setdefault(uid, []).append(writer)
        self._verified: set[str] = set()
        self._calls: list[Future] = []
        self._live: list[Future[float]] = []
        self._live_began = 0.0

    @classmethod
    def open(
        cls, store: TrackingStore, sweep: SweepRecord, *, since: float = 0.0, at_once: int = 1, thorough: bool = False
    ) -> "Tracker":
        """Connect, end the runs that dead processes left RUNNING, and go on with the sweep's runs in the experiment.

        Args:
            store: to write to.
            sweep: to record.
            since: states written before this do not count: their runs are recorded anew, and supersede the older ones
                once they are finished. A file's time in seconds.
            at_once: runs written at a time to a server. A database is quicker with one, since our own work takes most
                of the time there.
            thorough: whether params and artifacts of finished runs are checked too.

        Raises:
            InputError: the store's database cannot be used.
        """
        client = store.connect()
        experiment_id, ownership = store.experiment_id(client), Ownership(store)
        own = {
            "stagetree.writer": ownership.writer,
            "stagetree.launch": sweep.launch,
            "stagetree.sweep": sweep.sweep_id,
        }
        destination = Destination(store, client, experiment_id, _environment_tags() | own, since)
        # Locked before the store is read: nobody else adds to these runs from then on.
        others = {run.uid for run in sweep.runs if not ownership.take("run", run.uid)}
        running = ownership.end_dead(client, experiment_id)
        parent = _open_parent(sweep, destination, ownership)
        tracker = cls(
            sweep,
            replace(destination, tags=destination.tags | {"mlflow.parentRunId": parent}),
            parent,
            ownership,
            others,
            Threads(at_once if store.is_server else 1),
            {run.uid: run.params for run in sweep.runs} if thorough else None,
        )
        tracker._resume({run.uid for run in sweep.runs} - others, running)
        return tracker

    @property
    def backlog(self) -> int:
        """Number of writes on their way."""
        return len(self._calls)

    def on_event(self, event: Event) -> None:
        """Take one event of the sweep's logs, and write its consequences later."""
        match event:
            case EpochEnded(uid, line):
                for run in self._unended(uid):
                    run.add(event.epoch, line)
            case StateReached(uid):
                self._verified.discard(uid)  # its state was damaged, or was reached once more
                if uid in self._writers and uid not in self.others:
                    self._finish_soon(self._writers[uid])
            case Failed(uid, reason, traceback, alone):
                for run in self._unended(uid):
                    if not alone or run.entry.uid == uid:
                        self._soon(lambda run=run: self._end(run, lambda: run.fail(reason, traceback)))

    def _unended(self, node_uid: str) -> list[RunWriter]:
        """List the runs through a node that this process still has to end."""
        runs = self._writers_by_node.get(node_uid, [])
        return [run for run in runs if not run.ended and run.entry.uid not in self.others]

    def flush(self) -> None:
        """Write the live metrics that wait, if it is time to.

        Raises:
            Exception: an earlier write failed, with an error of MLflow, the database or the network.
        """
        self._raise_errors()
        if all(call.done() for call in self._live):
            spent = sum(call.result() for call in self._live)
            if time.monotonic() >= self._live_began + max(1.0, spent / SHARE_OF_TIME):
                self._write_live()

    def _write_live(self) -> None:
        self._live_began = time.monotonic()
        self._live = [self._soon(lambda run=run: _timed(run.flush)) for run in self._writers.values() if run.is_waiting]

    def settle(self) -> None:
        """Write all live metrics that wait, and wait for all writes.

        Raises:
            Exception: as `flush`.
        """
        self._write_live()
        wait(self._calls)
        self._raise_errors()

    def catch_up(self) -> None:
        """Begin to write all values that MLflow lacks, from the checkpoints."""
        for uid, run in self._writers.items():
            if uid not in self.others:
                self._finish_soon(run)

    def close(self) -> None:
        """Write all values that MLflow lacks, and end the sweep's parent run.

        Raises:
            Exception: as `flush`.
        """
        self.catch_up()
        self.settle()
        self._wait_for_others()
        self._verify()
        complete = all(run.ended for run in self._writers.values())
        self.stop(math.inf, "FINISHED" if complete else "FAILED")

    def stop(self, deadline: float, status: str = "KILLED") -> None:
        """End the runs left in MLflow as far as time allows; the next start ends the rest.

        Args:
            deadline: on the clock of `time.monotonic`.
            status: of the parent run.
        """
        self.threads.stop()
        if self.ownership.take("sweep", self.sweep.sweep_id):
            self.destination.client.set_terminated(self.parent, status)
            self.ownership.release("sweep", self.sweep.sweep_id)
        for uid, run in self._writers.items():
            if time.monotonic() > deadline:
                return
            run.kill(deadline - time.monotonic())
            if uid not in self.others:
                self.ownership.release("run", uid)

    def abandon(self) -> None:
        """Wait for the calls under way, and write nothing more."""
        self.threads.stop()
        wait(self._calls)

    # ------------------------------------------------------------ in threads

    def _soon(self, write: Callable[[], Any]) -> Future:
        self._calls.append(self.threads.submit(write))
        return self._calls[-1]

    def _finish_soon(self, run: RunWriter) -> None:
        if not run.is_complete:
            self._soon(lambda: self._end(run, run.finish))

    def _end(self, run: RunWriter, write: Callable[[], None]) -> None:
        """Write a run's end, and let other processes write it from then on."""
        write()
        if run.ended:
            self.ownership.release("run", run.entry.uid)

    def _raise_errors(self) -> None:
        done = dict.fromkeys(call for call in self._calls if call.done())
        self._calls = [call for call in self._calls if call not in done]
        for call in done:
            call.result()

    def _wait_for_others(self) -> None:
        """Let other sweeps record the runs that they share with this one, and record here those that they do not."""
        deadline = time.monotonic() + OTHERS_S
        while self.others and time.monotonic() < deadline:
            free = {uid for uid in self.others if self.ownership.take("run", uid)}
            if free:
                self.others -= free
                self._resume(free, self.ownership.end_dead(self.destination.client, self.destination.experiment_id))
                for uid in free:
                    self._end(self._writers[uid], self._writers[uid].finish)
            else:
                time.sleep(0.2)

    # ------------------------------------------------------------ what MLflow holds

    def _resume(self, uids: Collection[str], running: Mapping[str, Mapping[str, str]]) -> None:
        """Go on with these runs where the experiment has them, with one MLflow run for each configuration.

        Args:
            uids: of runs that this process owns.
            running: tags of the runs that are RUNNING in MLflow, by id; another machine's are left to it.
        """
        from stagetree.tracking.store import load_metrics  # pandas

        finished: dict[str, Recorded] = {}
        unfinished: dict[str, Recorded] = {}
        for run in sorted(self._read(), key=lambda run: (run.status != "FINISHED", run.run_id)):
            uid = run.tags["stagetree.uid"]
            if uid not in uids:
                continue
            is_older = self.destination.since and run.tags.get("stagetree.launch") != self.sweep.launch
            writer = running.get(run.run_id, {}).get("stagetree.writer", self.ownership.writer)
            if is_older and run.status == "FINISHED":
                self._writers[uid].supersedes.append(run.run_id)
            elif uid in finished or (is_older and run.status in ("FAILED", "KILLED")):
                self.destination.client.set_tag(run.run_id, "stagetree.superseded", "true")
            elif run.status == "FINISHED":
                finished[uid] = run
            elif writer == self.ownership.writer:
                unfinished[uid] = run
        metrics = load_metrics(self.destination.store.uri, [run.run_id for run in unfinished.values()])
        for uid, run in unfinished.items():
            self._writers[uid].resume(run.run_id, metrics[run.run_id], run.status)
        for run, recorded, differences in self._examine(list(finished.values())):
            uid = run.tags["stagetree.uid"]
            if differences or not self._is_trained(uid):
                self._writers[uid].resume(run.run_id, recorded, run.status, anew=bool(differences.wrong))
            else:
                self._writers[uid].ended = self._writers[uid].is_complete = True
                self._verified.add(uid)
                self.ownership.release("run", uid)

    def _examine(self, runs: Sequence["Recorded"]) -> Iterator[tuple["Recorded", "Metrics", Differences]]:
        return examine(self.destination.store, runs, self.params)

    def _is_trained(self, uid: str) -> bool:
        record = checkpoints.find(self.destination.store.checkpoints, uid)
        return record is not None and record.test is not None

    def _read(self) -> list["Recorded"]:
        """Read this sweep's runs in the experiment, but for superseded ones."""
        return [run for run in self.destination.store.read() if run.tags.get("stagetree.uid") in self._writers]

    def _verify(self) -> None:
        """Check the records of this sweep's runs, and correct them.

        Raises:
            InputError: a record cannot be corrected.
        """
        for attempt in range(2):
            finished = [run for run in self._read() if run.status == "FINISHED"]
            unverified = [run for run in finished if run.tags["stagetree.uid"] not in self._verified]
            wrong = [found for found in self._examine(unverified) if found[2]]
            for run, recorded, differences in wrong:
                writer = self._writers[run.tags["stagetree.uid"]]
                if attempt:
                    raise InputError(f"run {writer.entry.name}: {differences} (stagetree verify says more)")
                if self.ownership.take("run", writer.entry.uid):
                    writer.resume(run.run_id, recorded, run.status, anew=bool(differences.wrong))
                    self._end(writer, writer.finish)
            if not wrong:
                return


def _open_parent(sweep: SweepRecord, to: Destination, ownership: Ownership) -> str:
    """Find the sweep's parent run or make it, so that it is RUNNING, and return its id."""
    deadline = time.monotonic() + OTHERS_S
    while True:
        is_own = ownership.take("sweep", sweep.sweep_id)
        found = find_sweep(to.client, to.experiment_id, sweep.sweep_id)
        if found or is_own or time.monotonic() > deadline:
            break
        time.sleep(0.2)  # the same command runs twice, and the other process is about to make it
    if found:
        if is_own:
            to.client.update_run(found, status="RUNNING")
        return found
    tags = to.tags | {
        "stagetree.kind": "sweep",
        **in_pieces("stagetree.command", sweep.command),
        "mlflow.note.content": f"`{cut(sweep.command)}`",
    }
    n_runs = len(sweep.runs)
    name = f"sweep of {n_runs} runs {sweep.sweep_id}" if n_runs > 1 else f"train {sweep.sweep_id}"
    return to.client.create_run(to.experiment_id, run_name=name, tags=tags).info.run_id


def _timed(call: Callable[[], None]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _environment_tags() -> dict[str, str]:
    tags = {f"version.{name}": metadata.version(name) for name in ("stagetree", "torch", "mlflow", "hydra-core")}
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags
