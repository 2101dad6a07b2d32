"""Checkpoints: saved, found, damaged and removed; and how files are written."""

import json
import os
import time

import numpy as np
import pytest
import torch
from trunks import trunk

from stagetree.errors import InputError
from stagetree.storage import checkpoints
from stagetree.storage.files import remove_leftovers, write_atomic
from stagetree.tree.stage_tree import Finished

WEIGHTS = {"0.weight": torch.arange(6.0).view(3, 2), "0.bias": torch.tensor([1.0, 2.0, 3.0])}
OPTIMIZER = {"0.step": torch.tensor(3.0)}
HISTORY = ({"epoch": 0, "val/acc": 0.1}, {"epoch": 1, "val/acc": 0.5})
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def save(folder, uid=A, *, weights=WEIGHTS, optimizer=OPTIMIZER, **changes):
    values = {"trunk": trunk(), "parent": None, "history": HISTORY, "test": {"test/acc": 0.5}} | changes
    return checkpoints.save(folder, checkpoints.Record(uid, **values), weights, optimizer)


def test_a_state_is_read_as_it_was_saved(tmp_path):
    saved = save(tmp_path)
    record, weights, optimizer = checkpoints.load(tmp_path, A)
    assert record == saved
    assert record.history == HISTORY
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())
    assert optimizer["0.step"] == 3
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_what_is_not_there_is_none_or_told(tmp_path):
    assert checkpoints.read_record(tmp_path, "b") is None
    with pytest.raises(InputError, match=r"b\.json: the checkpoint is missing"):
        checkpoints.load(tmp_path, "b")


def test_final_metrics_stay_with_the_weights_that_they_were_measured_on(tmp_path):
    save(tmp_path)
    assert save(tmp_path, test=None).test == {"test/acc": 0.5}
    assert save(tmp_path, test={"test/acc": 0.25}).test == {"test/acc": 0.25}
    other = {**WEIGHTS, "0.bias": torch.zeros(3)}
    assert save(tmp_path, weights=other, test=None).test is None


def test_a_network_without_optimizer_state_has_no_file_for_it(tmp_path):
    record = save(tmp_path, optimizer={})
    assert list(record.files) == [f"{A}.safetensors"]
    assert checkpoints.load(tmp_path, A)[2] == {}


def test_weights_are_read_without_torch_as_the_same_bits(tmp_path):
    saved = save(tmp_path)
    record, weights = checkpoints.load_weights(tmp_path, A)
    assert record == saved
    assert {type(value) for value in weights.values()} == {np.ndarray}
    assert checkpoints.weights_digest(weights) == record.weights_sha256


def age(path, seconds):
    """Make a file older."""
    now = time.time()
    os.utime(path, (now - seconds, now - seconds))


def test_a_state_is_found_if_it_is_whole_and_young_enough(tmp_path):
    record, told = save(tmp_path), []
    path = tmp_path / f"{A}.json"
    age(path, 100)
    written = path.stat().st_mtime
    assert checkpoints.find(tmp_path, A) == record
    assert checkpoints.find(tmp_path, A, since=written) == record
    assert checkpoints.find(tmp_path, A, since=written + 0.01) is None
    assert checkpoints.find(tmp_path, B, on_damage=told.append) is None
    assert told == []
    path.write_bytes(path.read_bytes()[:-10])
    assert checkpoints.find(tmp_path, A, on_damage=told.append) is None
    assert [error.uid for error in told] == [A]
    assert str(told[0]) == f"{path}: the checkpoint is damaged (delete it; its epochs are trained again)"


def test_damage_is_said_of_the_first_file_that_a_record_does_not_vouch_for(tmp_path):
    record = save(tmp_path)
    assert checkpoints.damage(tmp_path, record) is None
    path = tmp_path / f"{A}.optimizer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert checkpoints.damage(tmp_path, record).what == f"{path}: the checkpoint is damaged"
    path.unlink()
    error = checkpoints.damage(tmp_path, record)
    assert (error.uid, error.what) == (A, f"{path}: the checkpoint is missing")
    path.write_bytes(content)
    assert checkpoints.damage(tmp_path, record) is None


def test_finished_tells_states_from_those_with_final_metrics(tmp_path):
    assert checkpoints.finished(tmp_path / "none") == Finished()
    save(tmp_path, A)
    save(tmp_path, B, test=None)
    done = checkpoints.finished(tmp_path)
    assert (done.states, done.tested) == ({A, B}, {A})
    assert C not in done.states
    assert (len(done.states), len(done.tested)) == (2, 1)


def test_finished_passes_over_what_is_old_and_what_is_left_out(tmp_path):
    for uid in (A, B, C):
        save(tmp_path, uid)
    age(tmp_path / f"{A}.json", 100)
    done = checkpoints.finished(tmp_path, since=time.time() - 50, without={B})
    assert (done.states, done.tested) == ({C}, {C})


def test_finished_passes_over_what_is_damaged_and_says_so_once(tmp_path):
    for uid in (A, B, C):
        save(tmp_path, uid)
    (tmp_path / f"{A}.safetensors").write_bytes(b"")
    (tmp_path / f"{B}.json").write_bytes(b"")
    told = []
    done = checkpoints.finished(tmp_path, on_damage=told.append)
    for _ in range(2):
        assert (done.states, done.tested) == ({C}, {C})
    assert sorted(error.uid for error in told) == [A, B]


def test_a_removed_state_leaves_nothing_and_its_neighbours(tmp_path):
    save(tmp_path, A)
    save(tmp_path, B)
    checkpoints.remove(tmp_path, A)
    checkpoints.remove(tmp_path, A)
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {B}
    assert checkpoints.finished(tmp_path).states == {B}


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused_by_name_whatever_byte_it_is(tmp_path, suffix, damage):
    save(tmp_path)
    path = tmp_path / (A + suffix)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(content[:position] if damage == "cut" else damaged)
        if suffix == ".json" and content[:position] + b"\n" == content:
            continue  # the last line end says nothing
        if suffix == ".json" and damage == "flip" and position == len(content) - 1:
            continue
        with pytest.raises(InputError) as error:
            checkpoints.load(tmp_path, A)
        assert str(path) in str(error.value)


def test_the_digest_of_weights_is_over_names_shapes_and_bits():
    digest = "7fcde2bef6b364c0a4ce4074eb5a0124b4427847e9db61dca1807b39922dd7de"  # in records of every version
    assert checkpoints.weights_digest(WEIGHTS) == digest
    assert checkpoints.weights_digest(dict(reversed(WEIGHTS.items()))) == digest
    assert checkpoints.weights_digest({name: value.numpy() for name, value in WEIGHTS.items()}) == digest
    others = [
        {**WEIGHTS, "0.bias": torch.tensor([1.0, 2.0, 3.0 + 2**-21])},
        {**WEIGHTS, "0.bias": WEIGHTS["0.bias"].double()},
        {**WEIGHTS, "0.weight": torch.arange(6.0).view(2, 3)},
        {"1.weight": WEIGHTS["0.weight"], "0.bias": WEIGHTS["0.bias"]},
    ]
    assert len({digest, *map(checkpoints.weights_digest, others)}) == 5


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_a_record_is_readable_json_below_its_digest(tmp_path):
    save(tmp_path)
    _, body = (tmp_path / f"{A}.json").read_text().split("\n", 1)
    assert json.loads(body)["test"] == {"test/acc": 0.5}


def test_what_killed_writers_left_aside_goes_when_it_is_old(tmp_path):
    young, old, state = [tmp_path / name for name in (".young.json.1", ".old.json.1", "state.json")]
    folder = tmp_path / ".artifacts-old"
    folder.mkdir()
    for path in (young, old, state, folder / "curves.svg"):
        path.write_text("{}")
    for path in (old, state, folder):
        age(path, 4000)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".young.json.1", "state.json"]
    remove_leftovers(tmp_path, older_than_s=0)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
