"""What is known of a machine's throughput, and which packs follow from it."""

import pytest
from trunks import trunk

from stagetree.training import throughput
from stagetree.training.throughput import Throughput

SHAPE = trunk().pack_key


def measured(*shares):
    """Milliseconds a member in packs of 1, 2, 4 and so on."""
    return Throughput({2**i: 2**i * share / 1000 for i, share in enumerate(shares)}, image_s=1e-6)


@pytest.mark.parametrize(
    ("shares", "best"),
    [
        ([9], 1),
        ([9, 7, 5, 4], 8),
        ([9, 7, 5, 4.9, 5.5], 4),  # 2 % are not worth twice the pack
        ([9, 9.1, 5], 4),  # one bad measurement stops nothing
        ([9, 9, 9], 1),
    ],
)
def test_the_best_size_is_the_smallest_that_is_nearly_as_good_as_any(shares, best):
    assert measured(*shares).best_size == best


def test_measuring_ends_when_two_sizes_were_no_better_or_there_are_no_more_members():
    assert not measured(9, 7).decides(8)
    assert measured(9, 7).decides(2)
    assert not measured(9, 7, 7).decides(8)
    assert measured(9, 7, 7, 7).decides(100)


def test_a_model_that_fills_a_core_is_not_tried_twice():
    assert measured(25, 26).decides(100)
    assert not measured(25, 20).decides(100)


def test_a_step_of_any_size_is_estimated_from_its_neighbours():
    own = measured(9.0, 7.0, 5.0)
    assert own.step_s(1) == 0.009
    assert own.step_s(2) == 0.014
    assert own.step_s(3) == pytest.approx((0.014 + 0.020) / 2)
    assert own.step_s(8) == pytest.approx(0.040)


def test_measurements_are_kept_by_shape(tmp_path):
    assert throughput.find(tmp_path, SHAPE) is None
    throughput.keep(tmp_path, SHAPE, measured(9, 7))
    assert throughput.find(tmp_path, SHAPE) == measured(9, 7)
    assert throughput.find(tmp_path, trunk(n_params=1001).pack_key) is None


def test_another_machine_is_measured_anew(tmp_path, monkeypatch):
    throughput.keep(tmp_path, SHAPE, measured(9, 7))
    monkeypatch.setattr("platform.node", lambda: "another")
    assert throughput.find(tmp_path, SHAPE) is None


def test_a_damaged_file_counts_as_absent(tmp_path):
    throughput.keep(tmp_path, SHAPE, measured(9, 7))
    (path,) = (tmp_path / "speeds").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole.replace(b"9", b"8", 1), b""):
        path.write_bytes(damaged)
        assert throughput.find(tmp_path, SHAPE) is None


def test_packs_fit_into_memory():
    assert throughput.most_members(trunk(n_params=1000).pack_key, 50) == 50
    assert throughput.most_members(trunk(n_params=10**7).pack_key, 50) == 6
    assert throughput.most_members(trunk(n_params=10**9).pack_key, 50) == 1
    assert throughput.most_members(trunk(n_params=1).pack_key, 10**6) == throughput.LARGEST
