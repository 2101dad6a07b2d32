"""Reading an experiment: what is in the frame, whoever wrote it, and nothing written by reading."""

import math
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from pandas.testing import assert_frame_equal
from stores import EXPERIMENT, INF, NAN, run, uri

from stagetree.errors import InputError
from stagetree.tracking import store


@pytest.fixture
def recorded(database):
    """A store that MlflowClient wrote: runs of all kinds, some of which do not count."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(uri(database))
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    ids = {}

    def record(name, status, *, metrics=(), kind="run", **tags):
        tags = {"stagetree.kind": kind, "stagetree.uid": f"uid {name}", "stagetree.sweep": "s1"} | tags
        ids[name] = client.create_run(experiment, run_name=name).info.run_id
        params = run(name, seed=2**63 - 1, dropout=0.5, dataset_digest="12e4")["params"]
        client.log_batch(
            ids[name],
            [Metric(key, value, 1, step) for key, value, step in metrics],
            [Param(*pair) for pair in params.items()] if kind == "run" else [],
            [RunTag(*pair) for pair in tags.items()],
        )
        if status != "RUNNING":
            client.set_terminated(ids[name], status)

    record("sweep", "FINISHED", kind="sweep")
    epochs = [("train/loss", 0.5, 1), ("train/loss", 0.25, 2), ("lr", 0.1, 2)]
    record(
        "good", "FINISHED", metrics=[*epochs, ("test/acc", 0.9722, 2), ("test/loss", 0.1, 2), ("train_seconds", 1.5, 2)]
    )
    record("diverged", "FINISHED", metrics=[("test/acc", 0.1, 2), ("test/loss", NAN, 2), ("train/loss", INF, 2)])
    record("failed", "FAILED", metrics=epochs, **{"stagetree.reason": "out of memory"})
    record("halfway", "RUNNING", metrics=epochs)
    record("old", "FINISHED", metrics=[("test/acc", 0.99, 2)], **{"stagetree.superseded": "true"})
    record("deleted", "FINISHED", metrics=[("test/acc", 0.99, 2)])
    client.delete_run(ids["deleted"])
    client.create_experiment("fashion")
    client.delete_experiment(client.create_experiment("given up"))
    return ids


def test_a_store_is_loaded_as_a_row_a_run_with_numbers_as_numbers(recorded, database):
    frame = store.load(uri(database), EXPERIMENT).set_index("run_name")
    assert list(frame.index) == ["diverged", "failed", "good", "halfway"]  # by uid
    assert frame["run_id"].to_dict() == {name: recorded[name] for name in frame.index}
    assert list(frame["status"]) == ["finished", "failed", "finished", "running"]
    good = frame.loc["good"]
    assert (good["train_loss"], good["test_acc"], good["train_seconds"], good["sweep"]) == (0.25, 0.9722, 1.5, "s1")
    assert (good["seed"], good["dropout"], good["lrs"]) == (2**63 - 1, 0.5, "[0.1]")
    assert good["dataset_digest"] == "12e4"
    assert frame.loc["failed", "reason"] == "out of memory"
    assert math.isnan(frame.loc["diverged", "test_loss"])
    assert frame.loc["diverged", "train_loss"] == INF


def test_sql_and_mlflows_client_give_the_same_frame(recorded, database, monkeypatch):
    frame = store.load(uri(database), EXPERIMENT)
    monkeypatch.setattr(store, "is_sql", lambda uri: False)
    assert_frame_equal(frame, store.load(uri(database), EXPERIMENT))
    assert len(frame) == 4


def test_all_of_more_runs_than_a_page_of_mlflows_search_are_loaded(load, database):
    frame = load(*(run(f"{number:04}", seed=number) for number in range(1001)))
    assert list(frame["seed"]) == list(range(1001))
    assert len(store._read_mlflow(uri(database), EXPERIMENT)) == 1001


def test_an_address_that_is_no_database_is_read_through_mlflows_client(monkeypatch):
    monkeypatch.setattr(
        store, "_read_mlflow", lambda *arguments: [store.Recorded("1", "FINISHED", tags=run("a")["tags"])]
    )
    assert list(store.load("http://127.0.0.1:5000", EXPERIMENT)["run_name"]) == ["a"]


def test_a_database_is_read_while_a_writer_holds_it(load, database):
    load(run("a"))
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE runs SET status = 'FAILED'")
        assert list(store.load(uri(database), EXPERIMENT)["status"]) == ["finished"]
        writer.execute("COMMIT")
        assert list(store.load(uri(database), EXPERIMENT)["status"]) == ["failed"]


def test_reading_cannot_write(load, database):
    load(run("a"))
    with store._engine(uri(database)).connect() as connection, pytest.raises(Exception, match="readonly database"):
        connection.exec_driver_sql("DELETE FROM runs")


def test_reading_a_database_imports_neither_mlflow_nor_torch(load, database):
    load(run("a"))
    code = (
        "import sys; from stagetree.tracking import store; store.load(*sys.argv[1:]);"
        "print([name for name in ('mlflow', 'torch') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, uri(database), EXPERIMENT]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_experiment_is_refused_with_those_there_are(recorded, database):
    expected = r"tracking.experiment: got 'digit', expected one of Default, digits, fashion; did you mean digits\?"
    for read in (store._read_sql, store._read_mlflow):
        with pytest.raises(InputError, match=f"^{expected}$"):
            read(uri(database), "digit")


def test_a_missing_database_is_refused_and_not_made(tmp_path):
    with pytest.raises(InputError, match=r"there is no database at .*nothing here.db .train something first"):
        store.load(f"sqlite:///{tmp_path}/nothing here.db", EXPERIMENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"), [(b"not SQLite" * 1000, "file is not a database"), (b"", "no such table")]
)
def test_a_file_that_is_no_mlflow_database_is_refused_and_left_alone(tmp_path, content, said):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read .*{said}.*give an MLflow database"):
        store.load(uri(path), EXPERIMENT)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("address", ["mysql+none://me:secret@127.0.0.1:9/runs", "http://me:secret@127.0.0.1:9"])
def test_a_server_out_of_reach_is_named_without_its_password(monkeypatch, address):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"tracking.uri: cannot read .*//me:\*\*\*@127.0.0.1:9") as caught:
        store.load(address, EXPERIMENT)
    assert "secret" not in str(caught.value)
