"""Which unit a worker takes that is bound to none."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from stagetree.storage.unit_files import mark_ended, take_unit

AFTER = {"trunk": (), "whole": (), "left": ("trunk",), "right": ("trunk",)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "units").mkdir()
    return tmp_path


def nobody(unit_id):
    return False


def test_units_are_taken_once_each_in_their_order(folder):
    assert [take_unit(folder, {"a": (), "b": ()}, nobody) for _ in range(3)] == ["a", "b", None]


def test_what_waits_for_a_busy_unit_is_left_until_that_has_ended(folder):
    busy = {"trunk"}
    assert [take_unit(folder, AFTER, busy.__contains__) for _ in range(4)] == ["trunk", "whole", "", ""]
    mark_ended(folder, "trunk")
    assert [take_unit(folder, AFTER, busy.__contains__) for _ in range(3)] == ["left", "right", None]


def test_what_waits_for_a_dead_worker_is_taken_all_the_same(folder):
    """It trains what is missing itself."""
    assert [take_unit(folder, AFTER, nobody) for _ in range(4)] == ["trunk", "whole", "left", "right"]


def test_no_unit_is_taken_twice_however_many_ask_at_once(folder):
    after = {f"{number:03d}": () for number in range(200)}
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take_unit(folder, after, nobody), range(300)))
    assert sorted(filter(None, taken)) == sorted(after)
