"""Merge runs into a stage tree. Standard library only.

A checkpoint holds all that is needed to go on, so its identity is a *prefix* of a schedule, and a prefix may end within
a stage: `[(20, 0.1)]` is what a run of `[(30, 0.1), (10, 0.01)]` has reached after 20 epochs. Sharing, resuming,
skipping what is finished and extending it are therefore one operation: start from the longest prefix that exists.
(The stage tree is Shin et al., "Hippo", arXiv 2006.11972.)
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from stagetree.tree.runs import PackKey, Prefixes, Run, Stage, Stages, Trunk

LONGEST_CHAIN = 8
"""The most stages in a row that people see as a line each; longer chains are one line."""
KEPT = 100
"""The number of first stages whose ends are all kept; after them each hundredth is, as a state holds its history."""


@dataclass(frozen=True)
class Node:
    """One stage, or the rest of one, trained once; equal trunks and equal prefixes are one node."""

    uid: str
    """Uid of the state it leads to."""
    parent: str | None
    """Uid of the state it starts from; `None`: initial weights."""
    prefixes: Prefixes = field(compare=False, repr=False)
    """The prefixes of a run that passes here; nodes share them, since a schedule may be long."""
    depth: int
    """Number of stages trained once this node is, the last in whole or in part."""
    end: int
    """Number of epochs of that last stage trained then."""
    last_epoch: int
    """The last epoch trained here, counted from 1 over the whole schedule."""
    epochs: int
    """Trained here; 0: only the final metrics are missing."""
    final: bool
    """Whether a run ends here, so that it is evaluated on the test set."""
    kept: bool = field(default=True, compare=False)
    """Whether its state stays once the nodes that start from it are trained."""
    children: tuple["Node", ...] = ()

    @property
    def trunk(self) -> Trunk:
        return self.prefixes.trunk

    @property
    def pack_key(self) -> PackKey:
        return self.trunk.pack_key

    @property
    def stages(self) -> Stages:
        """All stages trained once this node is; the last may be part of a longer stage."""
        return (*self.prefixes.stages[: self.depth - 1], Stage(self.end, self.lr))

    @property
    def lr(self) -> float:
        return self.prefixes.stages[self.depth - 1].lr

    @property
    def first_epoch(self) -> int:
        """The first epoch trained here, counted from 0 over the whole schedule."""
        return self.last_epoch - self.epochs

    @property
    def starts_stage(self) -> bool:
        return self.epochs == self.end

    def uid_before(self, epochs: int) -> str:
        """Identify the state of its last stage that lies so many epochs before its own."""
        return self.prefixes.uid(self.depth, self.end - epochs)

    def chain(self) -> list["Node"]:
        """List this node and those below it, up to the first at which the tree forks or a run ends."""
        nodes: list[Node] = [self]
        while len(nodes[-1].children) == 1 and not nodes[-1].final:
            nodes.append(nodes[-1].children[0])
        return nodes

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all below it, parents first."""
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


_PLAIN = ("uid", "parent", "depth", "end", "last_epoch", "epochs", "final", "kept")


def nodes_to_json(nodes: Iterable[Node]) -> dict[str, Any]:
    """Write nodes without their children as plain values; those of one run name its trunk and schedule once."""
    runs: dict[int, tuple[int, Prefixes]] = {}
    lines = []
    for node in nodes:
        place, _ = runs.setdefault(id(node.prefixes), (len(runs), node.prefixes))
        lines.append({name: getattr(node, name) for name in _PLAIN} | {"run": place})
    pairs = [[[[stage.epochs, stage.lr] for stage in run.stages], run.trunk.json] for _, run in runs.values()]
    return {"runs": pairs, "nodes": lines}


def nodes_from_json(values: Mapping[str, Any]) -> list[Node]:
    """Read the nodes that `nodes_to_json` wrote."""
    runs = [
        Prefixes(Trunk.from_json(trunk), tuple(Stage(epochs, lr) for epochs, lr in pairs))
        for pairs, trunk in values["runs"]
    ]
    return [Node(**{name: line[name] for name in _PLAIN}, prefixes=runs[line["run"]]) for line in values["nodes"]]


@dataclass(frozen=True)
class Finished:
    """The states that have checkpoints, and those of them that have their final metrics."""

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
        distinct = sorted({run.uid: run for run in runs}.values(), key=_order)
        groups = [[run] for run in distinct]
        if share:
            groups = [list(alike) for _, alike in groupby(distinct, key=lambda run: run.trunk.json)]
        return cls(tuple(root for group in groups for root in _grow(group, thin=share)))

    def remaining(self, finished: Finished) -> "StageTree":
        """Cut off all that is finished: the nodes left start from the last states that exist."""
        left: dict[int, list[Node]] = {}
        for node in reversed(list(self.walk())):  # children before their parents
            below = [one for child in node.children for one in left.pop(id(child))]
            left[id(node)] = _remaining(node, below, finished)
        return StageTree(tuple(one for root in self.roots for one in left[id(root)]))


def _order(run: Run) -> tuple[str, str, Stages]:
    return run.trunk.pack_key.json, run.trunk.json, run.stages


# No function here calls itself: each stage would be a call, and schedules have thousands.
_Growing = tuple[Sequence[Run], int, int, int]
"""Runs with a common prefix, its stages, the epochs of the next stage that are done, and the place of the node above;
-1: none."""


def _grow(runs: Sequence[Run], *, thin: bool) -> list[Node]:
    """Make the nodes of runs of one trunk.

    Args:
        runs: of one trunk.
        thin: whether states are dropped from which nothing else starts. Without sharing, runs of another root may.
    """
    made: list[Node] = []
    above: list[int] = []
    growing = _forks(runs, 0, -1)[::-1]
    while growing:
        alike, depth, done, place = growing.pop()
        end = min(run.stages[depth].epochs for run in alike)
        ending = [run for run in alike if run.stages[depth].epochs == end]
        longer = [run for run in alike if run.stages[depth].epochs > end]
        parent = made[place] if place >= 0 else None
        node = Node(
            uid=alike[0].prefixes.uid(depth + 1, end),
            parent=parent and parent.uid,
            prefixes=alike[0].prefixes,
            depth=depth + 1,
            end=end,
            last_epoch=(parent.last_epoch if parent else 0) + end - done,
            epochs=end - done,
            final=any(len(run.stages) == depth + 1 for run in ending),
        )
        above.append(place)
        made.append(node)
        here = len(made) - 1
        growing += ([(longer, depth, end, here)] if longer else []) + _forks(ending, depth + 1, here)[::-1]
    below: list[list[Node]] = [[] for _ in range(len(made) + 1)]  # the last: roots
    for place in reversed(range(len(made))):
        node = replace(made[place], children=tuple(below[place]))
        passed = thin and not node.final and len(node.children) == 1 and node.depth > KEPT and node.depth % KEPT
        below[above[place]].insert(0, replace(node, kept=False) if passed else node)
    return below[-1]


def _forks(runs: Sequence[Run], depth: int, place: int) -> list[_Growing]:
    """Divide runs by the learning rate of their next stage; runs without one end here."""
    onward = sorted((run for run in runs if len(run.stages) > depth), key=lambda run: run.stages[depth].lr)
    by_lr = groupby(onward, key=lambda run: run.stages[depth].lr)
    return [(list(same_lr), depth, 0, place) for _, same_lr in by_lr]


def _remaining(node: Node, below: list[Node], finished: Finished) -> list[Node]:
    """Cut a node down to what is not finished, given what is left below it."""
    own = tuple(left for left in below if left.parent == node.uid)
    others = [left for left in below if left.parent != node.uid]  # they start from states that exist
    done = node.uid in finished.states and (not node.final or node.uid in finished.tested)
    needed = node.final or own or not node.children
    if done or not needed:
        return below
    left, parent = _left(node, node.epochs, node.parent, finished)
    return [replace(node, parent=parent, epochs=left, children=own), *others]


def _left(node: Node, epochs: int, parent: str | None, finished: Finished) -> tuple[int, str | None]:
    """Count the epochs left to train of the last `epochs` of a stage, and find the state from which they start."""
    for left in range(epochs):
        uid = node.uid_before(left)
        if uid in finished.states:
            return left, uid
    return epochs, parent


def path_to(node: Node, finished: Finished) -> list[Node]:
    """List the nodes that must be trained to reach a node's state, parents first, each without its children.

    The list is the node itself if the state it starts from exists, a part of it if a later state exists, nothing if it
    is done, and also the nodes before it where states are missing.
    """
    path: list[Node] = []
    final, last = node.final, node.last_epoch
    for depth in range(node.depth, 0, -1):
        stage, own = node.prefixes.stages[depth - 1], depth == node.depth
        end = node.end if own else stage.epochs
        uid, before = node.prefixes.uid(depth, end), node.prefixes.stages[depth - 2].epochs if depth > 1 else 0
        if uid in finished.states and not (own and final and uid not in finished.tested):
            break
        parent = node.prefixes.uid(depth - 1, before) if depth > 1 else None
        reached = {"uid": uid, "parent": parent, "depth": depth, "end": end, "epochs": end, "last_epoch": last}
        one = replace(node, **reached, final=final and own, children=())
        left, parent = _left(one, end, parent, finished)
        path.append(replace(one, epochs=left, parent=parent))
        if left < end:
            break
        last -= end
    return path[::-1]
