"""Which device a worker gets: real processes and locks, names of devices that this machine need not have."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from stagetree import plan
from stagetree.errors import InputError
from stagetree.execution import engine_choice
from stagetree.training import devices

WORKER = """
import sys
from pathlib import Path
from stagetree.storage.locks import Locks
from stagetree.training.devices import take_slot
said = lambda text: print(text, flush=True)
print(take_slot(Locks(Path(sys.argv[1])), sys.argv[3:], int(sys.argv[2]), lambda: None, said), flush=True)
sys.stdin.read()
"""


class Worker:
    """A process that takes a slot and keeps it."""

    def __init__(self, path: Path, per_device: int, *names: str):
        command = [sys.executable, "-c", WORKER, str(path), str(per_device), *names]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def worker(tmp_path):
    made = []

    def start(per_device: int, *names: str) -> Worker:
        made.append(Worker(tmp_path / "lock", per_device, *names))
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_each_worker_gets_a_device_of_its_own_and_the_next_one_waits_for_it(worker):
    first, second = worker(1, "GPU-a", "GPU-b"), worker(1, "GPU-a", "GPU-b")
    taken = {first.said(), second.said()}
    assert taken == {"0", "1"}
    third = worker(1, "GPU-a", "GPU-b")
    assert third.said() == (
        "a worker waits for a device: 2 here, with 1 worker each (execution.workers_per_device=2 allows more)"
    )
    second.end()  # killed
    assert third.said() in taken


def test_devices_are_shared_as_evenly_as_can_be_when_asked(worker):
    got = [worker(2, "GPU-a", "GPU-b").said() for _ in range(4)]
    assert got == ["0", "1", "0", "1"]


def test_a_process_that_sees_one_device_keeps_off_the_others(worker):
    assert worker(1, "GPU-a", "GPU-b").said() == "0"
    assert worker(1, "GPU-b").said() == "0", "another one, under the same number"
    assert worker(1, "GPU-a").said().startswith("a worker waits")


@pytest.mark.parametrize(
    ("there", "visible", "count"), [(4, None, 4), (4, "1,3", 2), (4, "", 0), (1, "0,1", 1), (0, None, 0)]
)
def test_devices_are_counted_without_torch(monkeypatch, tmp_path, there, visible, count):
    for number in range(there):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.count_devices("cuda") == count
    assert devices.count_devices("cpu") is None


@pytest.mark.parametrize(
    ("settings", "workers"),
    [({}, 3), ({"workers_per_device": 2}, 6), ({"workers": 2}, 2), ({"workers": 6, "workers_per_device": 2}, 6)],
)
def test_there_are_as_many_workers_as_slots(monkeypatch, bench, settings, workers):
    monkeypatch.setattr(engine_choice, "count_devices", lambda device: 3)
    config = bench.config(**{f"execution__{key}": value for key, value in settings.items()})
    joblib = OmegaConf.create({"_target_": "a.JoblibLauncher", "n_jobs": 8})
    assert engine_choice.count_workers(joblib, config) == workers


def test_more_workers_than_slots_are_refused(monkeypatch, bench):
    monkeypatch.setattr(engine_choice, "count_devices", lambda device: 3)
    joblib = OmegaConf.create({"_target_": "a.JoblibLauncher", "n_jobs": 8})
    with pytest.raises(
        InputError, match=r"execution.workers: got 4 for 3 devices, expected at most 3 \(execution.workers_per_device=2"
    ):
        engine_choice.count_workers(joblib, bench.config(execution__workers=4))


def test_every_setting_that_does_not_fit_the_data_or_this_machine_is_told_at_once_before_anything_trains(
    monkeypatch, tmp_path, arrays
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # whatever the machine has
    base = ["dataset=npz", f"dataset.root={arrays.parent}", f"dataset.file={arrays.name}", f"output_dir={tmp_path}"]
    base += ["schedule.stages=[(1,0.1)]", "hydra/launcher=basic"]
    monkeypatch.setattr(devices, "NVIDIA", tmp_path / "none")
    devices.resolve_device.cache_clear()
    devices.lacking.cache_clear()
    grid = ["trainer.device=auto,cuda", "trainer.precision=tf32,float32", "seed=0,1"]
    with pytest.raises(InputError) as told:
        plan(*base, *grid, "loss.class_weights=[1,2],[],[1,2,3,4],[1,2,3]")
    assert sorted(line.partition(": ")[::2] for line in str(told.value).splitlines()) == [
        ("loss.class_weights", "got 2 for the 3 classes of npz, expected one for each (or none: all 1)"),
        ("loss.class_weights", "got 4 for the 3 classes of npz, expected one for each (or none: all 1)"),
        (
            "trainer.device",
            f"got cuda, but torch {torch.__version__} on {socket.gethostname()} does not see one "
            "(trainer.device=cpu trains without)",
        ),
        (
            "trainer.precision",
            "got tf32, which is for cuda, but trainer.device=auto is cpu here (set trainer.precision=float32)",
        ),
    ]
    assert not (tmp_path / "sweeps").exists()
    elsewhere = ["hydra/launcher=submitit_slurm", "trainer.device=cuda", "trainer.precision=tf32"]
    assert len(plan(*base[:-1], *elsewhere)) == 1, "SLURM's nodes may have what this machine lacks"


@pytest.mark.gpu
def test_a_worker_uses_a_device_that_no_other_worker_has(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(devices, "_mine", None)
    devices.use_device("cuda", 1, lambda: None, print)
    assert torch.cuda.current_device() == devices._mine
