"""`stagetree verify` finds each kind of damage, and repairs it without training."""

import sqlite3
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from stores import EXPERIMENT
from sweeps import events, small, stagetree

import stagetree as package
from stagetree import api
from stagetree.report.verification import verify
from stagetree.storage import checkpoints
from stagetree.tracking import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:.*type hint:UserWarning"),  # pyfunc's, of the model's loader
]
GRID = ["schedule.stages=[(1,1e-1)],[(1,1e-1),(2,1e-2)]", "hydra/launcher=basic", "quiet=true", "report.page=false"]


class Swept:
    """A sweep of two runs, one of which goes on from the other, and what verify says of it."""

    def __init__(self, folder: Path, words: list[str]):
        self.folder, self.words = folder, words
        self.checkpoints = folder / "mlruns/checkpoints"
        self.database = folder / "mlruns/mlflow.db"

    def sweep(self):
        return package.sweep(*self.words, *GRID)

    def verify(self, *, repair: bool = False, apart: bool = False) -> tuple[bool, str]:
        """In a process of its own if the database is another file now: MLflow keeps connections to the old one."""
        if apart:
            done = stagetree(self.folder, "verify", *self.words, *["--repair"] * repair)
            return done.returncode == 0, done.stdout
        console = Console(file=StringIO(), width=1000)
        with api.composed(self.words, None) as (_, _, jobs):
            fine = verify(jobs[0].config, console, repair=repair)
        return fine, console.file.getvalue()

    def runs(self) -> list[store.Recorded]:
        found = store.read(f"sqlite:///{self.database}", EXPERIMENT)
        return sorted(found, key=lambda run: run.params["epochs"])

    def artifacts(self) -> Path:
        """Of the first run."""
        return Path(self.runs()[0].artifact_uri.removeprefix("file://"))

    def model(self) -> Path:
        with closing(sqlite3.connect(self.database)) as connection:
            (location,) = connection.execute("select artifact_location from logged_models").fetchone()
        return Path(location.removeprefix("file://"))

    def weights(self) -> Path:
        """Of the first run."""
        return self.checkpoints / f"{self.runs()[0].tags['stagetree.uid']}.safetensors"

    def execute(self, command: str) -> None:
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(command)


@pytest.fixture
def swept(tmp_path, database, arrays, monkeypatch) -> Swept:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    database.rename(tmp_path / "mlruns/mlflow.db")
    made = Swept(tmp_path, [*small(arrays), f"tracking.experiment={EXPERIMENT}"])
    made.sweep()
    return made


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # the run's artifact may be the same file
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


def overwrite_database(swept: Swept) -> None:
    content = bytearray(swept.database.read_bytes())
    content[4096 : len(content) // 2] = b"\1" * (len(content) // 2 - 4096)
    swept.database.write_bytes(content)


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


LEADERBOARD = Path("leaderboard.csv")
FIRST = "(select run_uuid from params where key = 'epochs_total' and value = '1')"
DAMAGES = {
    "weights deleted": (lambda s: s.weights().unlink(), "the checkpoint is missing"),
    "weights truncated": (lambda s: truncate(s.weights()), "the checkpoint is damaged"),
    "weights with a flipped bit": (lambda s: flip(s.weights()), "the checkpoint is damaged"),
    "artifact deleted": (lambda s: (s.artifacts() / "curves.svg").unlink(), "artifact curves.svg is missing"),
    "artifact damaged": (lambda s: flip(s.artifacts() / "weights.safetensors"), "weights.safetensors is damaged"),
    "model deleted": (lambda s: (s.model() / "MLmodel").unlink(), "its files are missing"),
    "model damaged": (lambda s: flip(s.model() / "data/weights.safetensors"), "its weights are damaged"),
    "database damaged": (overwrite_database, "MLflow's database is damaged"),
    "database deleted": (lambda s: s.database.unlink(), "MLflow's database is missing"),
    "an epoch lost": (
        lambda s: s.execute(f"delete from metrics where step = 1 and key = 'lr' and run_uuid = {FIRST}"),
        "1 metric values are missing, of epochs 1",
    ),
    "a metric changed": (
        lambda s: s.execute(f"update metrics set value = 7 where key = 'val/acc' and run_uuid = {FIRST}"),
        "val/acc is 7.0 at step 0, expected",
    ),
    "a last value changed": (
        lambda s: s.execute(f"update latest_metrics set value = 7 where key = 'test/acc' and run_uuid = {FIRST}"),
        "its last values are not those of its curves",
    ),
    "a metric doubled": (
        lambda s: s.execute(
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) "
            f"select key, value, 1, run_uuid, step, is_nan from metrics where key = 'lr' and run_uuid = {FIRST}"
        ),
        "lr has two values at step 1",
    ),
    "a param lost": (
        lambda s: s.execute(f"delete from params where key = 'seed' and run_uuid = {FIRST}"),
        "param seed is missing",
    ),
    "a param changed": (
        lambda s: s.execute(f"update params set value = '9' where key = 'seed' and run_uuid = {FIRST}"),
        "param seed is 9, expected 0",
    ),
    "a run lost": (
        lambda s: s.execute(f"update runs set lifecycle_stage = 'deleted' where run_uuid = {FIRST}"),
        "MLflow has no record of it",
    ),
    "a leaderboard's value changed": (
        lambda s: replace(LEADERBOARD, str(s.runs()[0].metrics["test/acc"]), "0.123"),
        "test_acc differs from MLflow's",
    ),
    "a leaderboard's row lost": (
        lambda s: replace(LEADERBOARD, LEADERBOARD.read_text().splitlines()[-1], ""),
        "1 rows are missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_repaired_without_training(swept, damage):
    before, trained = swept.runs(), len(events(swept.folder))
    do, said = DAMAGES[damage]
    do(swept)
    apart = damage.startswith("database")
    fine, printed = swept.verify(apart=apart)
    assert not fine
    assert said in printed
    assert swept.verify(repair=True, apart=apart)[0]  # which looks at everything again
    assert len(events(swept.folder)) == trained
    assert [run.metrics for run in swept.runs()] == [run.metrics for run in before]


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "a bit flipped", "deleted"])
def test_the_same_command_trains_anew_what_is_damaged_and_says_so(swept, damage, capsys):
    path = swept.weights()
    content = path.read_bytes()
    damage(path)
    package.sweep(*swept.words, *GRID)
    assert f"{path.name}: the checkpoint is" in capsys.readouterr().err
    assert path.read_bytes() == content
    fine, printed = swept.verify()
    assert fine, printed


def test_an_undisturbed_sweep_is_as_it_should_be(swept):
    assert swept.verify() == (True, "all is well: checkpoints, MLflow and the leaderboard say the same\n")


def test_the_same_command_puts_right_what_is_recorded(swept):
    swept.execute(f"delete from metrics where step = 1 and run_uuid = {FIRST}")
    (swept.artifacts() / "config.yaml").unlink()
    swept.sweep()
    assert swept.verify()[0]


def test_deleted_checkpoints_are_no_damage(swept):
    for path in swept.checkpoints.iterdir():
        path.unlink()
    assert swept.verify()[0]
    assert not checkpoints.finished(swept.checkpoints).tested
    swept.sweep()
    assert swept.verify()[0]
