"""The stage tree: what is merged, what is cut, and who identifies it."""

import random
import subprocess
import sys
from itertools import product

import pytest

from stagetree import tree as trees
from stagetree.tree import (
    Finished,
    Node,
    Run,
    Stage,
    StageTree,
    even_packs,
    next_pack,
    predecessors,
    prefix_uid,
)


def run(*stages, trunk="t", shape="s"):
    return Run(trunk=f'"{trunk}"', shape=f'"{shape}"', stages=tuple(Stage(*stage) for stage in stages))


def cut_units(tree, workers, pack=None, **epoch_cost):
    """An epoch of any shape costs 1 unless told otherwise."""
    costs = {node.shape: epoch_cost.get(node.shape.strip('"'), 1.0) for node in tree.walk()}
    return trees.cut_units(tree, workers, costs, dict.fromkeys(costs, pack) if pack else None)


def lines(tree):
    """Each node as `(epochs trained here, lr, depth in stages)`."""
    return [(node.epochs, node.lr, len(node.stages)) for node in tree.walk()]


def finished(*runs, tested=True):
    uids = frozenset(one.uid for one in runs)
    return Finished(states=uids, tested=uids if tested else frozenset())


def test_a_uid_is_the_same_in_every_process_and_on_every_machine():
    """Invariant 5: literal hex strings."""
    trunk = '{"data":"00","seed":1}'
    uid = prefix_uid(trunk, (Stage(20, 1e-1), Stage(10, 1e-3)))
    expected = "f839740d1dfd9a61c205165a1c70ddbe06aed976fb5cf554de9d93b83aa0aae7"
    assert uid == expected
    code = f"from stagetree.tree import *; print(prefix_uid({trunk!r}, (Stage(20, 0.1), Stage(10, 0.001))))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == expected


def test_a_shared_prefix_is_one_node():
    tree = StageTree.build([run((20, 0.1), (10, 1e-3)), run((20, 0.1), (10, 1e-4))])
    assert lines(tree) == [(20, 0.1, 1), (10, 1e-4, 2), (10, 1e-3, 2)]
    assert tree.epochs == 40


def test_a_longer_stage_goes_on_from_the_shorter_one():
    tree = StageTree.build([run((20, 0.1)), run((30, 0.1)), run((20, 0.1), (5, 0.01))])
    first, *below = tree.walk()
    assert (first.epochs, first.final, first.first_epoch, first.starts_stage) == (20, True, 0, True)
    stage, longer = below
    assert (stage.epochs, stage.first_epoch, stage.starts_stage, stage.parent) == (5, 20, True, first.uid)
    assert (longer.epochs, longer.first_epoch, longer.starts_stage, longer.parent) == (10, 20, False, first.uid)
    assert longer.uid == run((30, 0.1)).uid


def test_two_stages_of_one_lr_are_not_one_longer_stage():
    """The optimizer may start afresh between them."""
    tree = StageTree.build([run((2, 0.1), (3, 0.1)), run((5, 0.1))])
    assert sorted(lines(tree)) == [(2, 0.1, 1), (3, 0.1, 1), (3, 0.1, 2)]


def test_other_trunks_share_nothing():
    assert StageTree.build([run((2, 0.1)), run((2, 0.1), trunk="u")]).epochs == 4


def test_without_sharing_each_run_is_trained_by_itself():
    runs = [run((20, 0.1), (10, 1e-3)), run((20, 0.1), (10, 1e-4))]
    assert StageTree.build(runs, share=False).epochs == 60


def test_order_and_repetition_of_choices_do_not_change_the_plan():
    """Invariant 4, last part."""
    runs = [run((a, x), (b, y), trunk=t) for a, x, b, y, t in product((1, 2), (0.1, 0.2), (1, 3), (0.1,), "tu")]
    expected = StageTree.build(runs)
    for seed in range(5):
        shuffled = random.Random(seed).sample(runs * 2, 2 * len(runs))
        assert StageTree.build(shuffled) == expected
        assert cut_units(StageTree.build(shuffled), 3) == cut_units(expected, 3)


def test_every_run_ends_at_exactly_one_node_that_all_its_epochs_lead_to():
    rng = random.Random(0)
    runs = {r.uid: r for r in (
        run(*[(rng.randint(1, 3), rng.choice((0.1, 0.2))) for _ in range(rng.randint(1, 4))]) for _ in range(200)
    )}  # fmt: skip
    nodes = {node.uid: node for node in StageTree.build(runs.values()).walk()}
    assert {uid for uid, node in nodes.items() if node.final} == set(runs)
    for uid, one in runs.items():
        epochs, node = 0, nodes[uid]
        while node:
            epochs += node.epochs
            node = nodes.get(node.parent)
        assert epochs == sum(stage.epochs for stage in one.stages)


def test_a_finished_sweep_leaves_nothing():
    runs = [run((2, 0.1), (1, 0.01)), run((2, 0.1), (1, 0.02))]
    done = finished(*runs, run((2, 0.1)))
    assert StageTree.build(runs).remaining(done) == StageTree(())


def test_what_is_finished_is_cut_off_and_the_rest_starts_from_it():
    runs = [run((2, 0.1), (1, 0.01)), run((2, 0.1), (1, 0.02))]
    left = StageTree.build(runs).remaining(finished(run((2, 0.1)), runs[0]))
    assert lines(left) == [(1, 0.02, 2)]
    assert left.roots[0].parent == run((2, 0.1)).uid


@pytest.mark.parametrize("reached", [1, 19])
def test_a_state_within_a_stage_is_gone_on_from(reached):
    left = StageTree.build([run((20, 0.1), (5, 0.01))]).remaining(finished(run((reached, 0.1)), tested=False))
    node = left.roots[0]
    assert (node.epochs, node.first_epoch, node.starts_stage) == (20 - reached, reached, False)
    assert node.parent == run((reached, 0.1)).uid
    assert left.epochs == 25 - reached


def test_a_state_without_final_figures_is_only_evaluated():
    one = run((2, 0.1))
    left = StageTree.build([one]).remaining(finished(one, tested=False))
    assert [(node.epochs, node.parent) for node in left.walk()] == [(0, one.uid)]


def test_a_finished_run_is_extended_by_what_is_new():
    longer = StageTree.build([run((20, 0.1), (10, 1e-3), (10, 1e-4))])
    assert longer.remaining(finished(run((20, 0.1), (10, 1e-3)))).epochs == 10


def test_nodes_survive_their_way_through_json():
    for node in StageTree.build([run((2, 0.1), (1, 0.01)), run((3, 0.1))]).walk():
        copy = Node.from_json(node.to_json())
        assert copy.to_json() == node.to_json()
        assert (copy.stages, copy.uid, copy.first_epoch) == (node.stages, node.uid, node.first_epoch)


# ---------------------------------------------------------------- units, packs


def grid(n_roots, n_leaves, shape="s"):
    return [
        run((2, a), (1, b), shape=shape)
        for a in range(1, n_roots + 1) for b in range(1, n_leaves + 1)
    ]  # fmt: skip


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
    tree = StageTree.build([run((2, 0.1))])
    left = tree.remaining(finished(run((2, 0.1)), tested=False))
    assert predecessors(cut_units(left, 2)) == [set()]


def test_units_keep_equal_shapes_together():
    runs = grid(4, 2, shape="s") + [run((2, a), trunk="u", shape="v") for a in range(1, 9)]
    units = cut_units(StageTree.build(runs), 2)
    assert [{root.shape for root in unit} for unit in units] == [{'"s"'}, {'"v"'}]


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
    assert [node.lr for node in next_pack(ready, lambda nodes: 8)] == [0.2, 0.3]
    assert len(next_pack(ready, lambda nodes: 1)) == 1


@pytest.mark.parametrize(
    ("members", "largest", "sizes"), [(5, 8, [5]), (8, 8, [8]), (9, 8, [4, 5]), (20, 8, [7, 6, 7]), (3, 1, [1, 1, 1])]
)
def test_packs_are_few_and_even(members, largest, sizes):
    nodes = StageTree.build(run((1, 0.1), trunk=str(k)) for k in range(members)).roots
    packs = even_packs(nodes, largest)
    assert sorted(map(len, packs)) == sorted(sizes)
    assert [node for pack in packs for node in pack] == list(nodes)
