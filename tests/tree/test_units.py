"""How a tree is divided: what goes to which worker, what waits for what, and what trains side by side."""

from dataclasses import replace

import pytest
import trunks

from stagetree.tree import units
from stagetree.tree.stage_tree import Finished, Node, StageTree
from stagetree.tree.units import packs, predecessors


def run(*stages, trunk="t", shape="s"):
    return trunks.run(*stages, seed=ord(trunk), data=shape)


def cut_units(tree, workers, pack=None, **epoch_cost):
    """An epoch of any data costs 1 unless told otherwise."""
    costs = {node.pack_key: epoch_cost.get(node.trunk.data, 1.0) for node in tree.walk()}
    return units.cut_units(tree, workers, costs, dict.fromkeys(costs, pack) if pack else None)


def grid(n_roots, n_leaves, shape="s"):
    return [run((2, a + 1), (1, b + 1), shape=shape) for a in range(n_roots) for b in range(n_leaves)]


def uids(units):
    return sorted(node.uid for unit in units for root in unit for node in root.walk())


def sizes(units):
    return [len(unit) for unit in units]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(4, 4), (1, 16), (5, 1)])
def test_units_train_each_node_once_and_can_start_in_their_order(workers, shape):
    """Invariant 4, first part."""
    tree = StageTree.build(grid(*shape))
    units = cut_units(tree, workers)
    assert uids(units) == sorted(node.uid for node in tree.walk())
    seen = set()
    for place, (unit, after) in enumerate(zip(units, predecessors(units), strict=True)):
        assert all(root.parent is None or root.parent in seen for root in unit)
        assert {root.parent for root in unit} <= {None, *uids([units[other] for other in after])}
        assert all(other < place for other in after)
        seen |= set(uids([unit]))


def test_subtrees_enough_for_all_workers_wait_for_nothing():
    units = cut_units(StageTree.build(grid(4, 4)), 2)
    assert sizes(units) == [2, 2]
    assert predecessors(units) == [set(), set()]


def test_a_tree_of_one_root_is_cut_at_its_fork_to_feed_all_workers():
    units = cut_units(StageTree.build(grid(1, 16)), 2)
    assert sizes(units) == [1, 8, 8]
    assert predecessors(units) == [set(), {0}, {0}]


def test_one_worker_gets_all_in_one_unit():
    assert sizes(cut_units(StageTree.build(grid(1, 16)), 1)) == [1]


def test_what_is_below_a_fork_waits_for_its_trunk_alone():
    """Two trunks are cut, of 40 and of 10 epochs, beside a chain that is not: nobody waits for the slowest."""
    runs = [run((40, 0.1), (5, lr)) for lr in range(1, 9)] + [run((10, 0.1), (5, lr), trunk="u") for lr in range(1, 9)]
    units = cut_units(StageTree.build([*runs, run((20, 0.1), trunk="v")]), 4)
    long, short, chain, *below = units
    assert [unit[0].epochs for unit in (long, short, chain)] == [40, 10, 20]
    assert predecessors(units) == [set()] * 3 + [{0}] * 4 + [{1}] * 4
    assert sizes(below) == [2] * 8


def test_a_unit_of_final_figures_alone_does_not_wait_for_itself():
    one = run((2, 0.1))
    left = StageTree.build([one]).remaining(Finished(states={one.uid}))
    assert predecessors(cut_units(left, 2)) == [set()]


def test_units_keep_equal_shapes_together():
    runs = grid(4, 2, shape="s") + [run((2, a), trunk="u", shape="v") for a in range(1, 9)]
    units = cut_units(StageTree.build(runs), 2)
    assert [{root.trunk.data for root in unit} for unit in units] == [{"s"}, {"v"}]


def test_workers_get_equal_work_not_equal_counts():
    runs = grid(6, 1, shape="s") + [run((2, a), trunk="u", shape="v") for a in range(1, 4)]
    assert sizes(cut_units(StageTree.build(runs), 2, s=1, v=3)) == [6, 3]


@pytest.mark.parametrize(
    ("runs", "epochs", "pack", "pieces"),
    [
        (80, 10, 4, [10] * 8),  # 400 s a worker: four units each, of more than a pack
        (80, 10, 16, [20] * 4),  # as many as fill packs
        (80, 10, 64, [40] * 2),
        (80, 2, 4, [20] * 4),  # 80 s a worker
        (80, 1, 4, [40] * 2),
    ],
)
def test_a_workers_share_is_cut_into_pieces_that_fill_packs_and_are_worth_a_start(runs, epochs, pack, pieces):
    tree = StageTree.build(run((epochs, lr)) for lr in range(1, runs + 1))
    assert sizes(cut_units(tree, 2, pack)) == pieces


@pytest.mark.parametrize(("leaves", "pack", "units"), [(32, 8, [1, 1] + [8] * 8), (32, 16, [33, 33]), (8, 8, [9, 9])])
def test_large_subtrees_are_cut_if_that_leaves_packs_full(leaves, pack, units):
    """Two workers, two equal subtrees: uncut, the slower worker would hold up the end."""
    runs = [run((10, a), (10, lr)) for a in (100, 200) for lr in range(1, leaves + 1)]
    made = cut_units(StageTree.build(runs), 2, pack)
    assert [sum(1 for root in unit for _ in root.walk()) for unit in made] == units


def test_the_next_pack_is_the_largest_group_of_one_shape_and_length():
    ready = StageTree.build([run((2, 0.1)), run((3, 0.2)), run((3, 0.3)), run((3, 0.4), shape="z", trunk="z")]).roots
    assert [node.lr for node in next(packs(ready, lambda node, count: 8))] == [0.2, 0.3]
    assert len(next(packs(ready, lambda node, count: 1))) == 1


@pytest.mark.parametrize(
    ("members", "largest", "sizes"), [(5, 8, [5]), (8, 8, [8]), (9, 8, [4, 5]), (20, 8, [7, 6, 7]), (3, 1, [1, 1, 1])]
)
def test_packs_are_few_and_even(members, largest, sizes):
    nodes = StageTree.build(run((1, 0.1), trunk=chr(k)) for k in range(members)).roots
    found = list(packs(nodes, lambda node, count: largest))
    assert sorted(map(len, found)) == sorted(sizes)
    assert [node for pack in found for node in pack] == list(nodes)


def test_the_packs_of_a_unit_are_those_that_a_worker_comes_to():
    """A worker asks for the next pack of what can start at that time; a plan for all packs at once."""
    runs = [run((2, a), (b, c), trunk=t) for a in (0.1, 0.2) for b in (1, 2) for c in (1, 2, 3) for t in "tuv"]
    whole = StageTree.build([*runs, run((2, 0.1), trunk="t"), run((1, 0.3), shape="z", trunk="z")])
    states = {node.uid for node in whole.walk() if node.trunk.seed == ord("t") and node.epochs == 2 and node.depth == 1}
    unit = whole.remaining(Finished(states=states)).roots
    pending, came = [node for root in unit for node in root.walk()], []
    while pending:
        waiting = {node.uid for node in pending if node.epochs}
        ready = [node for node in pending if node.parent not in waiting or node.parent == node.uid]
        came.append([node.uid for node in next(packs([replace(node, children=()) for node in ready], largest))])
        pending = [node for node in pending if node.uid not in came[-1]]
    assert [[node.uid for node in pack] for pack in packs(unit, largest)] == came
    assert {len(pack) for pack in came} == {1, 3, 4}


def largest(node: Node, count: int) -> int:
    return 3 if node.epochs == 1 else 4
