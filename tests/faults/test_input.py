"""Hostile and misspelt input: nothing executes, nothing leaves its folder, and each error is told in a sentence."""

import csv
import hashlib
import io
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import faults
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sweeps import PATIENCE_S, command, small, stagetree, wait_until

from stagetree.data import cache
from stagetree.errors import InputError
from stagetree.report import table
from stagetree.storage import checkpoints
from stagetree.storage.files import read_sealed, write_sealed


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch '{self.proof}'",)


@pytest.fixture
def proof(tmp_path, tally):
    """A file that a payload makes if it is executed; it must not be there in the end."""
    row = tally("hostile payload")
    row.injected += 1
    path = tmp_path / "executed"
    yield path
    row.lost += path.exists()


def refused(done: subprocess.CompletedProcess) -> str:
    """What is said on stderr by a command that ends with one sentence."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert 0 < len(done.stderr.strip().splitlines()) <= 3, done.stderr
    return done.stderr


def test_a_target_in_a_config(tmp_path, proof):
    done = stagetree(tmp_path, "plan", "+model._target_=os.system", f"+model.command='touch {proof}'", "seed=0,1")
    said = refused(done)
    assert "model._target_: there is no such setting" in said


def test_a_yaml_tag(tmp_path, proof):
    own = tmp_path / "own" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(f'hidden_sizes: !!python/object/apply:os.system ["touch {proof}"]\n')
    done = stagetree(tmp_path, "plan", "--config-dir", "own", "model=mine")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "python/object/apply:os.system" in done.stderr


def test_code_in_a_schedule(tmp_path, proof):
    said = refused(stagetree(tmp_path, "plan", f"schedule.stages=\"__import__('os').system('touch {proof}')\""))
    assert "not a list of stages" in said


def test_an_interpolation(tmp_path, proof):
    said = refused(stagetree(tmp_path, "plan", f"output_dir='${{eval:touch {proof}}}'"))
    assert "output_dir" in said


def test_a_pickle_in_arrays(tmp_path, proof):
    hostile = np.array([Payload(proof)] * 4, dtype=object)
    np.savez(tmp_path / "x.npz", train_x=hostile, train_y=np.arange(4), test_x=hostile, test_y=np.arange(4))
    said = refused(stagetree(tmp_path, "plan", "dataset=npz", f"dataset.root={tmp_path}", "dataset.file=x.npz"))
    assert "x.npz" in said


def test_a_pickle_in_a_checkpoint_whose_record_vouches_for_it(bench, proof):
    run = bench.run()
    bench.train(run)
    content = pickle.dumps(Payload(proof))
    (bench.checkpoints / f"{run.uid}.safetensors").write_bytes(content)
    path = bench.checkpoints / f"{run.uid}.json"
    values = read_sealed(path)
    values["files"][f"{run.uid}.safetensors"] = hashlib.sha256(content).hexdigest()
    write_sealed(path, values)
    with pytest.raises(InputError, match="holds no tensors"):
        checkpoints.load(bench.checkpoints, run.uid)


def test_a_checkpoint_that_claims_another_place(bench, proof):
    run = bench.run()
    bench.train(run)
    path = bench.checkpoints / f"{run.uid}.json"
    write_sealed(path, read_sealed(path) | {"uid": "../../executed"})
    with pytest.raises(InputError, match="damaged"):
        checkpoints.read_record(bench.checkpoints, run.uid)


def test_an_index_that_leads_out_of_the_cache(bench, proof):
    dataset = bench.config().dataset
    info = cache.prepare(dataset, bench.output_dir)
    (index,) = (bench.output_dir / "data").glob("*.json")
    outside = proof.parent / "outside"
    os.rename(info.folder, outside)
    entry = read_sealed(index)
    entry["info"]["folder"] = os.path.relpath(outside, index.parent)
    write_sealed(index, entry)
    assert Path(cache.prepare(dataset, bench.output_dir).folder).parent == bench.output_dir / "data"


def test_formulas_in_names(tmp_path, proof):
    names = ["=HYPERLINK(1)", "+1", "@SUM(1)", "-1+cmd|' /C calc'!A0", "\t=1", "\uff1d1"]
    table.write_csv(pd.DataFrame({"run_name": names, "=x": names}), tmp_path / "l.csv")
    with open(tmp_path / "l.csv", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert all(cell == "run_name" or cell.startswith("'") for cell in cells)


def image(size: int = 8) -> Image.Image:
    return Image.fromarray(np.arange(size * size * 3, dtype="uint8").reshape(size, size, 3))


def folder_of_images(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(4):
            image().rotate(90 * k).save(root / name / f"{k}.png")
    return root


def test_names_of_classes_and_images(tmp_path, proof):
    """Markup, control characters, formulas and scripts in the names of folders and files are shown as text."""
    names = ["=1+1", "[red]x[", "<script>alert(1)<", "\x1b]0;owned\x07"]
    root = folder_of_images(tmp_path / "images", names)
    words = [
        "dataset=image_folder", f"dataset.root={root}", "dataset.height=8", "dataset.width=8", "dataset.test_size=0.25",
        "dataset.duplicates=warn",
    ]  # fmt: skip
    done = stagetree(tmp_path, "data", *words)
    assert done.returncode == 0, done.stderr
    assert "\x1b]0" not in done.stdout + done.stderr
    assert "[red]x[" in done.stdout
    done = stagetree(tmp_path, "train", *words, "schedule.stages=[(1,1e-2)]", "trainer.device=cpu")
    assert done.returncode == 0, done.stderr
    shot = tmp_path / "[bold]\x1b[31m.png"
    image().save(shot)
    done = stagetree(tmp_path, "predict", "best", str(shot))
    assert done.returncode == 0, done.stderr
    assert "\x1b[31m" not in done.stdout


def test_an_image_that_unpacks_to_a_million_times_its_size(tmp_path, proof):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    root = folder_of_images(tmp_path / "images", ["a", "b"])
    (root / "a" / "bomb.png").write_bytes(bomb)
    done = stagetree(tmp_path, "data", "dataset=image_folder", f"dataset.root={root}", "dataset.height=8",
                     "dataset.width=8", "dataset.test_size=0.25")  # fmt: skip
    assert "bomb.png" in refused(done)


def test_hidden_folders_of_notebooks_are_no_classes(tmp_path, proof):
    for part in ("train", "test"):
        folder_of_images(tmp_path / "images" / part, ["a", "b", ".ipynb_checkpoints"])
    done = stagetree(tmp_path, "data", "dataset=image_folder", f"dataset.root={tmp_path / 'images'}",
                     "dataset.height=8", "dataset.width=8", "dataset.duplicates=ignore")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train 8  val 0  test 8" in done.stdout


def test_a_link_to_a_file_that_is_no_image(tmp_path, proof):
    root = folder_of_images(tmp_path / "images", ["a", "b"])
    (root / "a" / "secret.png").symlink_to("/etc/passwd")
    done = stagetree(tmp_path, "data", "dataset=image_folder", f"dataset.root={root}", "dataset.height=8",
                     "dataset.width=8", "dataset.test_size=0.25")  # fmt: skip
    said = refused(done)
    assert "secret.png" in said
    assert "root:" not in said


def test_the_ui_is_for_this_machine_alone(tmp_path, arrays, proof):
    done = stagetree(tmp_path, "train", *small(arrays), "schedule.stages=[(1,1e-2)]")
    assert done.returncode == 0, done.stderr
    quiet = {"stderr": subprocess.DEVNULL, "text": True, "start_new_session": True}
    with subprocess.Popen(command("ui", "--port", "0"), cwd=tmp_path, stdout=subprocess.PIPE, **quiet) as server:
        try:
            port = int(server.stdout.readline().split(":")[2].split("/")[0])

            def status(host: str) -> int:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": host})
                try:
                    return urllib.request.urlopen(request, timeout=PATIENCE_S).status
                except urllib.error.HTTPError as error:
                    return error.code
                except OSError:
                    return 0

            assert wait_until(lambda: status(f"127.0.0.1:{port}")) == 200
            assert status("attacker.example") == 403
            own = socket.gethostbyname(socket.gethostname())
            if not own.startswith("127."):
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection((own, port), timeout=2)
        finally:
            os.killpg(server.pid, 15)


# ---------------------------------------------------------------- misspelt

MISSPELT = [
    # what is typed, what is said
    ("modle=mlp", "modle"),
    ("model=mpl_300", "mlp_300"),
    ("model.hiden_sizes=[8]", "hiden_sizes"),
    ("model.hidden_sizes=[0]", "model.hidden_sizes[0]: must be at least 1, got 0"),
    ("model.hidden_sizes=300", "model.hidden_sizes"),
    ("model.activation=rellu", "did you mean relu?"),
    ("model.dropout=1.5", "model.dropout: must be below 1.0, got 1.5"),
    ("dataset=minst", "mnist"),
    ("dataset.val_size=-1", "dataset.val_size: must be a whole number or a fraction below 1, got -1"),
    ("dataset.val_size=5000", "dataset.val_size: must leave images to train on"),
    ("dataset.mean=[0.1,0.2]", "dataset.mean: needs 1 value"),
    ("dataset.std=[0]", "std must be above 0"),
    ("optimizer=adamm", "adam"),
    ("optimizer.momentum=often", "optimizer.momentum: must be number, got 'often'"),
    ("optimizer.lr=0.1", "optimizer.lr"),
    ("schedule.stages=[(20,0.1,3)]", "must be a pair of epochs and lr"),
    ("schedule.stages=[(0,0.1)]", "epochs must be a whole number of at least 1, got 0"),
    ("schedule.stages=[(1,-0.1)]", "lr must be a finite number above 0"),
    ("schedule.stages=[]", "at least one stage"),
    ("schedule.stage=[(1,0.1)]", "stage"),
    ("loss=crossentropy", "cross_entropy"),
    ("trainer.batch_size=0", "trainer.batch_size: must be at least 1, got 0"),
    ("trainer.batch_size=32.5", "trainer.batch_size: must be integer, got 32.5"),
    ("trainer.device=gpu", "trainer.device: got 'gpu', expected one of auto, cpu, cuda, mps"),
    ("trainer.precision=fp16", "expected one of bfloat16, float32, tf32"),
    ("execution.workers=none", "execution.workers: must be auto or a whole number above 0, got 'none'"),
    ("execution.pack_size=0", "execution.pack_size"),
    ("seed=first", "seed: must be integer, got 'first'"),
    ("seed=-1", "seed: must be at least 0, got -1"),
    ("report.metric=accuracy", "report.metric: got 'accuracy', expected one of"),
    ("tracking.experiment=''", "tracking.experiment"),
    ("trainer=fast", "fast"),
]


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_misspelt_settings(tmp_path, command, tally, request):
    """Each is told in a sentence with the way out, and nothing is trained or left behind."""
    row = tally("misspelt configuration")
    chosen = MISSPELT
    if request.config.option.faults == "short":
        chosen = random.Random(command).sample(MISSPELT, 3)
    for typed, said in chosen:
        row.injected += 1
        words = [typed, "seed=0,1"] if command == "sweep" and not typed.startswith("seed") else [typed]
        done = stagetree(tmp_path, command, *words)
        assert done.returncode == 1, (typed, done.stdout + done.stderr)
        assert said in done.stderr, (typed, done.stderr)
        assert "Traceback" not in done.stderr, (typed, done.stderr)
        assert not (tmp_path / "mlruns" / "sweeps").exists()
        assert not (tmp_path / "mlruns" / "mlflow.db").exists()
        row.lost += (tmp_path / "mlruns" / "checkpoints").exists()


def test_the_table_of_the_suite_adds_up():
    rows = [faults.Tally("a", 2, 1), faults.Tally("a", 3, 0, 1, 0, 1.5), faults.Tally("b", 1)]
    lines = faults.table([json.loads(faults.dumped(row)) for row in rows])
    assert [line.split() for line in lines[1:]] == [["a", "5", "1", "1", "0", "1.5", "s"], ["b", "1", "0", "0", "0"]]
    assert io.StringIO("\n".join(lines)).readline().split()[:2] == ["fault", "injected"]
