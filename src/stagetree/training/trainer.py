"""Trains nodes of the stage tree in packs, in the only training loop of the project.

State passes from a node to its children through checkpoints alone, so a fork, a resumed run and a run that starts in
another process are the same thing. Events go to a log; this module does not use MLflow or Hydra.
"""

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stagetree.errors import Stopped
from stagetree.models.mlp import initial_state
from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import State
from stagetree.storage.event_log import EventLog
from stagetree.storage.events import EpochEnded, EpochLine, Failed, PackBegan, StateReached
from stagetree.storage.locks import Locks, output_dir_locks
from stagetree.storage.unit_files import UnitSettings
from stagetree.training import throughput
from stagetree.training.epochs import Member, PackTraining, Split, evaluate, never, prepared_device
from stagetree.tree.runs import PackKey
from stagetree.tree.stage_tree import Node

QUICK_S = 0.3
"""Seconds; when training is asked to stop, a shorter epoch is finished and a longer one is dropped."""


class PackTrainer:
    """Trains packs for one unit, and keeps the data on the device between them.

    Args:
        settings: of the unit.
        log: receives the events.
        check: called often; raises `Stopped` when training is to end.
    """

    def __init__(self, settings: UnitSettings, log: EventLog, check: Callable[[], None]):
        self.settings, self.log, self.check = settings, log, check
        self.folder = checkpoints.folder_of(Path(settings.output_dir))
        self._locks = output_dir_locks(Path(settings.output_dir))
        self._splits: dict[tuple, Split] = {}

    def largest_pack(self, node: Node, ready: int) -> int:
        """Choose the most members of a pack, given that `ready` nodes have this one's pack key and length."""
        if self.settings.pack_size != "auto":
            return int(self.settings.pack_size)
        if ready == 1:
            return 1
        folder = Path(self.settings.output_dir)
        return throughput.look_up_or_measure(folder, node, ready, self._split, self.check).best_size

    def attempt(self, nodes: Sequence[Node]) -> dict[str, str]:
        """Train nodes of one pack key side by side; a pack that fails is halved until the culprit is alone.

        Returns:
            The reason for each uid that failed.

        Raises:
            StateError: a starting state is missing or damaged.
            OSError: no run is to blame: the disk is full or read-only, or a file is gone.
        """
        try:
            return self._train(nodes)
        except (checkpoints.StateError, OSError):
            raise
        except Exception as error:  # whatever one member does, the others must finish
            if len(nodes) > 1:
                half = len(nodes) // 2
                return self.attempt(nodes[:half]) | self.attempt(nodes[half:])
            return {nodes[0].uid: self.fail(nodes[0], f"{type(error).__name__}: {error}", traceback.format_exc())}

    def fail(self, node: Node, reason: str, trace: str = "", *, alone: bool = False) -> str:
        """Log that a node failed; `alone` means that its state was reached, so that the nodes below go on."""
        self.log.append(Failed(node.uid, reason, trace, alone))
        return reason

    def _split(self, spec: PackKey) -> Split:
        key = (spec.data, spec.val_size, spec.val_seed, spec.device)
        if key not in self._splits:
            self._splits[key] = Split.load(Path(self.settings.data[spec.data]), spec)
        return self._splits[key]

    def _train(self, nodes: Sequence[Node]) -> dict[str, str]:
        """Train each node's epochs, and keep the states reached."""
        spec = nodes[0].pack_key
        with prepared_device(spec):
            return self._train_prepared(nodes, spec)

    def _train_prepared(self, nodes: Sequence[Node], spec: PackKey) -> dict[str, str]:
        members = _Members(nodes, spec, self._split(spec), self.folder, self._locks)
        parts = ["val"] * (len(members.split.val) > 0) + ["test"] * self.settings.test_every_epoch
        self.log.append(PackBegan(tuple(node.uid for node in nodes), nodes[0].epochs))
        if parts and any(node.parent is None for node in nodes):
            for k, metrics in enumerate(members.evaluate(parts)):
                if nodes[k].parent is None:
                    self._record(members, k, {"epoch": 0, **_finite(metrics)})
        failed: dict[str, str] = {}
        saved_at = time.monotonic()
        took = math.inf
        for epoch in range(nodes[0].epochs):
            started = time.perf_counter()
            quick = took < QUICK_S
            before = members.copy() if epoch and not quick else None
            try:
                self.check()
                trained, evaluated = members.train_epoch(epoch, never if quick else self.check), members.evaluate(parts)
            except Stopped:
                if before:
                    members.restore(before)
                if epoch:
                    members.save_partials(epoch, failed)
                raise
            took = time.perf_counter() - started
            seconds = took / len(nodes)
            for k, node in enumerate(nodes):
                if node.uid in failed:
                    continue
                metrics = {**trained[k], **evaluated[k]}
                number = node.first_epoch + epoch + 1
                # the test set only tells how a run ends
                decisive = {name: value for name, value in metrics.items() if not name.startswith("test/")}
                if reason := _diverged(decisive, number, node.lr):
                    failed[node.uid] = self.fail(node, reason)
                else:
                    self._record(members, k, {"epoch": number, **_finite(metrics), "lr": node.lr, "seconds": seconds})
            if len(failed) == len(nodes):
                return failed
            done = epoch + 1
            if done < nodes[0].epochs and time.monotonic() - saved_at >= self.settings.checkpoint_every_s:
                members.save_partials(done, failed)
                saved_at = time.monotonic()
        tests = members.evaluate(["test"]) if any(node.final for node in nodes) else []
        for k, node in enumerate(nodes):
            if node.uid in failed:
                continue
            test = tests[k] if node.final else {}
            reason = _diverged(test, node.first_epoch + node.epochs, node.lr)
            members.save_end(k, None if reason or not node.final else test)
            if reason:
                self.fail(node, reason, alone=True)
            else:
                self.log.append(StateReached(node.uid))
        members.remove_partials()
        return failed

    def _record(self, members: "_Members", k: int, line: EpochLine) -> None:
        members.histories[k].append(line)
        self.log.append(EpochEnded(members.nodes[k].uid, line))


def _diverged(metrics: Mapping[str, float], epoch: int, lr: float) -> str:
    """Say which metric is not finite; the text is empty if all are. A large finite loss is a result."""
    bad = [f"{name} became {value} in epoch {epoch}" for name, value in metrics.items() if not math.isfinite(value)]
    return f"diverged at lr {lr:g}: {bad[0]}" if bad else ""


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


@dataclass(frozen=True)
class PackState:
    """A copy of all that training changes in a pack."""

    weights: Sequence[Tensor]
    """The pack's stacked parameters, `(K, ...)` each."""
    optimizer: Sequence[State]
    """The state of each member; empty if the optimizer keeps nothing."""


class _Members:
    """Nodes that train side by side, with their weights, optimizer and histories."""

    def __init__(self, nodes: Sequence[Node], spec: PackKey, split: Split, folder: Path, locks: Locks):
        self.nodes, self.spec, self.split, self.folder, self._locks = nodes, spec, split, folder, locks
        self._partials: set[str] = set()
        starts = [self._start(node) for node in nodes]
        self.histories = [history for history, _, _ in starts]
        members = [
            Member(weights, node.trunk.optimizer, node.lr, node.trunk.seed, node.first_epoch)
            for node, (_, weights, _) in zip(nodes, starts, strict=True)
        ]
        self._training = PackTraining(members, split, spec)
        self.pack, self._optimizer = self._training.pack, self._training.optimizer
        if self._optimizer:
            for k, (_, _, state) in enumerate(starts):
                self._optimizer.load(k, state)

    def _start(self, node: Node) -> tuple[list[EpochLine], State, State]:
        """Read the history, the weights and the optimizer state that a node starts from."""
        if node.parent is None:
            info = self.split.info
            return [], initial_state(node.trunk.seed, info.in_features, len(info.classes), self.spec.model), {}
        record, weights, state = checkpoints.load(self.folder, node.parent)
        if record.partial:
            self._partials.add(node.parent)
        fresh = node.starts_stage and self.spec.reset_optimizer
        return list(record.history), weights, {} if fresh else state

    def train_epoch(self, epoch: int, check: Callable[[], None]) -> list[dict[str, float]]:
        """Train the nodes' `epoch`-th epoch, from 0, and return each one's training metrics."""
        return self._training.epoch(epoch, check)

    def evaluate(self, parts: Sequence[str]) -> list[dict[str, float]]:
        """Evaluate on each of the parts, `val` or `test`."""
        metrics: list[dict[str, float]] = [{} for _ in self.nodes]
        for part in parts:
            for own, more in zip(metrics, evaluate(self.pack, self.split, self.spec, part), strict=True):
                own |= more
        return metrics

    def copy(self) -> PackState:
        """Copy all that training changes, for `restore`."""
        weights = [parameter.clone() for parameter in self.pack.parameters]
        states = [self._optimizer.state(k) for k in range(len(self.nodes))] if self._optimizer else []
        return PackState(weights, states)

    def restore(self, before: PackState) -> None:
        """Go back to a copy."""
        for parameter, value in zip(self.pack.parameters, before.weights, strict=True):
            parameter.copy_(value)
        if self._optimizer is not None:
            for k, state in enumerate(before.optimizer):
                self._optimizer.load(k, state)

    def save(self, k: int, uid: str, *, test: Mapping[str, float] | None = None, partial: bool = False) -> None:
        """Keep a member's state as it is now."""
        node, history = self.nodes[k], tuple(self.histories[k])
        record = checkpoints.Record(uid, node.trunk, node.parent, history, test, partial=partial)
        optimizer_state = self._optimizer.state(k) if self._optimizer else {}
        checkpoints.save(self.folder, record, self.pack.state(k), optimizer_state)

    def save_end(self, k: int, test: Mapping[str, float] | None) -> None:
        """Keep the state at the end of a member's node."""
        uid = self.nodes[k].uid
        self.save(k, uid, test=test, partial=not self.nodes[k].kept and self._is_ours(uid))

    def _is_ours(self, uid: str) -> bool:
        """Tell whether a state may be removed later; another sweep may have ended a run there."""
        there = checkpoints.find(self.folder, uid)
        return there is None or there.partial

    def save_partials(self, done: int, failed: Mapping[str, str]) -> None:
        """Keep states within a stage, from which a killed run goes on, and remove those before them."""
        old, self._partials = self._partials, set()
        for k, node in enumerate(self.nodes):
            if node.uid in failed:
                continue
            uid = node.uid_before(node.epochs - done)
            if self._is_ours(uid):
                self.save(k, uid, partial=True)
                self._partials.add(uid)
        self._remove(old - self._partials)

    def remove_partials(self) -> None:
        """Remove the states within the stage that is done now."""
        self._remove(self._partials)

    def _remove(self, uids: set[str]) -> None:
        for uid in uids:
            if not self._locks.take(uid):  # another sweep may be ending a run here
                continue
            record = checkpoints.find(self.folder, uid)
            if record is not None and record.partial:
                checkpoints.remove(self.folder, uid)
            self._locks.release(uid)
