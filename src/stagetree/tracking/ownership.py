"""Locks on runs and sweeps in MLflow, and the end of those that dead processes left RUNNING.

A run that is RUNNING there without such a lock was left by a dead process.
"""

import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stagetree.storage.locks import output_dir_locks
from stagetree.tracking.connection import REPLACES, TrackingStore, end_killed, pages

if TYPE_CHECKING:
    from mlflow import MlflowClient

Kind = Literal["run", "sweep"]
NAME_TAGS = {"run": "stagetree.uid", "sweep": "stagetree.sweep"}
"""The tag that names a run or a sweep."""


class Ownership:
    """The locks of this process on runs and sweeps of a store."""

    def __init__(self, store: TrackingStore):
        self._store = store
        self._locks = output_dir_locks(store.output_dir)
        self.writer = f"{socket.gethostname()} {store.output_dir}"
        """The tag of all that this process writes; it says where the lock is."""

    def take(self, kind: Kind, name: str) -> bool:
        """Become the writer of a run or a sweep, unless another process is."""
        return self._locks.take(self._lock_name(kind, name))

    def release(self, kind: Kind, name: str) -> None:
        """Let another process write a run or a sweep."""
        self._locks.release(self._lock_name(kind, name))

    def end_dead(self, client: "MlflowClient", experiment_id: str) -> dict[str, Mapping[str, str]]:
        """End the runs that are RUNNING though their writer is dead; return the other RUNNING runs' tags by id."""
        found = pages(partial(client.search_runs, [experiment_id], "attributes.status = 'RUNNING'"))
        running = {run.info.run_id: run.data.tags for run in found}
        return {run_id: tags for run_id, tags in running.items() if not self._end_if_dead(client, run_id, tags)}

    def _end_if_dead(self, client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> bool:
        host, _, folder = tags.get("stagetree.writer", "").partition(" ")
        if host != socket.gethostname():
            return False  # not ours, or on a machine that cannot be asked
        if not Path(folder).is_dir():
            end_killed(client, run_id, replaces=REPLACES in tags)
            return True
        kind = tags["stagetree.kind"]
        locks, lock = output_dir_locks(Path(folder)), self._lock_name(kind, tags[NAME_TAGS[kind]])
        if locks.holds(lock) or not locks.take(lock):
            return False
        # A writer ends its run before it releases the lock: a run that is RUNNING now has none.
        if client.get_run(run_id).info.status == "RUNNING":
            end_killed(client, run_id, replaces=REPLACES in tags)
        locks.release(lock)
        return True

    def _lock_name(self, kind: str, name: str) -> str:
        return f"{kind} {name} in {self._store.experiment} at {self._store.uri}"
