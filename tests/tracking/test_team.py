"""A team's server: MLflow on PostgreSQL, with logins and artifacts of its own. `make team` puts more load on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pandas import read_csv
from pandas.testing import assert_frame_equal
from servers import mlflow_server, object_store, postgres
from sweeps import PATIENCE_S, command, small, stagetree, trained

GRID = ["seed=0,1", "schedule.stages=[(2,5e-2),(1,1e-2)],[(2,5e-2),(1,1e-3)]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    with postgres() as database, mlflow_server(folder, database) as running:
        running.add_user("ana")
        yield running


@pytest.fixture
def login(server, monkeypatch):
    for name, value in server.login("ana").items():
        monkeypatch.setenv(name, value)


def at(server, experiment: str) -> list[str]:
    return ["tracking=server", f"tracking.uri={server.uri}", f"tracking.experiment={experiment}"]


def table(folder: Path):
    """What a leaderboard says of the runs, but for times and ids."""
    return read_csv(folder / "leaderboard.csv").drop(columns=["run_id", "train_seconds"])


@pytest.fixture(scope="module")
def local(tmp_path_factory, arrays):
    """A sweep in a database of its own, with a run that failed."""
    folder = tmp_path_factory.mktemp("local")
    assert stagetree(folder, "sweep", *small(arrays), *GRID).returncode == 0
    assert stagetree(folder, "train", *small(arrays), "schedule.stages=[(2,1e38)]").returncode == 3
    assert stagetree(folder, "report").returncode == 0
    return folder


def test_a_sweep_is_recorded_alike_on_a_server_with_logins(tmp_path, arrays, server, login, local):
    done = stagetree(tmp_path, "sweep", *small(arrays), *GRID, *at(server, "first"))
    assert done.returncode == 0, done.stdout + done.stderr
    expected = table(local)
    expected = expected[expected["status"] == "finished"].reset_index(drop=True)
    assert_frame_equal(table(tmp_path), expected[table(tmp_path).columns], check_dtype=False)
    assert len(list(server.artifacts.rglob("weights.safetensors"))) == 5, "of the best run once more, as a model"
    assert "View run" not in done.stdout, "MLflow's clients would say it of each"
    assert not (tmp_path / "mlruns/mlflow.db").exists()


def test_a_wrong_password_stops_no_training_and_the_right_one_records_it(tmp_path, arrays, server, login):
    words = ["sweep", *small(arrays), *GRID, *at(server, "second")]
    wrong = {**os.environ, "MLFLOW_TRACKING_PASSWORD": "guessed"}
    done = stagetree(tmp_path, *words, env=wrong)
    assert done.returncode == 3
    assert "tracking failed" in done.stderr
    assert "The results are kept; run the same command again to record them." in done.stdout
    assert "Traceback" not in done.stderr
    before = sum(trained(tmp_path).values())
    done = stagetree(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(trained(tmp_path).values()) == before
    assert len(table(tmp_path)) == 4


def test_sweeps_of_several_people_at_once_lose_nothing(tmp_path, arrays, server, login):
    started = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [*small(arrays), f"seed={2 * number},{2 * number + 1}", GRID[1], "hydra/launcher=basic"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command("sweep", *words, *at(server, "third")), cwd=folder, **quiet))
    said = [process.communicate(timeout=PATIENCE_S)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 3, said
    done = stagetree(tmp_path, "report", *at(server, "third"))
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path)) == 12
    assert set(table(tmp_path)["status"]) == {"finished"}


def test_a_store_moves_to_the_server_with_all_that_is_in_it(tmp_path, arrays, server, login, local):
    to = ["tracking.experiment=stagetree", f"output_dir={local / 'mlruns'}"]
    done = stagetree(tmp_path, "migrate", server.uri, *to)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 runs copied" in done.stdout  # five, and the sweep and the command that they belong to
    assert "0 runs copied" in stagetree(tmp_path, "migrate", server.uri, *to).stdout
    done = stagetree(tmp_path, "report", *at(server, "stagetree"))
    assert done.returncode == 0, done.stderr
    assert_frame_equal(table(tmp_path), table(local), check_dtype=False)

    source, target = MlflowClient(f"sqlite:///{local}/mlruns/mlflow.db"), MlflowClient(server.uri)
    ours, theirs = [
        {
            run.data.tags.get("stagetree.uid", run.info.run_name): run
            for run in client.search_runs([client.get_experiment_by_name("stagetree").experiment_id])
        }
        for client in (source, target)
    ]
    assert ours.keys() == theirs.keys()
    for name, run in ours.items():
        copy = theirs[name]
        assert (copy.data.params, copy.data.metrics) == (run.data.params, run.data.metrics)
        for field in ("status", "start_time", "end_time", "run_name"):
            assert getattr(copy.info, field) == getattr(run.info, field)
        for key in run.data.metrics:
            histories = [
                [(one.step, one.value, one.timestamp) for one in client.get_metric_history(which.info.run_id, key)]
                for client, which in ((source, run), (target, copy))
            ]
            assert sorted(histories[0]) == sorted(histories[1])
        names = [
            sorted(one.path for one in client.list_artifacts(which.info.run_id))
            for client, which in ((source, run), (target, copy))
        ]
        assert names[0] == names[1]
        parents = [which.data.tags.get("mlflow.parentRunId") for which in (run, copy)]
        assert (parents[0] is None) == (parents[1] is None)
        if parents[1]:
            assert parents[1] in {one.info.run_id for one in theirs.values()}

    # the same sweep, with the server: nothing is trained, nothing is recorded twice
    epochs = sum(trained(local).values())
    done = stagetree(local, "sweep", *small(arrays), *GRID, *at(server, "stagetree"), "report.output=there.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(trained(local).values()) == epochs
    found = target.search_runs([target.get_experiment_by_name("stagetree").experiment_id])
    assert len(found) == 7


def test_moving_needs_somewhere_to_move_to(tmp_path, local):
    where = f"output_dir={local / 'mlruns'}"
    done = stagetree(tmp_path, "migrate", where)
    assert done.returncode == 1
    assert "migrate: got none, expected the MLflow tracking URI of another store" in done.stderr
    done = stagetree(tmp_path, "migrate", "sqlite:///elsewhere.db", "output_dir=nowhere")
    assert done.returncode == 1
    assert "no runs are recorded in nowhere (nothing to copy)" in done.stderr
    assert not (tmp_path / "elsewhere.db").exists()


def test_artifacts_go_where_mlflow_can_write_them(tmp_path, arrays):
    with object_store("bucket") as environment:
        words = [*small(arrays), "seed=0,1", "schedule.stages=[(1,5e-2)]", "tracking.artifacts=s3://bucket/runs"]
        done = stagetree(tmp_path, "sweep", *words, env={**os.environ, **environment})
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (tmp_path / "mlruns/artifacts").exists()
        script = (
            "import sys; from mlflow import MlflowClient; client = MlflowClient(sys.argv[1]); "
            "ids = [client.get_experiment_by_name('stagetree').experiment_id]; "
            "found = client.search_runs(ids, \"tags.`stagetree.kind` = 'run'\"); "
            "print(sorted(one.path for one in client.list_artifacts(found[0].info.run_id)))"
        )
        listing = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/mlruns/mlflow.db"]
        said = {"capture_output": True, "text": True, "check": True}
        listed = subprocess.run(listing, env={**os.environ, **environment}, **said)
        assert "['config.yaml', 'curves.svg', 'weights.safetensors']" in listed.stdout
