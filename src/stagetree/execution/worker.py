"""Train a unit in a worker: choose the next pack, and take over what other processes have trained.

The plan may be old by the time a worker has it: a state may have been reached by another sweep, by this unit before
its worker was killed, or be damaged. So each node is looked at again, under a lock, before it is trained.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from stagetree.errors import Stopped
from stagetree.execution.engine import Result
from stagetree.execution.shutdown import StopWatcher, hold_unit
from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventLog, EventReader
from stagetree.storage.events import (
    Failed,
    Note,
    StateDamaged,
    StateReached,
    Trouble,
    UnitBegan,
    UnitEnded,
    Waiting,
)
from stagetree.storage.locks import Locks, output_dir_locks
from stagetree.storage.unit_files import read_unit
from stagetree.training.devices import use_device
from stagetree.training.trainer import PackTrainer
from stagetree.tree.stage_tree import Node, path_to
from stagetree.tree.units import packs

WAIT_S = 0.2


def train_unit(folder: Path, unit_id: str) -> Result:
    """Train a unit that `write_unit` wrote.

    Raises:
        InputError: the unit's file is damaged, or this machine cannot see it.
        OSError: states or logs cannot be written, or data cannot be read.
    """
    folder = Path(folder)
    file = read_unit(folder, unit_id)
    settings = file.settings
    locks = output_dir_locks(Path(settings.output_dir))
    watch = StopWatcher(folder, locks, settings.launcher)
    log = EventLog(folder / "events", unit_id)
    with contextlib.closing(log), hold_unit(folder, unit_id, locks), watch.active():
        log.append(UnitBegan(unit_id, os.getpid(), socket.gethostname(), time.time()))
        before = (EventReader(folder / "events", lambda _: None, name=other).read() for other in file.after)
        failed = {event.uid: event.reason for event in chain(*before) if isinstance(event, Failed) and not event.alone}
        for device in {node.trunk.device for node in file.nodes}:
            use_device(device, settings.workers_per_device, watch.check, lambda why: log.append(Note(why)))
        trainer = PackTrainer(settings, log, watch.check)
        unit = _UnitTraining(file.nodes, failed, trainer, locks)
        try:
            unit.run()
        except Stopped as stopped:
            return Result(unit_id, unit.failed, stopped=str(stopped))
        except OSError as error:
            with contextlib.suppress(OSError):
                log.append(Trouble(_sentence(error)))
            raise
        log.append(UnitEnded(unit_id, time.time()))
    return Result(unit_id, unit.failed)


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


class _UnitTraining:
    """Trains a unit, and knows which of its nodes wait and which failed.

    Args:
        nodes: of the unit, parents first.
        failed: the reason for each state that other units failed to reach.
        trainer: of packs.
        locks: of the output folder.
    """

    def __init__(self, nodes: Sequence[Node], failed: Mapping[str, str], trainer: PackTrainer, locks: Locks):
        self.failed = dict(failed)
        self._pending = list(nodes)
        self._settings, self._log, self._check = trainer.settings, trainer.log, trainer.check
        self._trainer, self._locks = trainer, locks
        self._lost: set[str] = set()  # states that turned out to be missing or damaged when they were loaded
        self._losses: Counter[str] = Counter()
        self._trained: Counter[str] = Counter()
        self._told: set[str] = set()
        self._drop_orphans()

    def run(self) -> None:
        """Train nodes in packs as their starting states become available."""
        while self._pending:
            self._check()
            chosen = self._lock_pack() if self._settings.share else self._choose(self._ready())
            try:
                if chosen:
                    self._train(chosen)
                elif self._pending:
                    time.sleep(WAIT_S)
            finally:
                for node in chosen:
                    self._locks.release(node.uid)

    def _ready(self) -> list[Node]:
        waiting = {node.uid for node in self._pending if node.epochs}
        return [node for node in self._pending if node.parent not in waiting or node.parent == node.uid]

    def _choose(self, ready: Sequence[Node]) -> list[Node]:
        return next(packs(ready, self._trainer.largest_pack))

    def _lock_pack(self) -> list[Node]:
        """Choose nodes and lock them; none if others are at work on all that could be trained now."""
        busy: set[str] = set()
        while ready := [node for node in self._ready() if node.uid not in busy]:
            chosen = self._choose(ready)
            mine = [node for node in chosen if self._locks.take(node.uid)]
            busy |= {node.uid for node in chosen} - {node.uid for node in mine}
            if todo := self._look_again(mine):
                return todo
        if news := busy - self._told:
            self._told |= news
            self._log.append(Waiting(tuple(sorted(news))))
        return []

    def _look_again(self, mine: Sequence[Node]) -> list[Node]:
        """Return the nodes to train as planned; the others are finished, or are replaced by the way to them."""
        folder, since = self._trainer.folder, self._settings.since
        finished = checkpoints.finished(folder, since=since, without=self._lost, on_damage=self._tell)
        todo = []
        for node in mine:
            path = path_to(node, finished)
            if [(one.uid, one.parent, one.epochs) for one in path] == [(node.uid, node.parent, node.epochs)]:
                todo.append(node)
                continue
            self._locks.release(node.uid)
            self._drop([node])
            if not path:
                self._log.append(StateReached(node.uid))
            for one in path:
                if self._trained[one.uid] > 1:
                    reason = f"the state of {one.uid} is gone again after it was trained twice"
                    self.failed[node.uid] = self._trainer.fail(node, reason)
                    self._drop_orphans()
                    break
            else:
                known = {other.uid for other in self._pending}
                self._pending += [one for one in path if one.uid not in known]
        return todo

    def _train(self, chosen: Sequence[Node]) -> None:
        try:
            self.failed |= self._trainer.attempt(chosen)
        except checkpoints.StateError as error:
            self._lose(chosen, error)
            return
        self._lost -= {node.uid for node in chosen}
        self._trained.update(node.uid for node in chosen)
        self._drop(chosen)
        self._drop_orphans()

    def _lose(self, chosen: Sequence[Node], error: checkpoints.StateError) -> None:
        """Continue without a damaged state: the nodes that lead to it are trained again, once."""
        self._tell(error)
        self._lost.add(error.uid)
        self._losses[error.uid] += 1
        if self._losses[error.uid] > 1:
            lost = [node for node in chosen if node.parent == error.uid]
            self.failed |= {node.uid: self._trainer.fail(node, f"twice in a row {error.what}") for node in lost}
            self._drop(lost)
            self._drop_orphans()

    def _tell(self, error: checkpoints.StateError) -> None:
        if error.what not in self._told:
            self._told.add(error.what)
            self._log.append(StateDamaged(error.what))

    def _drop(self, nodes: Sequence[Node]) -> None:
        gone = set(map(id, nodes))
        self._pending = [node for node in self._pending if id(node) not in gone]

    def _drop_orphans(self) -> None:
        """Fail the nodes that start from states that were never reached."""
        while orphans := [node for node in self._pending if node.parent and node.parent in self.failed]:
            self.failed |= {node.uid: self.failed[node.parent] for node in orphans if node.parent}
            self._drop(orphans)
