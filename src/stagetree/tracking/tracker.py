"""Events -> MLflow, live: the runs of one sweep and their parent run. Only the launching process writes there.

Each run and sweep has one writer at a time, who holds a claim on it: what is RUNNING in MLflow and claimed by nobody
was left by a dead process.
"""

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.errors import InputError
from stagetree.planning.descriptions import RunEntry
from stagetree.storage import checkpoints
from stagetree.storage.events import EpochEnded, Event, Failed, StateReached
from stagetree.storage.locks import store_claims
from stagetree.tracking.audit import Differences, examine
from stagetree.tracking.connection import (
    connect,
    cut,
    default_artifacts,
    experiment_id,
    find_sweep,
    in_pieces,
    is_server,
    pages,
)
from stagetree.tracking.run_writer import Destination, RunWriter
from stagetree.tracking.threads import Threads

if TYPE_CHECKING:
    from stagetree.tracking.store import Metrics, Recorded

OTHERS_S = 30.0
"""How long a sweep waits at its end for another one to record what both contain."""

SHARE_OF_TIME = 0.03
"""Most of its time that a thread may spend on live metrics: they wait longer where the store is slow."""


class Tracker:
    """Writes one sweep's runs to MLflow.

    What is written waits for nobody: `backlog` counts what is on its way, and an error is raised by a later call.

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
        at_once: runs written at a time to a server. A database is quicker with one: there, what takes the time is our
            own work.
        thorough: look at params and the content of artifacts too, of what is finished.
    """

    def __init__(
        self, *, uri: str, experiment: str, output_dir: Path, sweep_id: str, launch: str, command: str,
        runs: Sequence[RunEntry], begun: dict[str, str], since: float = 0.0, artifacts: str | None = None,
        at_once: int = 1, thorough: bool = False,
    ):  # fmt: skip
        self._uri, self._experiment_name, self._sweep_id = uri, experiment, sweep_id
        self._client = connect(uri)
        self._experiment = experiment_id(self._client, experiment, artifacts or default_artifacts(uri, output_dir))
        self._params = {run.uid: run.params for run in runs} if thorough else None
        self._writer = f"{socket.gethostname()} {output_dir.resolve()}"
        self._tags = _environment_tags() | {
            "stagetree.writer": self._writer, "stagetree.launch": launch, "stagetree.sweep": sweep_id,
        }  # fmt: skip
        # Claimed before the store is read: what is seen of these runs then is all there is.
        self._claims = store_claims(output_dir)
        self._theirs = {run.uid for run in runs if not self._claims.take(self._claim("run", run.uid))}
        running = self._end_what_died()
        self._parent = self._find_parent(command, len(runs))
        tags = self._tags | {"mlflow.parentRunId": self._parent}
        states = checkpoints.folder_of(output_dir)
        self._to = Destination(self._client, self._experiment, tags, states, begun, since)
        self._runs = {run.uid: RunWriter(run, self._to) for run in runs}
        self._below: dict[str, list[RunWriter]] = {}
        for writer in self._runs.values():
            for uid in writer.entry.path:
                self._below.setdefault(uid, []).append(writer)
        self._verified: set[str] = set()
        self._threads = Threads(at_once if is_server(uri) else 1)
        self._calls: list[Future] = []
        self._live: list[Future[float]] = []
        self._live_began = 0.0
        self._take_over(self._runs.keys() - self._theirs, running)

    @property
    def backlog(self) -> int:
        """Writes that are on their way."""
        return len(self._calls)

    def on_event(self, event: Event) -> None:
        """Take one event of the sweep's logs; what it leads to is written later."""
        match event:
            case EpochEnded(uid, line):
                for run in self._open(uid):
                    run.add(event.epoch, line)
            case StateReached(uid):
                self._verified.discard(uid)  # its state was damaged, or was reached once more
                if uid in self._runs and uid not in self._theirs:
                    self._finish_soon(self._runs[uid])
            case Failed(uid, reason, traceback, alone):
                for run in self._open(uid):
                    if not alone or run.entry.uid == uid:
                        self._soon(lambda run=run: self._ending(run, lambda: run.fail(reason, traceback)))

    def _open(self, node_uid: str) -> list[RunWriter]:
        below = self._below.get(node_uid, [])
        return [run for run in below if not run.ended and run.entry.uid not in self._theirs]

    def flush(self) -> None:
        """Write live metrics that wait, if it is time to.

        Raises:
            Exception: what an earlier write raised, of many kinds: MLflow's, the database's, the network's.
        """
        self._raise_errors()
        if all(call.done() for call in self._live):
            spent = sum(call.result() for call in self._live)
            if time.monotonic() >= self._live_began + max(1.0, spent / SHARE_OF_TIME):
                self._write_live()

    def _write_live(self) -> None:
        self._live_began = time.monotonic()
        self._live = [self._soon(lambda run=run: _timed(run.flush)) for run in self._runs.values() if run.waits]

    def settle(self) -> None:
        """Write all that waits, and wait for it.

        Raises:
            Exception: as `flush`.
        """
        self._write_live()
        wait(self._calls)
        self._raise_errors()

    def catch_up(self) -> None:
        """Begin to write all that is missing, as checkpoints say."""
        for run in self._runs.values():
            if run.entry.uid not in self._theirs:
                self._finish_soon(run)

    def close(self) -> None:
        """Write all that is missing and end the sweep's parent run.

        Raises:
            Exception: as `flush`.
        """
        self.catch_up()
        self.settle()
        self._wait_for_others()
        self._verify()
        complete = all(run.ended for run in self._runs.values())
        self.leave(math.inf, "FINISHED" if complete else "FAILED")

    def leave(self, until: float, status: str = "KILLED") -> None:
        """End what is left in MLflow as far as time allows; the next start ends the rest.

        Args:
            until: on the clock of `time.monotonic`.
            status: of the parent run.
        """
        self._threads.cancel()
        self._threads.close()
        if self._claims.take(self._claim("sweep", self._sweep_id)):
            self._client.set_terminated(self._parent, status)
            self._claims.release(self._claim("sweep", self._sweep_id))
        for uid, run in self._runs.items():
            if time.monotonic() > until:
                return
            run.kill(until - time.monotonic())
            if uid not in self._theirs:
                self._claims.release(self._claim("run", uid))

    def abandon(self) -> None:
        """Write nothing more, once what is under way has come to its end."""
        self._threads.cancel()
        self._threads.close()
        wait(self._calls)

    # ------------------------------------------------------------ in threads

    def _soon(self, write: Callable[[], Any]) -> Future:
        self._calls.append(self._threads.submit(write))
        return self._calls[-1]

    def _finish_soon(self, run: RunWriter) -> None:
        if not run.is_right:
            self._soon(lambda: self._ending(run, run.finish))

    def _ending(self, run: RunWriter, end: Callable[[], None]) -> None:
        end()
        if run.ended:
            self._claims.release(self._claim("run", run.entry.uid))

    def _raise_errors(self) -> None:
        calls, self._calls = self._calls, []
        over = []
        for call in calls:
            (over if call.done() else self._calls).append(call)
        for call in over:
            call.result()

    def _wait_for_others(self) -> None:
        """Let other sweeps record what they share with this one; what they cannot is recorded here."""
        deadline = time.monotonic() + OTHERS_S
        while self._theirs and time.monotonic() < deadline:
            free = {uid for uid in self._theirs if self._claims.take(self._claim("run", uid))}
            if free:
                self._theirs -= free
                self._take_over(free, self._end_what_died())
                for uid in free:
                    self._ending(self._runs[uid], self._runs[uid].finish)
            else:
                time.sleep(0.2)

    # ------------------------------------------------------------ MLflow

    def _claim(self, kind: str, name: str) -> str:
        return f"{kind} {name} in {self._experiment_name} at {self._uri}"

    def _end_what_died(self) -> dict[str, Mapping[str, str]]:
        """End all that is RUNNING in the experiment and whose writer is dead; return the rest: tags by run id."""
        found = pages(partial(self._client.search_runs, [self._experiment], "attributes.status = 'RUNNING'"))
        running = {run.info.run_id: run.data.tags for run in found}
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

    def _find_parent(self, command: str, n_runs: int) -> str:
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
            **in_pieces("stagetree.command", command),
            "mlflow.note.content": f"`{cut(command)}`",
        }
        name = f"sweep of {n_runs} runs {self._sweep_id}" if n_runs > 1 else f"train {self._sweep_id}"
        return self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id

    def _take_over(self, uids: Iterable[str], running: Mapping[str, Mapping[str, str]]) -> None:
        """Go on with what the experiment holds of these runs: one MLflow run for each configuration.

        Args:
            uids: of runs whose claim is held.
            running: tags of runs in MLflow that are RUNNING; another machine's are left to it.
        """
        from stagetree.tracking.store import load_metrics  # pandas

        chosen, found = set(uids), self._read()
        finished: dict[str, Recorded] = {}
        begun: dict[str, Recorded] = {}
        for run in sorted(found, key=lambda run: (run.status != "FINISHED", run.run_id)):
            uid = run.tags["stagetree.uid"]
            if uid not in chosen:
                continue
            earlier = self._to.since and run.run_id not in self._to.begun.values()
            if earlier and run.status == "FINISHED":
                self._runs[uid].older.append(run.run_id)
            elif uid in finished or (earlier and run.status in ("FAILED", "KILLED")):
                self._client.set_tag(run.run_id, "stagetree.superseded", "true")
            elif run.status == "FINISHED":
                finished[uid] = run
            elif running.get(run.run_id, {}).get("stagetree.writer", self._writer) == self._writer:
                begun[uid] = run
        metrics = load_metrics(self._uri, [run.run_id for run in begun.values()])
        for uid, run in begun.items():
            self._runs[uid].resume(run.run_id, metrics[run.run_id], run.status)
        for run, own, differences in self._examine(list(finished.values())):
            writer = self._runs[run.tags["stagetree.uid"]]
            if differences or not self._is_trained(writer):
                writer.resume(run.run_id, own, run.status, anew=bool(differences.wrong))
            else:
                writer.ended = writer.is_right = True
                self._verified.add(writer.entry.uid)
                self._claims.release(self._claim("run", writer.entry.uid))

    def _examine(self, runs: Sequence["Recorded"]) -> Iterator[tuple["Recorded", "Metrics", Differences]]:
        return examine(self._uri, runs, self._to.checkpoints, self._params)

    def _is_trained(self, run: RunWriter) -> bool:
        record = checkpoints.find(self._to.checkpoints, run.entry.uid)
        return record is not None and record.test is not None

    def _read(self) -> list["Recorded"]:
        """What the experiment holds of this sweep's runs, but for what was superseded."""
        from stagetree.tracking.store import read

        found = read(self._uri, self._experiment_name)
        return [run for run in found if run.tags.get("stagetree.uid") in self._runs]

    def _verify(self) -> None:
        """Look at what was recorded, and put right what is not.

        Raises:
            InputError: it cannot be put right.
        """
        for attempt in range(2):
            finished = [run for run in self._read() if run.status == "FINISHED"]
            mine = [run for run in finished if run.tags["stagetree.uid"] not in self._verified]
            wrong = [found for found in self._examine(mine) if found[2]]
            for run, own, differences in wrong:
                writer = self._runs[run.tags["stagetree.uid"]]
                if attempt:
                    raise InputError(f"run {writer.entry.name}: {differences} (stagetree verify says more)")
                if self._claims.take(self._claim("run", writer.entry.uid)):
                    writer.resume(run.run_id, own, run.status, anew=bool(differences.wrong))
                    self._ending(writer, writer.finish)
            if not wrong:
                return


def _timed(call: Callable[[], None]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _name(tags: Mapping[str, str]) -> str:
    return tags["stagetree.uid" if tags["stagetree.kind"] == "run" else "stagetree.sweep"]


def _environment_tags() -> dict[str, str]:
    tags = {f"version.{name}": metadata.version(name) for name in ("stagetree", "torch", "mlflow", "hydra-core")}
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags
