import csv
import itertools
import math
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rich.console import Console

from stagetree import report, store
from stagetree.mistakes import InputError

# MLflow 3.17 uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

EXPERIMENT = "digits"
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """An MLflow database without runs. Making the schema takes seconds, copying it milliseconds."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").create_experiment(EXPERIMENT, artifact_location=str(path.parent))
    return path


@pytest.fixture
def database(template, tmp_path):
    return Path(shutil.copy(template, tmp_path / "mlflow.db"))


def uri(database):
    return f"sqlite:///{database}"


def run(name, *, status="finished", metrics=None, tags=None, **params):
    """What `tracking` records of one run; its uid sorts by `name`."""
    defaults = {
        "dataset": "digits", "architecture": "2 layers (300,10)", "n_params": 22510, "optimizer": "sgd",
        "lrs": "[0.1]", "epochs": "[20]", "lr_0": 0.1, "epochs_total": 20, "batch_size": 32, "seed": 0,
    }  # fmt: skip
    return {
        "id": name.encode().hex().ljust(32, "0"),
        "status": status.upper(),
        "params": {key: str(value) for key, value in (defaults | params).items()},
        "metrics": metrics or {},
        "tags": {"mlflow.runName": name, "stagetree.kind": "run", "stagetree.uid": f"uid {name}"} | (tags or {}),
    }


def insert(database, runs):
    """Write runs as MLflow stores them."""
    with closing(sqlite3.connect(database)) as connection, connection:
        (experiment,) = connection.execute(
            "SELECT experiment_id FROM experiments WHERE name = ?", [EXPERIMENT]
        ).fetchone()
        for one in runs:
            row = (one["id"], one["status"], experiment, "active", "", "LOCAL", 0)
            columns = "run_uuid, status, experiment_id, lifecycle_stage, user_id, source_type, start_time"
            connection.execute(f"INSERT INTO runs ({columns}) VALUES (?,?,?,?,?,?,?)", row)
            for table in ("params", "tags"):
                rows = [(key, value, one["id"]) for key, value in one[table].items()]
                connection.executemany(f"INSERT INTO {table} (key, value, run_uuid) VALUES (?,?,?)", rows)
            rows = [
                (key, 0 if math.isnan(value) else value, math.isnan(value), one["id"])
                for key, value in one["metrics"].items()
            ]
            columns = "key, value, is_nan, run_uuid, timestamp, step"
            connection.executemany(f"INSERT INTO latest_metrics ({columns}) VALUES (?,?,?,?,1,1)", rows)


@pytest.fixture
def load(database):
    """Load a store of the runs given."""

    def load_runs(*runs):
        insert(database, runs)
        return store.load(uri(database), EXPERIMENT)

    return load_runs


def order(frame):
    return list(zip(frame["rank"].astype(object).where(frame["rank"].notna(), None), frame["run_name"], strict=True))


# ---------------------------------------------------------------- read


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


def test_sql_and_mlflows_client_give_the_same_frame(recorded, database):
    frame = store.load(uri(database), EXPERIMENT)
    assert_frame_equal(frame, store._to_frame(store._read_mlflow(uri(database), EXPERIMENT)))
    assert len(frame) == 4


def test_all_of_more_runs_than_a_page_of_mlflows_search_are_loaded(load, database):
    frame = load(*(run(f"{number:04}", seed=number) for number in range(1001)))
    assert list(frame["seed"]) == list(range(1001))
    assert len(store._read_mlflow(uri(database), EXPERIMENT)) == 1001


def test_an_address_that_is_no_database_is_read_through_mlflows_client(monkeypatch):
    monkeypatch.setattr(
        store, "_read_mlflow", lambda *arguments: [store._Recorded("1", "FINISHED", {}, {}, run("a")["tags"])]
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
        "import sys; from stagetree import store; store.load(*sys.argv[1:]);"
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
    with pytest.raises(InputError, match=r"tracking.uri: cannot read .*//\*\*\*@127.0.0.1:9") as caught:
        store.load(address, EXPERIMENT)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- rank


def test_accuracies_rank_downwards_and_losses_and_seconds_upwards(load):
    frame = load(
        run("a", metrics={"test/acc": 0.9, "test/loss": 0.1, "train_seconds": 5}),
        run("b", metrics={"test/acc": 0.8, "test/loss": 0.3, "train_seconds": 3}),
        run("c", metrics={"test/acc": 0.7, "test/loss": 0.2, "train_seconds": 4}),
    )
    assert order(report.rank(frame, "test_acc")) == [(1, "a"), (2, "b"), (3, "c")]
    assert order(report.rank(frame, "test/loss")) == [(1, "a"), (2, "c"), (3, "b")]
    assert order(report.rank(frame, "train_seconds")) == [(1, "b"), (2, "c"), (3, "a")]


def test_failed_and_diverged_runs_come_last_without_a_rank(load):
    frame = load(
        run("a", status="failed", metrics={"test/loss": 0.0}, tags={"stagetree.reason": "it broke"}),
        run("b", metrics={"test/loss": NAN}),
        run("c", metrics={"test/loss": sys.float_info.max}),  # infinity, as MLflow stores it
        run("d", status="running", metrics={"test/loss": 0.0}),
        run("e", metrics={"test/loss": 0.5}),
        run("f", status="killed"),
        run("g", metrics={"test/loss": -sys.float_info.max}),
    )
    ranked = report.rank(frame, "test_loss")
    assert order(ranked) == [(1, "e"), (None, "g"), (None, "c"), (None, "b"), (None, "d"), (None, "f"), (None, "a")]
    assert ranked.columns[-1] == "reason"


def test_by_default_runs_rank_by_validation_accuracy_and_those_without_it_have_no_rank(load):
    frame = load(
        run("a", metrics={"test/acc": 0.9, "val/acc": 0.7}),
        run("b", metrics={"test/acc": 0.8, "val/acc": 0.8}),
        run("c", metrics={"test/acc": 0.99}),
    )
    assert order(report.rank(frame)) == [(1, "b"), (2, "a"), (None, "c")]


def test_without_validation_runs_rank_by_test_accuracy(load):
    frame = load(run("a", metrics={"test/acc": 0.8}), run("b", metrics={"test/acc": 0.9}))
    assert order(report.rank(frame)) == [(1, "b"), (2, "a")]
    unfinished = run("c", status="running", metrics={"test/acc": 0.5, "val/acc": 0.5})
    assert order(report.rank(load(unfinished))) == [(1, "b"), (2, "a"), (None, "c")]


def test_ties_are_broken_by_other_metrics_then_uid_but_never_by_time_or_run_id(database, load):
    equal = {"val/acc": 0.9, "test/acc": 0.8}
    runs = [
        run("d", metrics=equal | {"train_seconds": 1}),
        run("c", metrics=equal | {"train_seconds": 2}),
        run("b", metrics=equal | {"test/acc": 0.7}),
        run("a", metrics=equal | {"test/acc": 0.9}),
    ]
    for one, new_id in zip(runs, "1234", strict=True):
        one["id"] = new_id * 32
    frame = load(*runs)
    for shuffled in itertools.permutations(range(4)):
        ranked = report.rank(frame.iloc[list(shuffled)])
        assert order(ranked) == [(1, "a"), (2, "c"), (3, "d"), (4, "b")]


def test_the_leaderboard_has_its_columns_in_order_and_of_other_params_those_that_vary(load):
    ranked = report.rank(
        load(
            run("a", weight_decay=0.0, momentum=0.9, dropout=0.5, activation="relu", lr_0=0.1),
            run("b", weight_decay=0.01, momentum=0.9, dropout=0.1, activation="relu", lr_0=0.2),
        ),
    )
    assert list(ranked) == [
        "rank", "run_name", "run_id", "dataset", "architecture", "n_params", "optimizer", "weight_decay", "lrs",
        "epochs", "batch_size", "seed", "val_loss", "val_acc", "test_loss", "test_acc", "train_seconds", "status",
        "dropout",
    ]  # fmt: skip


def test_a_leaderboard_ranked_by_another_metric_shows_it(load):
    frame = load(run("a", metrics={"train/loss": 0.1}))
    assert "train_loss" in report.rank(frame, "train_loss")
    assert "train_loss_mean" in report.aggregate(frame, "seed", "train_loss")


def test_a_metric_that_no_run_has_is_refused_with_those_there_are(load):
    frame = load(run("a", metrics={"test/acc": 0.9, "test/loss": 0.1}))
    choices = ", expected one of test_acc, test_loss"
    with pytest.raises(InputError, match=rf"^report.metric: got 'test_ac'{choices}; did you mean test_acc\?$"):
        report.rank(frame, "test_ac")
    with pytest.raises(InputError, match=f"^report.metric: no finished run has a value of 'train_acc'{choices}$"):
        report.rank(frame, "train_acc")
    with pytest.raises(InputError, match=r"^report.metric: got 'test_ac'"):
        report.aggregate(frame, "seed", "test_ac")


def test_any_metric_will_do_where_no_run_is_finished_yet(load):
    frame = load(run("a", status="running"))
    assert order(report.rank(frame, "val_acc")) == [(None, "a")]


# ---------------------------------------------------------------- aggregate


def test_runs_that_differ_in_seed_alone_become_one_line_of_hand_computed_figures(load):
    frame = load(
        run("a", seed=1, momentum=0.9, metrics={"test/acc": 0.90, "test/loss": 0.3}),
        run("b", seed=2, momentum=0.9, metrics={"test/acc": 0.94, "test/loss": NAN}),
        run("c", seed=3, momentum=0.9, metrics={"test/acc": 0.95, "test/loss": 0.1, "val/loss": sys.float_info.max}),
        run("d", seed=4, momentum=0.9, status="failed", metrics={"test/acc": 0.0}),
        run("e", seed=1, momentum=0.0, metrics={"test/acc": 0.99}),
        run("f", seed=1, momentum=0.5, status="running"),
    )
    lines = report.aggregate(frame, "seed")
    assert list(lines["rank"][:2]) == [1, 2]
    assert list(lines["momentum"]) == [0.0, 0.9, 0.5]
    assert list(lines["n"]) == [1, 3, 0]
    assert list(lines["n_failed"]) == [0, 1, 0]
    single, three, nothing = (line for _, line in lines.iterrows())
    assert single["test_acc_mean"] == 0.99
    assert pd.isna(single["test_acc_std"])  # of one value there is none
    # (0.90 + 0.94 + 0.95) / 3 = 0.93, deviations -0.03, 0.01, 0.02, so std = sqrt(0.0014 / 2); pandas sums in floats
    assert three["test_acc_mean"] == pytest.approx(0.93, rel=1e-14)
    assert three["test_acc_std"] == pytest.approx(math.sqrt(0.0007), rel=1e-12)
    assert three["test_loss_mean"] == pytest.approx(0.2, rel=1e-14)
    assert three["test_loss_std"] == pytest.approx(statistics.stdev([0.3, 0.1]), rel=1e-12)
    assert [three["test_acc_n"], three["test_loss_n"], nothing["test_acc_n"]] == [3, 2, 0]
    assert (three["val_loss_n"], pd.isna(three["val_loss_mean"])) == (0, True)
    assert pd.isna(nothing["rank"])
    assert not {"seed", "run_id", "status"} & set(lines)


def test_lines_are_ranked_by_the_mean_of_the_metric_asked_for(load):
    frame = load(
        run("a", seed=1, dropout=0.1, metrics={"test/acc": 0.9, "test/loss": 0.3}),
        run("b", seed=2, dropout=0.1, metrics={"test/acc": 0.7, "test/loss": 0.1}),
        run("c", seed=1, dropout=0.2, metrics={"test/acc": 0.85, "test/loss": 0.25}),
    )
    assert list(report.aggregate(frame, "seed")["dropout"]) == [0.2, 0.1]
    assert list(report.aggregate(frame, "seed", "test_loss")["dropout"]) == [0.1, 0.2]


def test_schedules_can_be_averaged_over_though_numbers_are_derived_from_them(load):
    frame = load(run("a", lrs="[0.1]", lr_0=0.1, log10_lr_0=-1), run("b", lrs="[0.01]", lr_0=0.01, log10_lr_0=-2))
    assert list(report.aggregate(frame, "lrs")["n"]) == [2]


def test_params_that_only_some_runs_have_split_lines_and_drop_none(load):
    frame = load(
        run("a", seed=1, optimizer="sgd", momentum=0.9, metrics={"test/acc": 0.9}),
        run("b", seed=1, optimizer="adam", metrics={"test/acc": 0.8}),
        run("c", seed=2, optimizer="adam", metrics={"test/acc": 0.7}),
    )
    lines = report.aggregate(frame, "seed")
    assert list(zip(lines["optimizer"], lines["n"], strict=True)) == [("sgd", 1), ("adam", 2)]


def test_a_failed_run_that_was_finished_later_counts_once(load):
    uid = {"stagetree.uid": "same"}
    frame = load(run("a", status="failed", tags=uid), run("b", metrics={"test/acc": 0.9}, tags=uid))
    lines = report.aggregate(frame, "seed")
    assert (list(lines["n"]), list(lines["n_failed"])) == ([1], [0])


def test_grouping_by_no_param_is_refused_with_those_there_are(load):
    with pytest.raises(
        InputError, match=r"^report.group_by: got 'sed', expected one of .*, seed; did you mean seed\?$"
    ):
        report.aggregate(load(run("a")), "sed")


# ---------------------------------------------------------------- write


def read_back(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_same_runs_give_the_same_bytes_in_any_order(load, tmp_path):
    frame = load(*(run(name, seed=seed, metrics={"test/acc": 0.9}) for seed, name in enumerate("abcd")))
    for number, shuffled in enumerate(itertools.permutations(range(4))):
        report.write_csv(report.rank(frame.iloc[list(shuffled)]), tmp_path / f"{number}.csv")
        report.write_csv(report.aggregate(frame.iloc[list(shuffled)], "seed"), tmp_path / f"{number}.seeds.csv")
    assert len({path.read_bytes() for path in tmp_path.glob("*.csv")}) == 2


def test_numbers_are_written_exactly_and_stay_numbers(load, tmp_path):
    frame = load(
        run("é", seed=2**63 - 1, log10=-1.0, metrics={"test/loss": 0.1 + 0.2, "test/acc": 1e-17}),
        run("z", status="failed", log10=-2.5),
    )
    report.write_csv(report.rank(frame), tmp_path / "leaderboard.csv")
    assert b"\r" not in (tmp_path / "leaderboard.csv").read_bytes()
    header, first, last = read_back(tmp_path / "leaderboard.csv")
    cells = dict(zip(header, first, strict=True))
    assert (cells["rank"], cells["run_name"], cells["seed"], cells["log10"]) == (
        "1",
        "é",
        "9223372036854775807",
        "-1.0",
    )
    assert (float(cells["test_loss"]), float(cells["test_acc"])) == (0.1 + 0.2, 1e-17)
    assert cells["architecture"] == "2 layers (300,10)"
    assert dict(zip(header, last, strict=True))["rank"] == ""


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\u00a0=", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_text_that_a_spreadsheet_would_run_is_defused(tmp_path, start):
    frame = pd.DataFrame({"run_name": [f'{start}cmd|" /C calc"!A0, b'], "seed": [-1], f"{start}x": ["plain"]})
    report.write_csv(frame, tmp_path / "leaderboard.csv")
    header, (name, seed, other) = read_back(tmp_path / "leaderboard.csv")
    start = start.replace("\r", "\n")
    assert header == ["run_name", "seed", f"'{start}x"]
    assert (name, seed, other) == (f"""'{start}cmd|" /C calc"!A0, b""", "-1", "plain")


def test_text_that_no_spreadsheet_would_run_is_left_alone(tmp_path):
    names = ["a=b", "1-2", "x, y", 'say "so"', "two\nlines", "[0.1]"]
    report.write_csv(pd.DataFrame({"run_name": names}), tmp_path / "leaderboard.csv")
    assert read_back(tmp_path / "leaderboard.csv")[1:] == [[name] for name in names]


def test_a_lone_carriage_return_makes_no_new_line(tmp_path):
    report.write_csv(pd.DataFrame({"reason": ["one\rtwo\r\nthree"]}), tmp_path / "leaderboard.csv")
    assert read_back(tmp_path / "leaderboard.csv")[1:] == [["one\ntwo\nthree"]]


def test_a_leaderboard_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "made" / "leaderboard.csv"
    report.write_csv(pd.DataFrame({"rank": [1]}), path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"report.output: cannot write .*, got No space left on device .give another"):
        report.write_csv(pd.DataFrame({"rank": [2]}), path)
    assert path.read_text() == "rank\n1\n"
    assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------- show


def printed(frame, *, top=20, path=None, **options):
    file = StringIO()
    report.show(frame, top, Console(file=file, no_color=True, **options), path)
    return file.getvalue()


@pytest.fixture
def many(load):
    return load(
        *(
            run(
                f"300-100 sgd lr {lr} momentum {momentum} batch_size 32 and a long tail seed {seed}",
                status="finished" if seed else "failed", seed=seed, momentum=momentum, lrs=f"[{lr}, 0.001]", dropout=lr,
                metrics={"val/acc": 0.97216 + lr / 100, "val/loss": 0.1, "test/acc": 0.9, "test/loss": 0.12345 * lr,
                         "train_seconds": 12.34},
            )
            for lr in (0.1, 0.01) for momentum in (0.0, 0.9) for seed in (0, 1, 2)
        )
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_a_terminal_and_keeps_what_matters_most(many, width):
    for frame in (report.rank(many), report.aggregate(many, "seed")):
        text = printed(frame, width=width, force_terminal=True, color_system=None, legacy_windows=False)
        *table, summary = text.splitlines()
        assert max(map(len, table)) <= width
        assert len(table) == 1 + len(frame)
        assert "val_acc" in table[0]
        assert summary == "12 runs, 4 failed; ranked by val_acc"


def test_the_table_shows_percentages_short_ids_and_only_what_varies(many):
    header, first, *_ = printed(report.rank(many), width=120, force_terminal=True, color_system=None).splitlines()
    assert "97.32 %" in first
    assert f" {report.rank(many)['run_id'][0][:8]} " in first
    assert "seed" in printed(report.rank(many))
    assert "batch_size" not in header
    assert "dataset" not in header


def test_the_table_of_an_aggregation_shows_mean_and_deviation(load):
    frame = load(
        run("a", seed=1, metrics={"test/acc": 0.90, "test/loss": 0.25}),
        run("b", seed=2, metrics={"test/acc": 0.92, "test/loss": 0.25}),
        run("c", seed=1, lrs="[1.0]", metrics={"test/acc": 0.5, "test/loss": 12345.6}),
    )
    text = printed(report.aggregate(frame, "seed"))
    assert "91.00 ± 1.41 %" in text
    assert "0.2500 ± 0.0000" in text
    assert "50.00 %" in text
    assert "1.235e+04" in text
    assert "val_acc" not in text


def test_elsewhere_than_on_a_terminal_the_table_is_plain_aligned_and_uncut(many):
    *table, _ = printed(report.rank(many), width=80).splitlines()
    assert len({len(line) for line in table}) == 1
    assert all(
        name in table[0] for name in ("run_name", "lrs", "momentum", "dropout", "seed", "train_seconds", "status")
    )
    assert "and a long tail seed 1" in table[1]
    assert "\x1b" not in "".join(table)


def test_names_steer_neither_the_markup_nor_the_terminal(load):
    text = printed(report.rank(load(run("[bold]a[/] :smile: \x1b[31m\nb"))), force_terminal=True, color_system=None)
    assert "[bold]a[/] :smile:  [31m b" in text


def test_the_last_line_says_how_many_runs_there_are_and_where_the_rest_is(many):
    text = printed(report.rank(many), top=2, path=Path("leaderboard.csv"))
    assert len(text.splitlines()) == 1 + 2 + 1
    assert "status" not in text.splitlines()[0]  # both lines are of finished runs
    expected = "12 runs, 4 failed; ranked by val_acc; first 2 of 12 lines above; all in leaderboard.csv"
    assert text.splitlines()[-1] == expected


def test_an_experiment_without_runs_gives_a_clear_line_and_a_file_with_its_header(load, tmp_path):
    path = tmp_path / "leaderboard.csv"
    frame = load()
    for table in (report.rank(frame), report.aggregate(frame, "seed")):
        report.write_csv(table, path)
        (header,) = read_back(path)
        assert header == list(table)
        expected = "no runs yet, so leaderboard.csv has only its header (train one: stagetree train)\n"
        assert printed(table, path=Path("leaderboard.csv")) == expected
    assert printed(report.rank(frame, "val_acc")) == "no runs yet (train one: stagetree train)\n"
