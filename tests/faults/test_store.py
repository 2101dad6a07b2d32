"""Where a store can and cannot be written, and data that vanishes or changes: a sentence, and nothing destroyed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import GRID, compare, results, rng
from sweeps import small, stagetree, start, succeed, trained, wait_until

from stagetree.storage import checkpoints

IN_A_FULL_DISK = """\
set -e
mount -t tmpfs -o size={size}k tmpfs {folder}
cd {folder}
set +e
{command} > {out}/first.txt 2>&1; echo $? > {out}/first
df -k . | tail -1 >> {out}/first.txt
set -e
mount -o remount,size=200m {folder}
{command} > {out}/out.txt 2>&1
cp -r mlruns leaderboard.csv {out}
"""


def can_mount() -> bool:
    """Whether this system lets users mount a file system of their own."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(probe, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces, to mount a small disk")
@pytest.mark.rounds(short=1, full=20)
@pytest.mark.differs("its artifacts are on a disk that is gone by then")
def test_full_disk(seed, tmp_path, arrays, reference, tally):
    """The disk fills up somewhere; with more room the same command goes on."""
    row, random = tally("disk full"), rng(seed)
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "stagetree", "sweep", *small(arrays), *GRID])
    size = random.randrange(100, 1600)
    script = IN_A_FULL_DISK.format(size=size, folder=disk, out=out, command=words)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    said = (out / "first.txt").read_text()
    assert done.returncode == 0, done.stderr + said + (out / "out.txt").read_text()
    row.injected += 1
    assert (out / "first").read_text().strip() in ("1", "3"), (size, said)
    assert "No space left on device" in said or "disk is full" in said, (size, said)
    assert "Traceback" not in said, (size, said)
    compare(out, reference, row, kills=1)


def test_read_only_disk(tmp_path, swept_once, arrays):
    """Looking works; training says in a sentence what it cannot write."""
    if not can_mount():
        pytest.skip("needs user namespaces")
    script = f"mount --bind {swept_once} {swept_once} && mount -o remount,ro,bind {swept_once} && cd {swept_once} && "

    def run(*words):
        line = " ".join(f"'{word}'" for word in [sys.executable, "-m", "stagetree", *words])
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", script + line], capture_output=True, text=True, check=False
        )

    for words in (["plan", *small(arrays), "seed=0,1"], ["report", f"--output={tmp_path}/l.csv"]):
        done = run(*words)
        assert done.returncode == 0, done.stderr
    for words in (["sweep", *small(arrays), "seed=0,1,2"], ["report"], ["train", *small(arrays), "seed=9"]):
        done = run(*words)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Read-only file system" in done.stderr
        assert str(swept_once) in done.stderr or "leaderboard.csv" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory, arrays) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    done = stagetree(folder, "sweep", *small(arrays), "seed=0,1", "schedule.stages=[(2,5e-2)]")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become somebody else")
def test_no_permission(tmp_path, arrays):
    """Another user's folder."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in [tmp_path, *tmp_path.parents[:3], arrays.parent, *arrays.parent.parents[:2]]:
        path.chmod(0o755)
    command = [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "stagetree", "train",
        *small(arrays),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    probe = subprocess.run([*command[:5], "-c", "import stagetree"], capture_output=True, env=environment, check=False)
    if probe.returncode:
        pytest.skip("nobody may not read this Python")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert "mlruns" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


def copied(arrays: Path, folder: Path) -> list[str]:
    """Overrides that choose a copy of the small data."""
    shutil.copy(arrays, folder / "own.npz")
    kept = [word for word in small(arrays) if not word.startswith(("dataset.root", "dataset.file"))]
    return [*kept, f"dataset.root={folder}", "dataset.file=own.npz"]


@pytest.mark.full
def test_data_that_vanishes_while_a_sweep_trains_is_not_missed(tmp_path, arrays):
    words = copied(arrays, tmp_path)
    sweep = start(tmp_path, "sweep", *words, "seed=0,1", "schedule.stages=[(60,5e-2)]")
    wait_until(lambda: trained(tmp_path))
    (tmp_path / "own.npz").unlink()
    succeed(sweep, tmp_path)
    done = stagetree(tmp_path, "sweep", *words, "seed=0,1,2")
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert len(checkpoints.finished(tmp_path / "mlruns/checkpoints").tested) == 2


@pytest.mark.full
def test_data_that_changes_while_a_sweep_trains_is_other_data_to_the_next(tmp_path, arrays):
    words = copied(arrays, tmp_path)
    grid = ["seed=0,1", "schedule.stages=[(60,5e-2)]"]
    sweep = start(tmp_path, "sweep", *words, *grid)
    wait_until(lambda: trained(tmp_path))
    with np.load(arrays) as source:
        changed = dict(source)
    changed["train_x"][0, 0, 0] ^= 1
    np.savez(tmp_path / "own.npz", **changed)
    succeed(sweep, tmp_path)
    before = results(tmp_path)
    done = stagetree(tmp_path, "sweep", *words, *grid)
    assert "2 points, 0 duplicates, 0 finished, 2 to train" in done.stdout
    after = results(tmp_path)
    assert len(after) == 4
    assert all(after[uid] == kept for uid, kept in before.items())


def test_fresh_trains_anew_what_is_finished_and_supersedes_it(tmp_path, arrays):
    from stagetree.tracking import store

    words = [*small(arrays), "seed=0,1", "schedule.stages=[(2,5e-2),(1,1e-2)]"]
    assert stagetree(tmp_path, "sweep", *words).returncode == 0
    before, old = results(tmp_path), store.load(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "stagetree")
    planned = stagetree(tmp_path, "plan", "--fresh", *words)
    assert "0 finished, 2 to train" in planned.stdout
    done = stagetree(tmp_path, "sweep", "--fresh", *words)
    assert done.returncode == 0, done.stderr
    assert set(trained(tmp_path).values()) == {2}
    assert results(tmp_path) == before
    new = store.load(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "stagetree")
    assert list(new["uid"]) == list(old["uid"])
    assert not set(new["run_id"]) & set(old["run_id"])
    assert set(new["status"]) == {"finished"}
    assert "2 finished, 0 to train" in stagetree(tmp_path, "sweep", *words).stdout
