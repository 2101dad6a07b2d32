"""Every state file, cut off anywhere and with any byte flipped: recovered, or refused with its name; never wrong."""

import shutil
from pathlib import Path

import pytest
from faults import rng
from mlflow import MlflowClient

from stagetree.cli.progress import ProgressDisplay
from stagetree.data import cache
from stagetree.errors import InputError
from stagetree.execution import engine
from stagetree.storage import event_log
from stagetree.storage.events import Failed, StateDamaged
from stagetree.storage.unit_files import read_unit
from stagetree.tracking import store
from stagetree.tracking.connection import TrackingStore
from stagetree.tracking.follower import EventFollower
from stagetree.tracking.tracker import SweepRecord, Tracker

OPTIMIZER = {"name": "adam"}
DAMAGES = ["cut", "flip"]


def damaged(content: bytes, damage: str, random) -> bytes:
    if damage == "cut":
        return content[: random.randrange(len(content))]
    broken = bytearray(content)
    broken[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(broken)


@pytest.fixture
def times(request) -> int:
    return 100 if request.config.option.faults == "full" else 6


@pytest.fixture
def runs(bench):
    """A run, one that goes on from it with its optimizer's state, and one that is at work within a stage."""
    stages = [[2, 0.01]], [[2, 0.01], [1, 0.001]], [[2, 0.01], [3, 0.001]]
    return [
        bench.run(optimizer=OPTIMIZER, schedule={"stages": one, "reset_optimizer": False}, model__dropout=0.1)
        for one in stages
    ]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".optimizer.safetensors"])
def test_checkpoints(request, bench, other, runs, suffix, damage, times, tally):
    """The state that two runs start from is damaged: it is trained again, with a word, and gives the same bits."""
    row, random = tally(f"{damage}: checkpoint {suffix}"), rng(request.config.option.faults_seed)
    other.train(*runs)
    bench.train(runs[0])
    kept = bench.output_dir.with_name("kept")
    shutil.copytree(bench.checkpoints, kept)
    path = bench.checkpoints / (runs[0].uid + suffix)
    content = path.read_bytes()
    for _ in range(times):
        shutil.rmtree(bench.checkpoints)
        shutil.copytree(kept, bench.checkpoints)
        path.write_bytes(damaged(content, damage, random))
        row.injected += 1
        seen = bench.train(*runs)
        told = [event for event in seen if isinstance(event, StateDamaged)]
        assert suffix == ".json" or path.read_bytes() == content
        assert all(path.name in event.reason for event in told)
        assert suffix == ".json" or told
        row.lost += sum(isinstance(event, Failed) for event in seen)
        row.differing += sum(bench.bits(run) != other.bits(run) for run in runs)


@pytest.mark.parametrize("damage", DAMAGES)
def test_units(bench, runs, damage, times, tally, request):
    row, random = tally(f"{damage}: unit"), rng(request.config.option.faults_seed)
    bench.train(*runs)
    folder = bench.output_dir / "launch1"
    path = folder / "units" / "0000.json"
    content, before = path.read_bytes(), bench.bits(runs[0])
    for _ in range(times):
        broken = damaged(content, damage, random)
        if broken + b"\n" == content:
            continue  # the last line end says nothing
        path.write_bytes(broken)
        row.injected += 1
        with pytest.raises(InputError, match="the unit is missing or damaged") as error:
            read_unit(folder, "0000")
        assert str(path) in str(error.value)
        assert str(path) in engine.run_unit(folder, "0000").error
        row.differing += bench.bits(runs[0]) != before


@pytest.mark.parametrize("damage", DAMAGES)
def test_event_logs(bench, runs, damage, times, tally, request):
    row, random = tally(f"{damage}: event log"), rng(request.config.option.faults_seed)
    whole = bench.train(*runs)
    (path,) = (bench.output_dir / "launch1" / "events").iterdir()
    content = path.read_bytes()
    for _ in range(times):
        path.write_bytes(damaged(content, damage, random))
        row.injected += 1
        told = []
        read = list(event_log.EventReader(path.parent, on_damage=told.append).read())
        row.differing += read != whole[: len(read)]
        assert damage == "cut" or len(read) == len(whole) or str(path) in str(told[0]) or len(read) == len(whole) - 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_prepared_data(bench, damage, times, tally, request):
    row, random = tally(f"{damage}: prepared data"), rng(request.config.option.faults_seed)
    dataset = bench.config().dataset
    info = cache.prepare(dataset, bench.output_dir)
    whole = cache.load(Path(info.folder), info.digest)
    kept = {name: getattr(whole, name).copy() for name in cache.ARRAYS}
    files = [path for path in (bench.output_dir / "data").rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        content = path.read_bytes()
        for _ in range(times):
            path.write_bytes(damaged(content, damage, random))
            row.injected += 1
            try:
                cache.load(Path(info.folder), info.digest)
            except InputError as error:
                assert info.folder in str(error)  # noqa: PT017 (either is right)
            again = cache.prepare(dataset, bench.output_dir)
            row.differing += again.digest != info.digest
            # some bytes say nothing: the last line end, the byte order of a type of one byte
            arrays = cache.load(Path(again.folder), info.digest)
            row.differing += any((getattr(arrays, name) != kept[name]).any() for name in kept)
            path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_database(tmp_path, damage, times, tally, request):
    """MLflow's database is not ours and has no digests: it is told in a sentence when it cannot be used."""
    row, random = tally(f"{damage}: mlflow.db"), rng(request.config.option.faults_seed)
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"

    def open_tracker(at_once=1):
        return Tracker.open(TrackingStore(uri, "e", tmp_path), SweepRecord("s", "l", "c"))

    open_tracker().close()
    content = path.read_bytes()
    (tmp_path / "events").mkdir()
    for _ in range(times):
        path = tmp_path / f"{row.injected}.db"  # MLflow keeps connections to the others
        uri = f"sqlite:///{path}"
        path.write_bytes(damaged(content, damage, random))
        row.injected += 1
        with EventFollower(tmp_path / "events", ProgressDisplay(epochs=0, names={}), open_tracker) as follower:
            pass
        if follower.tracking_error is None:
            try:
                store.load(uri, "e")
            except InputError as error:
                assert str(path) in str(error)  # noqa: PT017 (either is right)
        path.unlink()


def test_a_database_that_cannot_be_used_is_named_and_can_be_made_again(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text(
        "this is no database, but a text of more than one hundred bytes, so that it has a whole header." * 3
    )
    with pytest.raises(InputError, match="move it away: the same command makes a new one") as error:
        Tracker.open(TrackingStore(f"sqlite:///{path}", "e", tmp_path), SweepRecord("s", "l", "c"))
    assert str(path) in str(error.value)


def test_a_schema_that_a_kill_left_half_made_is_made_again(tmp_path):
    (tmp_path / ".mlflow.db.new").write_bytes(b"half")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker.open(TrackingStore(uri, "e", tmp_path), SweepRecord("s", "l", "c")).close()
    assert MlflowClient(uri).get_experiment_by_name("e") is not None
    assert not (tmp_path / ".mlflow.db.new").exists()


def test_final_metrics_that_a_state_has_are_kept_when_it_is_saved_again(bench, runs):
    """Its weights are lost, and it is trained again only because others start from it."""
    bench.train(runs[0])
    before = bench.bits(runs[0])
    (bench.checkpoints / f"{runs[0].uid}.safetensors").write_bytes(b"")
    bench.train(runs[1])
    assert bench.bits(runs[0]) == before
    assert before[2] is not None
