"""State on disk: event logs and checkpoints, whole, torn and damaged."""

import contextlib
import json

import pytest
import torch
from trunks import trunk

from stagetree.errors import InputError
from stagetree.storage import checkpoints
from stagetree.storage.checkpoints import Record
from stagetree.storage.event_log import EventLog, EventReader
from stagetree.storage.events import EpochEnded, Note, StateReached, UnitBegan, UnitEnded
from stagetree.storage.files import write_atomic

EVENTS = [EpochEnded("a", {"epoch": 1, "train/loss": 0.1}), StateReached("ä")]


def write(folder, *events, name="0000"):
    log = EventLog(folder, name)
    log.append(*events)
    log.close()
    return next(path for path in folder.iterdir() if path.name.startswith(name))


def test_events_are_read_as_they_were_written_and_once(tmp_path):
    reader = EventReader(tmp_path)
    assert list(reader.read()) == []
    write(tmp_path, *EVENTS)
    assert list(reader.read()) == EVENTS
    write(tmp_path, EVENTS[0], name="0001")
    assert list(reader.read()) == [EVENTS[0]]
    assert list(reader.read()) == []


def test_a_log_cut_off_at_any_byte_gives_the_whole_lines_before(tmp_path):
    path = write(tmp_path, *EVENTS)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert list(EventReader(tmp_path).read()) == EVENTS[: size >= first]


def test_the_log_of_a_unit_that_has_ended_is_not_looked_at_again(tmp_path):
    log = EventLog(tmp_path, "0000")
    log.append(UnitBegan("0000", 1, "host", 0.0))
    reader = EventReader(tmp_path)
    assert [type(event) for event in reader.read()] == [UnitBegan]
    log.append(UnitEnded("0000", 1.0))
    assert [type(event) for event in reader.read()] == [UnitEnded]
    log.append(Note("more"))
    assert list(reader.read()) == []
    log.close()


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path):
    path = write(tmp_path, *EVENTS)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    reader = EventReader(tmp_path)
    assert list(reader.read()) == EVENTS[:1]
    path.write_bytes(content)
    assert list(reader.read()) == EVENTS[1:]


def test_a_flipped_byte_in_a_log_is_never_taken_for_an_event(tmp_path):
    path = write(tmp_path, *EVENTS)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):  # refused; or the last line, which a flipped line end leaves unfinished
            assert list(EventReader(tmp_path).read()) in (EVENTS[:1], [])


# ---------------------------------------------------------------- checkpoints

WEIGHTS = {"0.weight": torch.arange(6.0).view(3, 2), "0.bias": torch.tensor([1.0, 2.0, 3.0])}
HISTORY = ({"epoch": 0, "val/acc": 0.1}, {"epoch": 1, "val/acc": 0.5})


def save(folder, uid="a" * 64, **changes):
    values = {"trunk": trunk(), "parent": None, "history": HISTORY, "test": {"test/acc": 0.5}} | changes
    return checkpoints.save(folder, Record(uid, **values), WEIGHTS, {"0.step": torch.tensor(3.0)})


def test_a_state_is_read_as_it_was_saved(tmp_path):
    saved = save(tmp_path)
    record, weights, optimizer = checkpoints.load(tmp_path, "a" * 64)
    assert record == saved
    assert record.history == HISTORY
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())
    assert optimizer["0.step"] == 3
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_what_is_not_there_is_none_or_told(tmp_path):
    assert checkpoints.read_record(tmp_path, "b") is None
    with pytest.raises(InputError, match=r"b\.json: the checkpoint is missing"):
        checkpoints.load(tmp_path, "b")


def test_finished_tells_states_from_those_with_final_figures(tmp_path):
    save(tmp_path, "a" * 64)
    save(tmp_path, "b" * 64, test=None)
    done = checkpoints.finished(tmp_path)
    assert (done.states, done.tested) == ({"a" * 64, "b" * 64}, {"a" * 64})


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused_by_name_whatever_byte_it_is(tmp_path, suffix, damage):
    save(tmp_path)
    path = tmp_path / ("a" * 64 + suffix)
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
            checkpoints.load(tmp_path, "a" * 64)
        assert str(path) in str(error.value)


def test_the_digest_of_weights_is_over_names_shapes_and_bits():
    digest = checkpoints.weights_digest(WEIGHTS)
    assert digest == checkpoints.weights_digest(dict(reversed(WEIGHTS.items())))
    others = [
        {**WEIGHTS, "0.bias": torch.tensor([1.0, 2.0, 3.0 + 2**-21])},
        {**WEIGHTS, "0.weight": torch.arange(6.0).view(2, 3)},
        {"1.weight": WEIGHTS["0.weight"], "0.bias": WEIGHTS["0.bias"]},
    ]
    assert len({digest, *map(checkpoints.weights_digest, others)}) == 4


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
    _, body = (tmp_path / ("a" * 64 + ".json")).read_text().split("\n", 1)
    assert json.loads(body)["test"] == {"test/acc": 0.5}
