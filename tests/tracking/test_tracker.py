"""Events -> MLflow on a real SQLite store: live, after a crash of the writer, and after an outage."""

import json
import math
import shutil
import sqlite3
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sweeps import PATIENCE_S, wait_until

from stagetree.cli.progress import ProgressDisplay
from stagetree.data import cache
from stagetree.planning import descriptions
from stagetree.storage import checkpoints
from stagetree.storage.events import EpochEnded
from stagetree.tracking import audit, store
from stagetree.tracking.connection import TrackingStore
from stagetree.tracking.follower import EventFollower, in_a_line
from stagetree.tracking.tracker import SweepRecord, Tracker
from stagetree.tree.stage_tree import StageTree


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A database with its schema, which takes seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Recorded:
    """Two runs that share a prefix and one that diverges, trained, and a store that knows nothing of them yet."""

    def __init__(self, bench, empty_store):
        self.bench = bench
        changes = [
            {"schedule": {"stages": stages}} for stages in ([[2, 0.1], [1, 0.01]], [[2, 0.1], [2, 0.01]], [[2, 1e38]])
        ]
        configs = [bench.config(**change) for change in changes]
        runs = {run.uid: run for run in (bench.run(**change) for change in changes)}
        self.good, self.bad = list(runs)[:2], list(runs)[2]
        self.events = bench.train(*runs.values())
        info = cache.prepare(configs[0].dataset, bench.output_dir)
        configs, infos = dict(zip(runs, configs, strict=True)), dict.fromkeys(runs, info)
        tree, commands = StageTree.build(runs.values()), dict.fromkeys(runs, "stagetree train")
        self.entries = descriptions.describe(runs, configs, infos, tree, commands)
        shutil.copy(empty_store, bench.output_dir / "mlflow.db")
        self.uri = f"sqlite:///{bench.output_dir / 'mlflow.db'}"
        self.store = TrackingStore(self.uri, "e", bench.output_dir)

    def tracker(self, *, runs=None, since=0.0, **changes) -> Tracker:
        sweep = SweepRecord("s", "l", "c", self.entries if runs is None else runs)
        return Tracker.open(self.store, replace(sweep, **changes), since=since)

    def check(self):
        """MLflow holds each run once, with each epoch once, and says how it ended."""
        client = MlflowClient(self.uri)
        frame = store.load(self.uri, "e")
        expected = dict.fromkeys(self.good, "finished") | {self.bad: "failed"}
        assert dict(zip(frame["uid"], frame["status"], strict=True)) == expected
        assert "became nan in epoch 1" in frame.set_index("uid")["reason"][self.bad]
        for row in frame[frame["status"] == "finished"].itertuples():
            record = checkpoints.read_record(self.bench.checkpoints, row.uid)
            for name in ("train/loss", "val/acc", "lr"):
                history = client.get_metric_history(row.run_id, name)
                expected = [(line["epoch"], line[name]) for line in record.history if name in line]
                assert sorted((metric.step, metric.value) for metric in history) == expected
            assert row.test_acc == record.test["test/acc"]
        parents = client.search_runs(["1"], "tags.`stagetree.kind` = 'sweep'")
        assert len(parents) == 1


def entries_of(bench, *runs_changes):
    runs = {run.uid: run for run in (bench.run(**changes) for changes in runs_changes)}
    configs = {uid: bench.config(**changes) for uid, changes in zip(runs, runs_changes, strict=True)}
    info = cache.prepare(next(iter(configs.values())).dataset, bench.output_dir)
    return runs, descriptions.describe(
        runs, configs, dict.fromkeys(runs, info), StageTree.build(runs.values()), dict.fromkeys(runs, "stagetree train")
    )


@pytest.mark.parametrize("seen", [0, 1, 3, None], ids=lambda seen: f"the writer dies after {seen} events")
@pytest.mark.parametrize("stages", [[[2, 0.1], [3, 0.01]], [[4, 0.1]]], ids=["a new stage", "a longer stage"])
def test_a_run_that_goes_on_from_a_finished_one_has_every_epoch(bench, empty_store, stages, seen):
    """Each epoch is flushed as it comes, as those of long runs are."""
    shutil.copy(empty_store, bench.output_dir.parent / "mlflow.db")
    place = TrackingStore(f"sqlite:///{bench.output_dir.parent / 'mlflow.db'}", "e", bench.output_dir)
    sweeps = ([[2, 0.1]], None), (stages, seen)
    for number, (own_stages, seen_here) in enumerate(sweeps):
        runs, entries = entries_of(bench, {"schedule": {"stages": own_stages}})
        sweep = SweepRecord(str(number), "l", "c", entries)
        events = bench.train(*runs.values())
        tracker = Tracker.open(place, sweep)
        take(tracker, [event for event in events if isinstance(event, EpochEnded)][:seen_here])
        if seen_here is None:
            take(tracker, events)
        else:
            tracker = Tracker.open(place, sweep)
        tracker.close()
    found = place.read()
    assert [run.status for run in found] == ["FINISHED"] * 2
    for run, metrics, differences in audit.examine(place, found, {}):
        assert not differences, str(differences)
        assert [step for step, _ in metrics["train/loss"]] == list(range(1, len(metrics["train/loss"]) + 1))
        assert len(metrics["train/loss"]) == sum(json.loads(run.params["epochs"]))


@pytest.mark.parametrize("spoilt", ["doubled", "different", "beyond the end"])
def test_what_mlflow_cannot_take_back_is_recorded_anew_and_superseded(recorded, spoilt):
    tracker = recorded.tracker()
    take(tracker, recorded.events)
    tracker.close()
    client = MlflowClient(recorded.uri)
    run = next(run for run in store.read(recorded.uri, "e") if run.tags.get("stagetree.uid") == recorded.good[0])
    step, value = {"doubled": (3, run.metrics["lr"]), "different": (3, 7.0), "beyond the end": (9, 7.0)}[spoilt]
    if spoilt == "different":
        with sqlite3.connect(recorded.uri.removeprefix("sqlite:///")) as connection:
            connection.execute("update metrics set value = 7 where key = 'lr' and run_uuid = ?", [run.run_id])
        connection.close()
    else:
        client.log_metric(run.run_id, "lr", value, timestamp=1, step=step)
    recorded.tracker().close()
    recorded.check()
    assert client.get_run(run.run_id).data.tags["stagetree.superseded"] == "true"


def test_a_writer_that_dies_before_it_tells_of_what_is_superseded_leaves_one_record_of_each(recorded):
    tracker = recorded.tracker()
    take(tracker, recorded.events)
    tracker.close()
    before = {run.run_id for run in store.read(recorded.uri, "e")}
    crashed = recorded.tracker(since=1.0, launch="later")
    crashed.destination.client.set_tag = lambda *_: None
    take(crashed, recorded.events)
    crashed.stop(math.inf)
    recorded.check()
    good = [run.run_id for run in store.read(recorded.uri, "e") if run.status == "FINISHED"]
    assert before.isdisjoint(good)


def test_a_fresh_launch_that_connects_again_goes_on_with_its_own_records_and_supersedes_the_others(recorded):
    for launch, since in (("before", 0.0), ("fresh", 1.0), ("fresh", 1.0)):
        tracker = recorded.tracker(since=since, launch=launch)
        take(tracker, recorded.events)
        tracker.close()
    recorded.check()
    runs = MlflowClient(recorded.uri).search_runs(["1"], "tags.`stagetree.kind` = 'run'")
    launches = Counter((run.data.tags["stagetree.uid"], run.data.tags["stagetree.launch"]) for run in runs)
    assert [launches[uid, launch] for uid in recorded.good for launch in ("before", "fresh")] == [1] * 4


@pytest.fixture
def recorded(bench, empty_store) -> Recorded:
    return Recorded(bench, empty_store)


def take(tracker, events):
    """Let a tracker write what these events say."""
    for event in events:
        tracker.on_event(event)
        tracker.settle()


def test_events_become_runs(recorded):
    tracker = recorded.tracker()
    take(tracker, recorded.events)
    tracker.close()
    recorded.check()


@pytest.mark.parametrize("seen", [2, 5, 9])
def test_events_are_replayed_after_a_crash_of_the_writer_without_gap_or_double(recorded, seen):
    crashed = recorded.tracker()
    take(crashed, recorded.events[:seen])
    tracker = recorded.tracker()
    take(tracker, recorded.events)
    tracker.close()
    recorded.check()


def test_what_a_dead_writer_left_running_is_killed_or_finished_at_the_next_start(recorded):
    crashed = recorded.tracker()
    take(crashed, recorded.events[:4])
    assert set(store.load(recorded.uri, "e")["status"]) == {"running"}
    recorded.tracker().close()  # no events at all: the checkpoints say what is finished
    assert set(store.load(recorded.uri, "e").set_index("uid")["status"][recorded.good]) == {"finished"}
    assert "running" not in set(store.load(recorded.uri, "e")["status"])


def test_a_second_sweep_records_no_finished_run_again(recorded):
    for _ in range(2):
        tracker = recorded.tracker()
        for event in recorded.events:
            tracker.on_event(event)
        tracker.close()
    recorded.check()


def test_training_is_recorded_after_an_outage_of_tracking(recorded, capsys):
    """The first connection breaks half way; everything is replayed from the logs at the end."""
    attempts = []

    def open_tracker(at_once):
        tracker = recorded.tracker()
        attempts.append(tracker)
        if len(attempts) == 1:
            real = tracker.destination.client.log_batch
            calls = []

            def failing(*args, **kwargs):
                calls.append(1)
                if len(calls) > 3:
                    raise ConnectionError("store is down")
                return real(*args, **kwargs)

            tracker.destination.client.log_batch = failing
        return tracker

    folder = recorded.bench.output_dir / "launch1" / "events"
    with EventFollower(folder, ProgressDisplay(epochs=1, names={}), open_tracker) as follower:
        pass
    assert follower.tracking_error is None
    assert len(attempts) == 2
    assert "tracking failed: store is down" in capsys.readouterr().err
    recorded.check()


def test_a_slow_store_holds_up_no_display(recorded):
    answers = threading.Event()

    def open_tracker(at_once):
        tracker = recorded.tracker()
        real = tracker.destination.client.log_artifacts
        tracker.destination.client.log_artifacts = lambda *args: answers.wait(PATIENCE_S) and real(*args)
        return tracker

    folder = recorded.bench.output_dir / "launch1" / "events"
    progress = ProgressDisplay(epochs=1, names=dict.fromkeys(recorded.good, "a run"))
    with EventFollower(folder, progress, open_tracker):
        wait_until(lambda: progress.status().startswith("2/2 runs done"))
        assert not answers.is_set()
        answers.set()
    recorded.check()


def test_an_outage_that_lasts_is_told_and_nothing_raises(recorded):
    def broken(at_once):
        raise ConnectionError("no store")

    folder = recorded.bench.output_dir / "launch1" / "events"
    with EventFollower(folder, ProgressDisplay(epochs=1, names={}), broken) as follower:
        pass
    assert "no store" in str(follower.tracking_error)


def statuses(recorded):
    client = MlflowClient(recorded.uri)
    return {run.data.tags["stagetree.kind"]: run.info.status for run in client.search_runs(["1"])}


def test_what_another_sweep_left_running_is_ended_at_the_next_start_but_not_what_lives(recorded):
    """The dead process is played by one whose locks are given back, which is what the kernel does for it."""
    first = recorded.tracker(runs=recorded.entries[:1], sweep_id="first")
    take(first, recorded.events[:4])
    assert statuses(recorded) == {"sweep": "RUNNING", "run": "RUNNING"}
    living = recorded.tracker(runs=recorded.entries[2:], sweep_id="second")
    assert statuses(recorded)["run"] == "RUNNING"
    for kind, name in (("sweep", "first"), ("run", recorded.entries[0].uid)):
        first.ownership.release(kind, name)
    living.ownership.end_dead(living.destination.client, living.destination.experiment_id)
    parents = [
        run for run in MlflowClient(recorded.uri).search_runs(["1"]) if run.data.tags["stagetree.kind"] == "sweep"
    ]
    assert {run.data.tags["stagetree.sweep"]: run.info.status for run in parents}["first"] == "KILLED"
    assert statuses(recorded)["run"] == "KILLED"


@pytest.mark.parametrize(
    ("tags", "ended"),
    [
        ({"stagetree.writer": "another-machine /nowhere", "stagetree.uid": "x"}, False),
        ({"stagetree.writer": "", "stagetree.uid": "x"}, False),
        ({"stagetree.writer": "HERE /nowhere", "stagetree.uid": "x"}, True),
    ],
    ids=["another machine", "unknown", "a folder that is gone"],
)
def test_runs_of_other_writers_are_ended_only_if_they_are_known_to_be_dead(recorded, tags, ended):
    import socket

    recorded.tracker().close()
    client = MlflowClient(recorded.uri)
    tags = {name: value.replace("HERE", socket.gethostname()) for name, value in tags.items()}
    run = client.create_run("1", tags={"stagetree.kind": "run", **tags})
    recorded.tracker().close()
    assert client.get_run(run.info.run_id).info.status == ("KILLED" if ended else "RUNNING")


def test_a_writer_that_died_before_it_described_a_run_leaves_no_gap(recorded):
    crashed = recorded.tracker()
    for run in crashed._writers.values():
        run._describe = lambda: None
    take(crashed, recorded.events[:4])
    tracker = recorded.tracker()
    take(tracker, recorded.events)
    tracker.close()
    recorded.check()
    frame = store.load(recorded.uri, "e")
    assert set(frame["architecture"]) == {"2 layers (8,3)"}


def test_final_figures_are_written_once_though_the_writer_dies_between_them_and_the_end(recorded):
    crashed = recorded.tracker()
    for run in crashed._writers.values():
        run._end = lambda _: None
    take(crashed, recorded.events)
    recorded.tracker().close()
    client = MlflowClient(recorded.uri)
    for row in store.load(recorded.uri, "e").itertuples():
        for name in ("test/loss", "test/acc", "train_seconds", "val/loss"):
            steps = [metric.step for metric in client.get_metric_history(row.run_id, name)]
            assert len(steps) == len(set(steps)), name


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT ...]\n(Background on ...)", "disk is full"),
        ("(raised by autoflush; see below)\n(x.E) disk is full\n[SQL: INSERT ...]", "(x.E) disk is full"),
        ("connection refused\nand a long story", "connection refused"),
        ("", "ValueError"),
    ],
)
def test_what_a_store_says_is_put_in_a_line(said, line):
    assert in_a_line(ValueError(said)).endswith(line)
