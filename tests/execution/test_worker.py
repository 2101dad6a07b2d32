"""What a unit does with a plan that is older than the store."""

import threading
import time

import pytest

from stagetree.errors import Stopped
from stagetree.execution import worker
from stagetree.execution.shutdown import StopWatcher
from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import EpochEnded, Failed, Waiting
from stagetree.storage.locks import output_dir_locks
from stagetree.storage.unit_files import UnitSettings, write_unit
from stagetree.tree.runs import Stage, prefix_uid
from stagetree.tree.stage_tree import StageTree, path_to

STAGES = [[2, 0.05], [3, 0.01]]


@pytest.fixture
def run(bench):
    return bench.run(schedule={"stages": STAGES}, optimizer={"name": "adam"}, model__dropout=0.1)


def epochs(events):
    return [event.epoch for event in events if isinstance(event, EpochEnded) and event.epoch > 0]


def unit(bench, *runs, **settings):
    """Plan as if nothing were there, and write the unit."""
    from stagetree.data import cache

    info = cache.prepare(bench.config().dataset, bench.output_dir)
    bench.launches += 1
    folder = bench.output_dir / f"launch{bench.launches}"
    chosen = UnitSettings(output_dir=str(bench.output_dir), data={info.digest: info.folder}, **settings)
    write_unit(folder, "0000", StageTree.build(runs).roots, chosen)
    return folder


def events(folder):
    return list(EventReader(folder / "events").read())


def test_a_unit_that_is_run_again_trains_nothing_again(bench, run):
    folder = unit(bench, run)
    worker.train_unit(folder, "0000")
    before = bench.bits(run)
    worker.train_unit(folder, "0000")
    assert epochs(events(folder)) == [1, 2, 3, 4, 5]
    assert bench.bits(run) == before


def test_a_unit_goes_on_from_later_states_than_its_plan_knew(bench, other, run):
    other.train(run)
    bench.train(bench.run(schedule={"stages": [[2, 0.05], [1, 0.01]]}, optimizer={"name": "adam"}, model__dropout=0.1))
    folder = unit(bench, run)
    worker.train_unit(folder, "0000")
    assert epochs(events(folder)) == [4, 5]
    assert bench.bits(run) == other.bits(run)


def test_a_state_that_is_gone_is_trained_again_with_what_leads_to_it(bench, other, run):
    other.train(run)
    bench.train(run)
    first, last = [prefix_uid(run.trunk.json, run.stages[:k]) for k in (1, 2)]
    for uid in (first, last):
        checkpoints.remove(bench.checkpoints, uid)
    (node,) = StageTree.build([run]).roots[0].children
    assert [one.uid for one in path_to(node, checkpoints.finished(bench.checkpoints))] == [first, last]
    assert epochs(bench.train(run)) == [1, 2, 3, 4, 5]
    assert bench.bits(run) == other.bits(run)


def test_a_state_that_stays_damaged_fails_with_its_name(bench, run, monkeypatch):
    bench.train(run)
    longer = bench.run(schedule={"stages": [*STAGES, [1, 0.001]]}, optimizer={"name": "adam"}, model__dropout=0.1)
    real = checkpoints.load

    def load(folder, uid):
        if uid == run.uid:
            raise checkpoints.StateError(uid, f"{uid}: a bad sector", "buy a disk")
        return real(folder, uid)

    monkeypatch.setattr(checkpoints, "load", load)
    (failure,) = [event for event in bench.train(longer) if isinstance(event, Failed)]
    assert "twice in a row" in failure.reason
    assert run.uid in failure.reason


def test_what_another_process_trains_is_waited_for_and_taken_over(bench, other, run, monkeypatch):
    """The other process is played by a lock that is not given, until it has trained the first stage."""
    other.train(run)
    locks, busy = output_dir_locks(bench.output_dir), {prefix_uid(run.trunk.json, run.stages[:1])}
    real = locks.take
    monkeypatch.setattr("stagetree.storage.locks.Locks.take", lambda _, name: name not in busy and real(name))
    folder = unit(bench, run)

    def another():
        while not any(isinstance(event, Waiting) for event in events(folder)):
            pass
        for path in other.checkpoints.glob(f"{next(iter(busy))}*"):
            (bench.checkpoints / path.name).write_bytes(path.read_bytes())
        busy.clear()

    bench.checkpoints.mkdir()
    thread = threading.Thread(target=another)
    thread.start()
    worker.train_unit(folder, "0000")
    thread.join()
    assert epochs(events(folder)) == [3, 4, 5]
    assert bench.bits(run) == other.bits(run)


@pytest.mark.parametrize(
    ("quick_s", "nth_check"), [(0.0, 3), (0.0, 16), (0.0, 20), (0.0, 40), (0.0, 55), (1e9, 3), (1e9, 14), (1e9, 27)]
)
def test_a_stopped_unit_keeps_the_last_epoch_and_goes_on_with_the_same_bits(
    bench, other, run, monkeypatch, quick_s, nth_check
):
    """160 pictures are 10 minibatches. A long epoch is broken off and begins again; a quick one is ended."""
    other.train(run)
    monkeypatch.setattr("stagetree.training.trainer.QUICK_S", quick_s)
    folder, calls = unit(bench, run, checkpoint_every_s=3600.0), []
    real = StopWatcher.check

    def check(watch):
        calls.append(1)
        if len(calls) == nth_check:
            watch.reason = "asked to stop"
        real(watch)

    monkeypatch.setattr(StopWatcher, "check", check)
    assert worker.train_unit(folder, "0000").stopped == "asked to stop"
    done = epochs(events(folder))
    assert done != [1, 2, 3, 4, 5]
    monkeypatch.setattr(StopWatcher, "check", real)
    assert epochs(bench.train(run)) == list(range(len(done) + 1, 6))
    assert bench.bits(run) == other.bits(run)
    assert {record.partial for record in records(bench)} == {False}


def records(bench):
    return [checkpoints.read_record(bench.checkpoints, path.stem) for path in bench.checkpoints.glob("*.json")]


def test_a_stop_file_ends_a_unit_before_it_begins(bench, run):
    folder = unit(bench, run)
    (folder / "stop").touch()
    watch = StopWatcher(folder, output_dir_locks(bench.output_dir), "")
    watch.look()
    with pytest.raises(Stopped, match="asked to stop"):
        watch.check()


def test_states_of_before_do_not_count_for_a_fresh_launch(bench, run):
    bench.train(run)
    before = bench.bits(run)
    time.sleep(0.05)
    (bench.output_dir / "now").touch()
    folder = unit(bench, run, since=(bench.output_dir / "now").stat().st_mtime)
    worker.train_unit(folder, "0000")
    assert epochs(events(folder)) == [1, 2, 3, 4, 5]
    assert bench.bits(run) == before


def test_a_prefix_within_a_stage_is_a_path_of_its_own(run):
    tree = StageTree.build([run])
    node = tree.roots[0].children[0]
    inner = prefix_uid(run.trunk.json, (run.stages[0], Stage(1, run.stages[1].lr)))

    class Only:
        states, tested = {inner}, set()

    assert [(one.parent, one.epochs) for one in path_to(node, Only)] == [(inner, 2)]


def test_states_that_vanish_as_soon_as_they_are_kept_fail_their_run(bench, run):
    """Without an end to it, a unit would train them for ever."""
    folder = unit(bench, run, since=time.time() + 3600)
    failed = worker.train_unit(folder, "0000").failed
    assert "is gone again" in failed[run.uid]


def test_a_long_schedule_keeps_few_states_and_forks_from_where_none_is_left_with_the_same_bits(bench, other):
    """Of its 130 stages the first hundred states stay, and the last; a fork at the 121st begins from the hundredth."""
    long = [[1, 0.1 - stage * 5e-4] for stage in range(130)]
    forked = [*long[:120], [2, 0.5]]
    first, second = (bench.run(schedule={"stages": stages}) for stages in (long, forked))
    bench.train(first)
    kept = {record.stem for record in bench.checkpoints.glob("*.json")}
    assert len(kept) == 101
    again = bench.train(second)
    trained = [event for event in again if isinstance(event, EpochEnded)]
    assert len(trained) == 20 + 2
    other.train(first, second, share=False)
    assert [bench.bits(run) for run in (first, second)] == [other.bits(run) for run in (first, second)]
