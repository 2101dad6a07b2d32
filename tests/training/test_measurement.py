"""Measuring real steps: what comes out is checked for its form, never for a time."""

from functools import partial
from pathlib import Path

import pytest
import torch

from stagetree.data import cache
from stagetree.execution.shutdown import Stopped
from stagetree.storage.events import PackBegan
from stagetree.training import throughput
from stagetree.training.epochs import Split, never
from stagetree.tree.stage_tree import StageTree


@pytest.fixture
def measure(bench):
    def call(wanted, **changes):
        (node,) = StageTree.build([bench.run(schedule={"stages": [[1, 0.1]]}, **changes)]).roots
        info = cache.prepare(bench.config().dataset, bench.output_dir)
        loads = []

        def load(spec):
            loads.append(spec)
            return Split.load(Path(info.folder), spec)

        return throughput.look_up_or_measure(bench.output_dir, node, wanted, load, never), loads

    return call


@pytest.mark.parametrize("optimizer", [{"name": "sgd"}, {"name": "adam"}], ids=str)
def test_packs_are_doubled_up_to_the_members_there_are(measure, optimizer):
    own, _ = measure(4, optimizer=optimizer)
    assert sorted(own.steps) == [1, 2, 4]
    assert all(seconds > 0 for seconds in own.steps.values())
    assert own.image_s > 0
    assert own.decides(4)


def test_what_is_known_is_not_measured_again_and_what_is_not_is_added(measure):
    first, loads = measure(2)
    assert len(loads) == 1
    again, loads = measure(2)
    assert (again, loads) == (first, [])
    more, loads = measure(4)
    assert len(loads) == 1
    assert {size: more.steps[size] for size in first.steps} == first.steps
    assert max(more.steps) == 4


def test_measuring_leaves_random_numbers_alone(measure):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    measure(2, model__dropout=0.5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_stop_ends_measuring_and_keeps_nothing(bench):
    def check():
        raise Stopped("by a test")

    run = bench.run()
    (node,) = StageTree.build([run]).roots
    info = cache.prepare(bench.config().dataset, bench.output_dir)
    with pytest.raises(Stopped):
        throughput.look_up_or_measure(bench.output_dir, node, 2, partial(Split.load, Path(info.folder)), check)
    assert throughput.find(bench.output_dir, run.trunk.pack_key) is None


def test_workers_choose_packs_by_what_was_measured(bench):
    runs = [bench.run(seed=seed) for seed in range(6)]
    own = throughput.Throughput({1: 1.0, 2: 1.0, 4: 2.0, 8: 4.0}, image_s=1e-6)
    throughput.keep(bench.output_dir, runs[0].trunk.pack_key, own)
    packs = [event.uids for event in bench.train(*runs, pack_size="auto") if isinstance(event, PackBegan)]
    assert {len(uids) for uids in packs} == {2}
