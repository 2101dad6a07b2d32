"""The stage tree: what is merged, what is cut, and who identifies it."""

import json
import random
import time
from itertools import product

import pytest
import trunks

from stagetree.tree.runs import Stage, prefix_uid
from stagetree.tree.stage_tree import Finished, StageTree, nodes_from_json, nodes_to_json, path_to
from stagetree.tree.units import cut_units


def run(*stages, trunk="t"):
    return trunks.run(*stages, data=trunk)


def lines(tree):
    """Each node as `(epochs trained here, lr, depth in stages)`."""
    return [(node.epochs, node.lr, len(node.stages)) for node in tree.walk()]


def finished(*runs, tested=True):
    uids = frozenset(one.uid for one in runs)
    return Finished(states=uids, tested=uids if tested else frozenset())


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
    runs = [run((a, x), (b, y), trunk=t) for a, x, b, y, t in product((1, 2), (0.1, 0.2), (1, 3), (0.1,), "tu")]
    expected = StageTree.build(runs)
    for seed in range(5):
        shuffled = random.Random(seed).sample(runs * 2, 2 * len(runs))
        assert StageTree.build(shuffled) == expected


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
    nodes = list(StageTree.build([run((2, 0.1), (1, 0.01)), run((3, 0.1))]).walk())
    values = json.loads(json.dumps(nodes_to_json(nodes)))
    copies = nodes_from_json(values)
    assert nodes_to_json(copies) == values
    assert [(one.stages, one.uid, one.first_epoch) for one in copies] == [
        (one.stages, one.uid, one.first_epoch) for one in nodes
    ]


def test_the_uids_on_a_way_are_those_of_its_prefixes():
    one = run((3, 0.1), (1, 1e-05), (2, 1), trunk="é")
    for depth, stage in enumerate(one.stages, start=1):
        for epochs in range(1, stage.epochs + 1):
            prefix = (*one.stages[: depth - 1], Stage(epochs, stage.lr))
            assert one.prefixes.uid(depth, epochs) == prefix_uid(one.trunk.json, prefix)


def test_ten_thousand_stages_are_planned_cut_and_written_down_in_seconds():
    """A second on a quiet machine. By `prefix_uid` at each stage it takes minutes, recursively it ends in an error."""
    shared = [(1, 1 / (k + 1)) for k in range(9_999)]
    runs = [run(*shared, (1, lr)) for lr in (0.1, 0.2)] + [run(*shared[:5_000])]
    started = time.monotonic()
    tree = StageTree.build(runs)
    assert (tree.epochs, sum(node.final for node in tree.walk())) == (10_001, 3)
    half = Finished(states={runs[0].prefixes.uid(6_000, 1), runs[2].uid}, tested={runs[2].uid})
    left = tree.remaining(half)
    assert (left.epochs, left.roots[0].first_epoch) == (4_001, 6_000)
    last = max(tree.walk(), key=lambda node: node.depth)
    assert [one.depth for one in path_to(last, half)] == list(range(6_001, 10_001))
    units = cut_units(tree, 2, {tree.roots[0].pack_key: 1.0})
    assert sum(len(list(root.walk())) for unit in units for root in unit) == 10_001
    assert len(json.dumps(nodes_to_json(tree.walk()))) < 20_000_000
    assert time.monotonic() - started < 20
