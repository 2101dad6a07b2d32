"""The estimated wall time: arithmetic on known throughputs. (How near it comes is measured by `make bench`.)"""

import pytest
import trunks

from stagetree.data.cache import DataInfo
from stagetree.planning import estimate
from stagetree.training.throughput import Throughput
from stagetree.tree.stage_tree import StageTree
from stagetree.tree.units import cut_units

INFO = DataInfo("", "d", "x", (1, 4, 4), ("a", "b"), n_train=100, n_test=50, scale=255.0)
SETTINGS = {"val_size": 20, "batch_size": 10}
SHAPE = trunks.trunk(**SETTINGS).pack_key
MEASURED = Throughput({1: 1.0, 2: 1.5, 4: 2.5}, image_s=0.01)
STEPS = 8  # of an epoch: 80 images by 10


def seconds(runs, workers=1, pack_size="auto", measured=True):
    units = cut_units(StageTree.build(runs), workers, {SHAPE: 1.0})
    return estimate.seconds(units, workers, {SHAPE: MEASURED} if measured else {}, {"d": INFO}, pack_size)


def run(trunk, *stages):
    return trunks.run(*stages, seed=ord(trunk), **SETTINGS)


def test_one_run():
    # two epochs, the 20 images for validation before and after each, and the 50 of the test set
    expected = estimate.START_S + 2 * STEPS * 1.0 + 0.01 * (3 * 20 + 50)
    assert seconds([run("a", (2, 0.1))]) == pytest.approx(expected)


def test_equal_shapes_are_packed_as_workers_would():
    runs = [run(name, (1, 0.1)) for name in "abcd"]
    evaluated = 4 * 0.01 * (2 * 20 + 50)
    assert seconds(runs) == pytest.approx(estimate.START_S + STEPS * 2.5 + evaluated)
    assert seconds(runs, pack_size=2) == pytest.approx(estimate.START_S + STEPS * 2 * 1.5 + evaluated)
    assert seconds(runs, workers=2) == pytest.approx(estimate.START_S + STEPS * 1.5 + evaluated / 2)


def test_a_shared_prefix_counts_once():
    runs = [run("a", (2, 0.1), (1, lr)) for lr in (0.01, 0.02)]
    evaluated = 0.01 * 3 * 20 + 2 * 0.01 * (20 + 50)
    assert seconds(runs) == pytest.approx(estimate.START_S + STEPS * (2 * 1.0 + 1.5) + evaluated)


def test_nothing_to_train_takes_no_time_and_what_was_never_measured_is_unknown():
    assert seconds([]) == 0
    assert seconds([run("a", (1, 0.1))], measured=False) is None


def test_work_is_divided_by_seconds_where_all_shapes_were_measured():
    wide = trunks.trunk(**SETTINGS | {"batch_size": 20}).pack_key
    assert estimate.epoch_costs([SHAPE, wide, SHAPE], {SHAPE: MEASURED, wide: MEASURED}, {"d": INFO}) == {
        SHAPE: STEPS * 2.5 / 4,
        wide: STEPS / 2 * 2.5 / 4,
    }


def test_work_is_divided_by_what_is_multiplied_where_they_were_not():
    plain = trunks.trunk(n_params=7).pack_key
    adam = trunks.trunk(n_params=7, optimizer={"name": "adam"}).pack_key
    assert estimate.epoch_costs([plain, adam], {plain: MEASURED}, {"d": INFO}) == {plain: 700, adam: 1050}


@pytest.mark.parametrize(
    ("workers", "ends"),
    [
        (1, 10 + 35 + 15 + 15),
        (2, 40),  # 10, then both of what waits for it, while the other worker is at the 35; in waves it would be 50
        (3, 35),
        (9, 35),
    ],
)
def test_a_free_worker_takes_the_first_unit_that_can_start(workers, ends):
    assert estimate.makespan([10, 35, 15, 15], [set(), set(), {0}, {0}], workers) == ends


def test_a_chain_of_units_takes_as_long_as_all_of_them():
    assert estimate.makespan([1, 2, 3], [set(), {0}, {1}], 5) == 6
    assert estimate.makespan([], [], 5) == 0
