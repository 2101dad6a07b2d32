"""A sweep as users launch it: real processes, Hydra's joblib launcher, a real MLflow store."""

import json
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sweeps import events, rows, small, stagetree

from stagetree.storage import checkpoints
from stagetree.storage.events import EpochEnded

GRID = [
    "model.hidden_sizes=[8],[6,5]", "optimizer=sgd,adam", "schedule.stages=[(2,1e-1),(1,1e-2)],[(2,1e-1),(1,1e-3)]",
    "seed=0,1",
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory, arrays) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("swept")
    done = stagetree(folder, "sweep", *small(arrays), *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


@pytest.fixture(scope="module")
def client(swept) -> MlflowClient:
    return MlflowClient(f"sqlite:///{swept[0]}/mlruns/mlflow.db")


def children(client):
    experiment = client.get_experiment_by_name("stagetree")
    return client.search_runs([experiment.experiment_id], "tags.`stagetree.kind` = 'run'")


def test_the_command_prints_the_plan_and_the_leaderboard_and_says_how_to_go_on(swept):
    _, done = swept
    assert "16 points, 0 duplicates, 0 finished, 16 to train" in done.stdout
    assert "48 asked for, 32 after sharing prefixes (33% saved), 32 to train" in done.stdout
    assert "16 runs, 0 failed; ranked by val_acc" in done.stdout
    assert "stagetree ui" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_folder_holds_mlruns_and_the_leaderboard_and_nothing_else(swept):
    folder, _ = swept
    assert sorted(path.name for path in folder.iterdir()) == ["leaderboard.csv", "leaderboard.html", "mlruns"]
    assert sorted(path.name for path in (folder / "mlruns").iterdir()) == [
        "artifacts", "checkpoints", "claims.lock", "data", "mlflow.db", "mlflow.db.lock", "speeds", "sweeps",
    ]  # fmt: skip


def test_the_plan_knew_what_it_would_take_on_disk(swept):
    folder, _ = swept
    (said,) = (json.loads(path.read_text()) for path in folder.glob("mlruns/sweeps/*/*/sweep.json"))
    files = [path for path in (folder / "mlruns").rglob("*") if path.is_file() and "data" not in path.parts]
    assert said["estimated_bytes"] == pytest.approx(sum(path.stat().st_size for path in files), rel=0.15)


def test_leaderboard_event_logs_and_mlflow_say_the_same(swept, client):
    folder, _ = swept
    lines = {row["run_id"]: row for row in rows(folder)}
    logged = [event for event in events(folder) if isinstance(event, EpochEnded)]
    found = children(client)
    assert len(found) == len(lines) == 16
    for run in found:
        row, uid = lines[run.info.run_id], run.data.tags["stagetree.uid"]
        record = checkpoints.read_record(folder / "mlruns/checkpoints", uid)
        assert (row["status"], run.info.status) == ("finished", "FINISHED")
        for name in ("val/loss", "val/acc", "test/loss", "test/acc"):
            assert float(row[name.replace("/", "_")]) == run.data.metrics[name]
        assert {name: run.data.metrics[name] for name in ("test/loss", "test/acc")} == record.test
        assert run.data.tags["stagetree.weights_sha256"] == record.weights_sha256
        for name in ("train/loss", "train/acc", "val/loss", "val/acc", "lr"):
            history = client.get_metric_history(run.info.run_id, name)
            expected = [(line["epoch"], line[name]) for line in record.history if name in line]
            assert sorted((metric.step, metric.value) for metric in history) == expected
        for line in record.history:
            assert any(line.items() <= event.line.items() for event in logged)


def test_a_run_says_in_mlflow_what_it_is(client):
    run = min(children(client), key=lambda run: run.info.run_name)
    assert run.info.run_name == "6-5 adam lr 0.1>0.001 seed 0"
    params = run.data.params
    assert params["architecture"] == "3 layers (6,5,3)"
    assert (params["lrs"], params["epochs"]) == ("[0.1, 0.001]", "[2, 1]")
    assert (params["lr_0"], params["lr_1"], params["log10_lr_1"], params["epochs_0"]) == ("0.1", "0.001", "-3.0", "2")
    assert params["n_params"] == str(17 * 6 + 7 * 5 + 6 * 3)
    assert run.data.tags["stagetree.shared_epochs"] == "2"
    assert run.data.tags["version.torch"]
    assert run.inputs.dataset_inputs[0].dataset.name == "small.npz"
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (parent.data.tags["stagetree.kind"], parent.info.status) == ("sweep", "FINISHED")


def test_a_run_keeps_weights_configuration_and_curves(swept, client):
    from safetensors.numpy import load_file

    for run in children(client):
        names = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert names == {"weights.safetensors", "config.yaml", "curves.svg"}
    folder = Path(client.get_run(run.info.run_id).info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(swept[0] / "mlruns/artifacts")
    assert {value.ndim for value in load_file(folder / "weights.safetensors").values()} == {1, 2}
    assert "accuracy" in (folder / "curves.svg").read_text()


def test_relaunching_a_finished_sweep_trains_nothing_and_gives_the_same_bytes(swept, arrays):
    folder, _ = swept
    before, epochs = (folder / "leaderboard.csv").read_bytes(), len(events(folder))
    done = stagetree(folder, "sweep", *small(arrays), *reversed(GRID))
    assert done.returncode == 0, done.stderr
    assert "16 finished, 0 to train" in done.stdout
    assert len(events(folder)) == epochs
    assert (folder / "leaderboard.csv").read_bytes() == before


def test_plan_lists_exactly_what_a_sweep_then_trains(tmp_path, swept, arrays):
    folder, _ = swept
    done = stagetree(tmp_path, "plan", "--json", *small(arrays), *GRID)
    assert done.returncode == 0, done.stderr
    planned = {
        (node["uid"], node["epochs"])
        for unit in json.loads(done.stdout)["units"] for node in unit["nodes"]
    }  # fmt: skip
    last = {}
    for event in events(folder):
        if isinstance(event, EpochEnded):
            last[event.uid] = max(last.get(event.uid, 0), event.epoch)
    assert {uid for uid, _ in planned} == set(last)
    assert sum(epochs for _, epochs in planned) == 32
    assert not (tmp_path / "mlruns/checkpoints").exists()


def test_sharing_and_packing_change_no_bit(tmp_path, swept, arrays):
    folder, _ = swept
    done = stagetree(
        tmp_path, "sweep", *small(arrays), *GRID, "execution.share_prefixes=false", "execution.pack_size=1"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(isinstance(event, EpochEnded) and event.epoch > 0 for event in events(tmp_path)) == 48
    for uid in checkpoints.finished(folder / "mlruns/checkpoints").tested:
        one, other = [checkpoints.read_record(where / "mlruns/checkpoints", uid) for where in (folder, tmp_path)]
        assert (one.weights_sha256, one.test) == (other.weights_sha256, other.test)


def test_a_diverged_run_fails_alone_is_ranked_last_and_gives_exit_code_3(tmp_path, arrays):
    grid = ["schedule.stages=[(2,1e-1)],[(1,1e38),(1,1e-2)]"]
    done = stagetree(tmp_path, "sweep", *small(arrays), *grid)
    assert done.returncode == 3
    good, bad = rows(tmp_path)
    assert (good["rank"], good["status"], bad["rank"], bad["status"]) == ("1", "finished", "", "failed")
    assert "became nan in epoch 1" in bad["reason"]
    assert "1 of 2 runs failed" in done.stdout


def test_an_infinite_test_loss_is_recorded_as_a_diverged_run_beside_the_finished_one_that_goes_on(tmp_path, bright):
    npz, stages = bright
    words = [
        "dataset=npz", f"dataset.root={npz.parent}", f"dataset.file={npz.name}", "dataset.val_size=0",
        "dataset.std=[0.004]", "model.hidden_sizes=[]", "loss=mse", "trainer.batch_size=60", "trainer.device=cpu",
        f"schedule.stages={','.join(str(own).replace(' ', '') for own in stages)}", "hydra/launcher=basic",
    ]  # fmt: skip
    for _ in range(2):  # the second launch comes to the same
        assert stagetree(tmp_path, "sweep", *words).returncode == 3
        good, bad = rows(tmp_path)
        assert (good["status"], bad["status"]) == ("finished", "failed")
        assert bad["reason"] == "diverged at lr 1e+17: test/loss became inf in epoch 1"


def test_a_single_run_is_trained_in_the_same_way(tmp_path, arrays):
    done = stagetree(tmp_path, "train", *small(arrays), "schedule.stages=[(2,1e-1)]")
    assert done.returncode == 0, done.stderr
    assert "1 run, 0 failed" in done.stdout
    report = stagetree(tmp_path, "report", "--metric", "test_acc", "--top", "20")
    assert report.returncode == 0, report.stderr
    assert len(rows(tmp_path)) == 1


def test_yaml_takes_the_notation_that_people_write(tmp_path, arrays):
    own = tmp_path / "own" / "schedule"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("stages: [(2,1e-1),(1,1e-2)]\nreset_optimizer: true\n")
    done = stagetree(tmp_path, "plan", "--json", "--config-dir", str(own.parent), "schedule=mine", *small(arrays))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["stages"] == [[2, 0.1], [1, 0.01]]


def test_problems_of_the_data_are_told_before_anything_trains(tmp_path):
    done = stagetree(tmp_path, "sweep", "dataset=npz", "dataset.root=nowhere", "dataset.file=a.npz,b.npz", "seed=0,1")
    assert done.returncode == 1
    assert done.stderr.count("no such file (set dataset.root and dataset.file)") == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlruns/sweeps").exists()
