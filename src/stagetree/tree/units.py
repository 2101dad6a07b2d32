"""Divide a stage tree into units for workers, and a unit into packs. Standard library only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from stagetree.tree.runs import PackKey, Stages
from stagetree.tree.stage_tree import Node, StageTree

Unit = tuple[Node, ...]
"""Whole subtrees, trained by one worker."""

MOST_PIECES, PIECE_S = 4, 30.0
"""The most units for each worker, so that others can take some if one needs longer than estimated; and the seconds
that each is worth at least, since a worker may have to be started for it."""


def cut_units(
    tree: StageTree, workers: int, epoch_cost: Mapping[PackKey, float], packs: Mapping[PackKey, int] | None = None
) -> list[Unit]:
    """Divide the tree between workers, equal pack keys together, so that packs stay large.

    A subtree is cut at its first fork if it is more than one worker's share, or a large part of a share with enough
    leaves to fill several packs. The subtrees below the fork go to units of their own, which can start as soon as the
    chain above is trained (`predecessors`).

    Args:
        tree: to be trained.
        workers: units that run at a time, at least 1.
        epoch_cost: work of an epoch for each pack key, in any unit.
        packs: members that train well together, by pack key, if that is known; `epoch_cost` is in seconds then.

    Returns:
        Units in an order in which they can be started: units that others wait for come first, the longest ahead.
    """

    def weigh(root: Node) -> tuple[float, int]:
        cost, leaves = 0.0, 0
        for node in root.walk():
            cost += node.epochs * epoch_cost[node.pack_key]
            leaves += not node.children
        return cost, leaves

    units: list[Unit] = []
    # roots that can start together, at a time of their own, and the most units that they are worth
    families: list[tuple[Sequence[Node], int]] = [(tree.roots, workers)]
    while families:
        weights = [[weigh(root) for root in family] for family, _ in families]
        share = sum(cost for own in weights for cost, _ in own) / workers
        trunks: list[tuple[float, Node, tuple[Sequence[Node], int]]] = []
        wholes: list[Unit] = []
        for (family, most), own in zip(families, weights, strict=True):
            whole = []
            for root, (cost, leaves) in zip(family, own, strict=True):
                trunk, below = _first_fork(root)
                full = leaves // packs[root.pack_key] if packs else 0
                large = workers > 1 and full >= MOST_PIECES and cost > max(share / MOST_PIECES, PIECE_S)
                if len(below) > 1 and (cost > share or large):
                    trunks.append((cost, trunk, (below, workers if cost > share else min(workers, full))))
                else:
                    whole.append((root, cost, leaves))
            parts = max(most - (len(family) - len(whole)), 1)
            wholes += _balance(whole, parts * (_pieces(whole, parts, packs) if packs else 1))
        trunks.sort(key=lambda cut: -cut[0])
        units += [(trunk,) for _, trunk, _ in trunks] + wholes
        families = [below for _, _, below in trunks]
    return units


def predecessors(units: Sequence[Unit]) -> list[set[int]]:
    """Find for each unit the positions of the units that train the states it starts from."""
    home = {node.uid: place for place, unit in enumerate(units) for root in unit for node in root.walk()}
    return [{home[root.parent] for root in unit if root.parent in home} - {place} for place, unit in enumerate(units)]


def _first_fork(root: Node) -> tuple[Node, tuple[Node, ...]]:
    """Split a subtree into the chain that leads to its first fork and the subtrees below that."""
    chain = [root]
    while len(chain[-1].children) == 1:
        chain.append(chain[-1].children[0])
    *above, last = chain
    top = replace(last, children=())
    for node in reversed(above):
        top = replace(node, children=(top,))
    return top, last.children


def _pieces(roots: Sequence[tuple[Node, float, int]], parts: int, packs: Mapping[PackKey, int]) -> int:
    """Choose how many units each part of the roots, with their costs and leaves, is divided into."""
    full = max((packs[root.pack_key] for root, _, _ in roots), default=1)
    seconds = sum(cost for _, cost, _ in roots) / parts
    # either packs are full at the roots already, or what is below fills so many that these few do not matter
    filled = max(len(roots), sum(leaves for _, _, leaves in roots) // MOST_PIECES) // (parts * full)
    return max(1, min(MOST_PIECES, filled, len(roots) // parts, int(seconds / PIECE_S)))


def _order(root: tuple[Node, float, int]) -> tuple[str, int, str, Stages]:
    node = root[0]
    return node.pack_key.json, node.epochs, node.trunk.json, node.stages


def _balance(roots: Sequence[tuple[Node, float, int]], parts: int) -> list[Unit]:
    """Slice the roots, sorted by pack key so that packs stay together, into units of equal cost."""
    ordered = sorted(roots, key=_order)
    share = sum(cost for _, cost, _ in ordered) / parts or 1.0
    slices: dict[int, list[Node]] = {}
    before = 0.0
    for node, cost, _ in ordered:
        place = min(int((before + cost / 2) / share), parts - 1)
        slices.setdefault(place, []).append(node)
        before += cost
    return [tuple(members) for _, members in sorted(slices.items())]


def packs(unit: Sequence[Node], largest: Callable[[Node, int], int]) -> Iterator[list[Node]]:
    """Yield the packs in which a worker trains a unit, one after the other.

    Each pack comes from the largest group of nodes that can start and have the same pack key and length. A group is
    divided into as few packs as possible, of about equal size.

    Args:
        unit: roots whose starting states exist.
        largest: gives the most members of a pack, at least 1, for a node and how many of its group can start.
    """
    places = {id(node): place for place, node in enumerate(node for root in unit for node in root.walk())}
    groups: dict[tuple[PackKey, int], list[tuple[int, Node]]] = {}  # heaps: a unit may have a million nodes
    starting = list(unit)
    while groups or starting:
        while starting:
            node = starting.pop()
            heappush(groups.setdefault((node.pack_key, node.epochs), []), (places[id(node)], node))
            starting += () if node.epochs else node.children  # of a state that exists, and is only evaluated
        key = max(groups, key=lambda key: (len(groups[key]), -groups[key][0][0]))
        ready = len(groups[key])
        count = -(-ready // largest(groups[key][0][1], ready))
        pack = [heappop(groups[key])[1] for _ in range(round(ready / count))]
        if not groups[key]:
            del groups[key]
        yield pack
        starting = [child for node in pack if node.epochs for child in node.children]
