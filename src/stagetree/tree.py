"""What a sweep trains: runs merged into a stage tree. Standard library only.

A checkpoint holds all that is needed to go on, so its identity is a *prefix* of a schedule, and a prefix may end within
a stage: `[(20, 0.1)]` is what a run of `[(30, 0.1), (10, 0.01)]` has reached after 20 epochs. Sharing, resuming,
skipping what is finished and extending it are therefore one operation: start from the longest prefix that exists.
(The stage tree is Shin et al., "Hippo", arXiv 2006.11972.)
"""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

FORMAT = 2
"""Part of every uid: raised when the same configuration would give other numbers."""


def canonical_json(value: Any) -> str:
    """Text that is equal exactly when the values are: sorted keys, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, order=True)
class Stage:
    """One learning rate held for a number of epochs."""

    epochs: int
    lr: float


Stages = tuple[Stage, ...]


def prefix_uid(trunk: str, stages: Stages) -> str:
    """Identify the state that training `stages` on `trunk` leads to: 64 hex digits, the same on every machine."""
    pairs = [[stage.epochs, float(stage.lr)] for stage in stages]
    text = f'{{"format":{FORMAT},"stages":{canonical_json(pairs)},"trunk":{trunk}}}'
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One full configuration."""

    trunk: str
    """Canonical JSON of all that decides the numbers but the schedule."""
    shape: str
    """Canonical JSON of what runs must have in common to train side by side."""
    stages: Stages

    @cached_property
    def uid(self) -> str:
        return prefix_uid(self.trunk, self.stages)


@dataclass(frozen=True)
class Node:
    """One stage, or the rest of one, trained once; equal trunks and equal prefixes are one node."""

    uid: str
    """Of the state it leads to."""
    parent: str | None
    """Uid of the state it starts from; `None`: initial weights."""
    trunk: str
    shape: str
    stages: Stages
    """All that is trained once this node is; the last may be part of a longer stage."""
    epochs: int
    """Trained here, the last ones of `stages[-1]`; 0: only the final figures are missing."""
    final: bool
    """Whether a run ends here, so that it is evaluated on the test set."""
    children: tuple["Node", ...] = ()

    @property
    def lr(self) -> float:
        return self.stages[-1].lr

    @property
    def first_epoch(self) -> int:
        """Counted from 0 over the whole schedule."""
        return sum(stage.epochs for stage in self.stages) - self.epochs

    @property
    def starts_stage(self) -> bool:
        return self.epochs == self.stages[-1].epochs

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all below it, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def to_json(self) -> dict[str, Any]:
        """Plain values without the children; `from_json` reads them."""
        names = ("uid", "parent", "trunk", "shape", "epochs", "final")
        pairs = [[stage.epochs, stage.lr] for stage in self.stages]
        return {name: getattr(self, name) for name in names} | {"stages": pairs}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Node":
        return cls(**{**values, "stages": tuple(Stage(epochs, lr) for epochs, lr in values["stages"])})


@dataclass(frozen=True)
class Finished:
    """What checkpoints say: which states exist, and which of them have their final figures."""

    states: Container[str] = frozenset()
    tested: Container[str] = frozenset()


@dataclass(frozen=True)
class StageTree:
    """The runs of a sweep, merged by equal prefixes."""

    roots: tuple[Node, ...]

    def walk(self) -> Iterator[Node]:
        """Yield all nodes, parents first."""
        for root in self.roots:
            yield from root.walk()

    @property
    def epochs(self) -> int:
        """Epochs to train."""
        return sum(node.epochs for node in self.walk())

    @classmethod
    def build(cls, runs: Iterable[Run], *, share: bool = True) -> "StageTree":
        """Merge runs by equal prefixes. Neither their order nor repetitions matter.

        Args:
            runs: of any trunks and shapes.
            share: `False` trains each run by itself, from its initial weights.
        """
        distinct = sorted({run.uid: run for run in runs}.values(), key=lambda run: (run.shape, run.trunk, run.stages))
        groups = [list(g) for _, g in groupby(distinct, key=lambda r: r.trunk)] if share else [[r] for r in distinct]
        return cls(tuple(root for group in groups for root in _grow(group, (), None)))

    def remaining(self, finished: Finished) -> "StageTree":
        """Cut off what is finished: what is left starts from the last states that exist."""
        return StageTree(tuple(left for root in self.roots for left in _remaining(root, finished)))


def _grow(runs: Sequence[Run], prefix: Stages, parent: str | None) -> list[Node]:
    """Make the nodes below `prefix` for runs of one trunk that all begin with it."""
    depth = len(prefix)
    onward = sorted((run for run in runs if len(run.stages) > depth), key=lambda run: run.stages[depth].lr)
    by_lr = groupby(onward, key=lambda run: run.stages[depth].lr)
    return [node for _, same_lr in by_lr for node in _grow_stage(list(same_lr), prefix, 0, parent)]


def _grow_stage(runs: Sequence[Run], prefix: Stages, done: int, parent: str | None) -> list[Node]:
    """Train one learning rate on from `done` epochs to the next end of a stage, then fork."""
    depth, first = len(prefix), runs[0]
    end = min(run.stages[depth].epochs for run in runs)
    stages = (*prefix, Stage(end, first.stages[depth].lr))
    uid = prefix_uid(first.trunk, stages)
    ending = [run for run in runs if run.stages[depth].epochs == end]
    longer = [run for run in runs if run.stages[depth].epochs > end]
    children = _grow(ending, stages, uid) + (_grow_stage(longer, prefix, end, uid) if longer else [])
    epochs, final = end - done, any(len(run.stages) == depth + 1 for run in ending)
    return [Node(uid, parent, first.trunk, first.shape, stages, epochs, final, tuple(children))]


def _remaining(node: Node, finished: Finished) -> list[Node]:
    below = [left for child in node.children for left in _remaining(child, finished)]
    own = tuple(left for left in below if left.parent == node.uid)
    others = [left for left in below if left.parent != node.uid]  # they start from states that exist
    done = node.uid in finished.states and (not node.final or node.uid in finished.tested)
    needed = node.final or own or not node.children
    if done or not needed:
        return below
    *prefix, stage = node.stages
    for left in range(node.epochs):
        uid = prefix_uid(node.trunk, (*prefix, Stage(stage.epochs - left, stage.lr)))
        if uid in finished.states:
            return [replace(node, parent=uid, epochs=left, children=own), *others]
    return [replace(node, children=own), *others]


def path_to(node: Node, finished: Finished) -> list[Node]:
    """List what must be trained to reach a node's state, parents first.

    That is the node itself if the state it starts from is there, nothing if it is done, less of it if a later state is
    there, and the nodes before it where states are gone.
    """
    below: tuple[Node, ...] = ()
    for depth in range(len(node.stages), 0, -1):
        stages = node.stages[:depth]
        top = replace(
            node, uid=prefix_uid(node.trunk, stages), stages=stages, epochs=stages[-1].epochs, children=below,
            parent=prefix_uid(node.trunk, stages[:-1]) if depth > 1 else None,
            final=node.final and depth == len(node.stages),
        )  # fmt: skip
        below = (top,)
    return list(StageTree(below).remaining(finished).walk())
