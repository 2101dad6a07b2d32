"""`stagetree predict`: which classes a finished run finds in image files."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sweeps import stagetree

from stagetree.cli.predict import classify, find_run
from stagetree.errors import InputError
from stagetree.models import export
from stagetree.models.inference import Network
from stagetree.models.mlp import sequential
from stagetree.storage import checkpoints
from stagetree.tracking import store


@pytest.fixture(scope="module")
def trained(tmp_path_factory, arrays):
    """A folder with a finished run on images of 4x4 and a test image of each class, called 0.png to 2.png."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["dataset=npz", f"dataset.root={arrays.parent}", f"dataset.file={arrays.name}", "dataset.mean=[0.5]"]
    words += ["trainer.batch_size=16", "trainer.device=cpu", "schedule.stages=[(20,1e-1)]"]
    done = stagetree(folder, "train", *words)
    assert done.returncode == 0, done.stderr
    with np.load(arrays) as given:
        for label in range(3):
            index = int(np.flatnonzero(given["test_y"] == label)[0])
            Image.fromarray(given["test_x"][index]).save(folder / f"{label}.png")
    return folder


def test_predictions_are_those_of_the_plain_module(trained):
    frame = store.load(f"sqlite:///{trained}/mlruns/mlflow.db", "stagetree")
    run = find_run(frame, "best")
    files = [str(trained / f"{label}.png") for label in range(3)]
    found = classify(Network.load(trained / "mlruns", run["uid"]), files)
    weights = load_file(trained / "mlruns" / "checkpoints" / f"{run['uid']}.safetensors")
    module = sequential(16, 3, hidden_sizes=[128], activation="relu")
    module.load_state_dict(weights)
    for path, probabilities in zip(files, found, strict=True):
        with Image.open(path) as image:
            x = torch.tensor(np.asarray(image).reshape(1, 16) / 255, dtype=torch.float32) - 0.5
        expected = module(x).softmax(-1)[0]
        by_class = {str(index): expected[index].item() for index in range(3)}
        assert dict(probabilities) == pytest.approx(by_class, abs=1e-6)
    assert [probabilities[0][0] for probabilities in found] == ["0", "1", "2"]


def test_images_are_named_on_the_command_line(trained):
    (trained / "a=b, 'c'.png").write_bytes((trained / "1.png").read_bytes())
    done = stagetree(trained, "predict", "best", "0.png", "a=b, 'c'.png", "report.metric=test_acc")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("by run ")
    assert "(small.npz, " in done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("0.png: 0 ")
    assert second.startswith("a=b, 'c'.png: 1 ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonesuch", "0.png"], "predict: there is no run 'nonesuch', expected one of"),
        (["best"], "predict: no image was given"),
        (["best", "missing.png"], "missing.png: cannot be read as an image"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_one_sentence(trained, words, said):
    done = stagetree(trained, "predict", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_what_is_said_of_the_data_follows_the_source_and_the_run_stays(trained, arrays, tmp_path):
    """The same content, first as rows and with other names: nothing is trained again, all that is written is new."""
    with np.load(arrays) as given:
        first = dict(given)

    def train(**changes):
        np.savez(tmp_path / "mine.npz", **{**first, **changes})
        words = ["dataset=npz", f"dataset.root={tmp_path}", "dataset.file=mine.npz", "schedule.stages=[(20,1e-1)]"]
        done = stagetree(tmp_path, "train", *words, "dataset.mean=[0.5]", "trainer.batch_size=16", "trainer.device=cpu")
        assert done.returncode == 0, done.stderr
        (run,) = store.load(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "stagetree").to_dict("records")
        return run["uid"]

    rows = {part: first[part].reshape(-1, 16) for part in ("train_x", "test_x")}
    uid = train(**rows, classes=np.array(["a", "b", "c"]))
    files = [str(trained / f"{label}.png") for label in range(3)]
    with pytest.raises(InputError, match=r"0\.png: expected 16 x 1 pixels, .* got 4 x 4"):
        classify(Network.load(tmp_path / "mlruns", uid), files)
    with Image.open(files[1]) as image:
        Image.fromarray(np.asarray(image).reshape(1, 16)).save(tmp_path / "row.png")
    assert classify(Network.load(tmp_path / "mlruns", uid), [str(tmp_path / "row.png")])[0][0][0] == "b"

    assert train(classes=np.array(["zero", "one", "two"])) == uid
    network = Network.load(tmp_path / "mlruns", uid)
    found = classify(network, files)
    assert [probabilities[0][0] for probabilities in found] == ["zero", "one", "two"]
    export.export(network, tmp_path / "model", {})
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert (about["classes"], about["image_shape"]) == (["zero", "one", "two"], [1, 4, 4])
    assert stagetree(tmp_path, "report").returncode == 0
    assert '"classes":["zero","one","two"]' in (tmp_path / "leaderboard.html").read_text()


def test_a_run_is_found_by_the_beginning_of_its_id_or_its_name(trained):
    frame = store.load(f"sqlite:///{trained}/mlruns/mlflow.db", "stagetree")
    run = frame.iloc[0]
    assert find_run(frame, run["run_id"][:4])["uid"] == run["uid"]
    assert find_run(frame, run["run_name"])["uid"] == run["uid"]
    with pytest.raises(InputError, match="there is no run"):
        find_run(frame, run["run_id"][:3])
    with pytest.raises(InputError, match="is running, expected a finished run"):
        find_run(frame.assign(status="running"), run["run_name"])


def test_a_checkpoint_says_what_it_was_trained_on(trained):
    (uid,) = checkpoints.finished(trained / "mlruns" / "checkpoints").tested
    record = checkpoints.read_record(trained / "mlruns" / "checkpoints", uid)
    assert record.trunk.mean == (0.5,)


def test_the_best_of_runs_that_cannot_be_compared_is_nobodys_guess(trained):
    frame = store.load(f"sqlite:///{trained}/mlruns/mlflow.db", "stagetree")
    other = frame.assign(run_id="f" * 32, dataset="mnist", dataset_digest="d")
    both = pd.concat([frame, other], ignore_index=True)
    with pytest.raises(InputError, match=r"^predict: best of which\? .* of mnist; .* of small.npz .choose with data"):
        find_run(both, "best")
    assert find_run(both, "ffff")["run_id"] == "f" * 32
