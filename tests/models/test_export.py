"""A trained model outside this package: as plain files, and as an MLflow model."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sweeps import small, stagetree

from stagetree.models.inference import Network
from stagetree.report import ranking
from stagetree.tracking import store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")]
ALONE = "import sys; sys.modules['stagetree'] = None; "
"""Importing this package fails from here on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("export")
    words = ["model.hidden_sizes=[8,6]", "model.dropout=0.1", "dataset.mean=[0.4]", "dataset.std=[0.3]", "seed=0,1"]
    done = stagetree(folder, "sweep", *small(arrays), *words, "schedule.stages=[(5,0.1)]")
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def best(folder):
    frame = store.load(f"sqlite:///{folder}/mlruns/mlflow.db", "stagetree")
    return frame.set_index("run_id").loc[ranking.rank(frame)["run_id"][0]]


@pytest.fixture(scope="module")
def network(folder, best):
    return Network.load(folder / "mlruns", best["uid"])


def test_the_example_runs_without_this_package(folder, network):
    done = stagetree(folder, "export", "best", "given")
    assert done.returncode == 0, done.stderr
    assert "\ngiven: config.yaml, example.py, model.json, weights.safetensors" in done.stdout
    code = ALONE + "exec(open('example.py').read())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "given", capture_output=True, text=True, check=True
    )
    numbers = json.loads(said.stdout.removeprefix("tensor(").split("]]")[0] + "]]")
    np.testing.assert_allclose(numbers, network.probabilities(np.zeros((1, 16), np.uint8)), atol=1e-4)


def test_what_is_exported_says_how_it_was_trained(folder, best):
    stagetree(folder, "export", best["run_name"], "named")
    about = (folder / "named" / "config.yaml").read_text()
    assert f"uid: {best['uid']}" in about
    assert "lrs: '[0.1]'" in about
    model = json.loads((folder / "named" / "model.json").read_text())
    assert model["mean"] == [0.4]
    assert [layer[0] for layer in model["layers"]] == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]


def test_checkpoints_are_safe_to_delete_since_mlflow_has_the_weights_and_damaged_ones_are_told(folder, tmp_path):
    shutil.copytree(folder / "mlruns", tmp_path / "mlruns")
    picture = str(tmp_path / "a.png")
    Image.new("L", (4, 4), 90).save(picture)
    before, whole = stagetree(folder, "predict", "best", picture), stagetree(folder, "export", "best", "whole")
    assert (before.returncode, whole.returncode) == (0, 0), before.stderr + whole.stderr
    shutil.rmtree(tmp_path / "mlruns/checkpoints")
    after, alone = stagetree(tmp_path, "predict", "best", picture), stagetree(tmp_path, "export", "best", "alone")
    assert (after.stdout, alone.returncode) == (before.stdout, 0), after.stderr + alone.stderr
    for name in ("weights.safetensors", "model.json", "example.py", "config.yaml"):
        assert (tmp_path / "alone" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert stagetree(tmp_path, "report", "--metric", "test_acc").returncode == 0
    assert '"matrix":' in (tmp_path / "leaderboard.html").read_text()
    # artifacts lie where they were recorded
    database = tmp_path / "mlruns/mlflow.db"
    frame = store.load(f"sqlite:///{database}", "stagetree")
    run_id = frame.set_index("run_id").loc[ranking.rank(frame)["run_id"][0]].name
    (weights,) = (folder / "mlruns/artifacts").glob(f"{run_id}/artifacts/weights.safetensors")
    content = weights.read_bytes()
    weights.unlink()  # it may be the checkpoint itself, by another name
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = stagetree(tmp_path, "predict", "best", picture)
    assert done.returncode == 1
    assert "the checkpoint is missing, and MLflow does not help: its weights are damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    weights.write_bytes(content)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonesuch", "new"], "export: there is no run 'nonesuch'"),
        (["best", "mlruns"], "export: mlruns holds something already (give a new or an empty folder)"),
        (["best", "a", "b"], "stagetree export: takes 2 words, got best a b"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_sentence(folder, words, said):
    done = stagetree(folder, "export", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_mlflow_loads_the_best_run_without_a_pickle(folder, best, network):
    code = ALONE + (
        "import pickle; pickle.loads = pickle.load = pickle.Unpickler = None\n"
        "import mlflow, numpy as np\n"
        f"mlflow.set_tracking_uri('sqlite:///{folder}/mlruns/mlflow.db')\n"
        f"model = mlflow.pyfunc.load_model('runs:/{best.name}/best')\n"
        "print(model.predict(np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4) * 10).to_json(orient='split'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["columns"] == ["0", "1", "2"]
    np.testing.assert_allclose(
        found["data"], network.probabilities(np.arange(16, dtype=np.uint8)[None] * 10), atol=1e-6
    )
    files = [path.name for path in (folder / "mlruns" / "artifacts").rglob("*") if path.is_file()]
    assert "MLmodel" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pth", ".pt"))]


def test_a_sweep_that_is_run_again_adds_no_second_model(folder, arrays, best):
    before = len(list((folder / "mlruns" / "artifacts").rglob("MLmodel")))
    words = ["model.hidden_sizes=[8,6]", "model.dropout=0.1", "dataset.mean=[0.4]", "dataset.std=[0.3]", "seed=0,1"]
    done = stagetree(folder, "sweep", *small(arrays), *words, "schedule.stages=[(5,0.1)]")
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "mlruns" / "artifacts").rglob("MLmodel"))) == before == 1


def test_the_parent_run_describes_the_sweep(folder, best):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("stagetree")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`stagetree.kind` = 'sweep'")
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("`stagetree -m ")
    assert f"| 1 | {best['run_name']} |" in note
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"leaderboard.csv", "leaderboard.html"}
    view = json.loads(experiment.tags["mlflow.sharedViewState.stagetree"])
    assert {"params.`seed`", "metrics.`test/acc`"} <= set(view["selectedColumns"])
