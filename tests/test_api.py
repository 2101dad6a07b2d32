"""The commands as functions."""

import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from sweeps import small, stagetree

import stagetree as package
from stagetree.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
GRID = ["seed=0,1", "schedule.stages=[(2,1e-1)],[(2,1e-1),(1,1e-2)]", "hydra/launcher=basic", "quiet=true"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_returns_its_leaderboard_and_leaves_no_state(here, arrays):
    root = logging.getLogger()
    before = root.handlers[:], root.level, HydraConfig.instance().cfg
    words = [*small(arrays), *GRID]
    planned = package.plan(*words, "trainer.workers=1")  # its name in earlier versions
    assert planned["finished"].tolist() == [False] * 4
    assert planned.attrs["workers"] == 1
    assert (planned.attrs["points"], planned.attrs["epochs_asked"], planned.attrs["epochs_to_train"]) == (4, 10, 6)
    frame = package.sweep(*words)
    assert frame["status"].tolist() == ["finished"] * 4
    assert frame["rank"].tolist() == [1, 2, 3, 4]
    assert package.plan(*words)["finished"].all()
    assert (root.handlers, root.level, HydraConfig.instance().cfg) == before
    assert not GlobalHydra.instance().is_initialized()
    written = pd.read_csv(here / "leaderboard.csv")
    assert written["run_id"].tolist() == frame["run_id"].tolist()
    ranked = package.leaderboard("report.metric=test_loss")
    assert ranked["test_loss"].is_monotonic_increasing
    assert package.leaderboard("report.group_by=seed")["n"].tolist() == [2, 2]


def global_state() -> dict:
    """What a caller may have set in this process and go on with."""
    return {
        "threads": torch.get_num_threads(),
        "a number that is flushed": (torch.tensor(sys.float_info.min, dtype=torch.float64) / 2).item(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        "folder": os.getcwd(),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("flushes", [False, True])
def test_torch_and_the_process_are_left_as_they_were(here, arrays, flushes):
    torch.set_num_threads(3)
    torch.set_flush_denormal(flushes)
    try:
        before = global_state()
        package.plan(*small(arrays), "trainer.threads=2", *GRID)
        assert global_state() == before
        package.sweep(*small(arrays), "trainer.threads=2", *GRID)
        assert global_state() == before
    finally:
        torch.set_flush_denormal(False)


def test_it_trains_what_the_command_line_trains(here, arrays):
    assert stagetree(here, "sweep", *small(arrays), *GRID).returncode == 0
    assert package.plan(*small(arrays), *GRID)["finished"].all()


def test_own_groups_are_found(here, arrays):
    (here / "own" / "model").mkdir(parents=True)
    (here / "own" / "model" / "wide.yaml").write_text("hidden_sizes: [99]\n")
    found = package.plan(*small(arrays), "model=wide", config_dir="own")
    assert "99" in found["name"][0]
    with pytest.raises(InputError, match="config_dir: there is no folder"):
        package.plan(config_dir="nonesuch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.hidden_sizes=[-1]"], "model.hidden_sizes"),
        (["nonesuch=1"], "nonesuch"),
        (["model=nonesuch"], "nonesuch"),
        (["seed=[}"], r"\[\}"),
        (["ui.port=1"], "ui.port: is no setting now but an argument of its command"),
    ],
)
def test_errors_are_exceptions_with_a_sentence(here, words, said):
    with pytest.raises(InputError, match=said):
        package.plan(*words)


def test_a_leaderboard_is_of_one_experiment(here):
    with pytest.raises(InputError, match="takes one value of each setting, got 2 combinations"):
        package.leaderboard("report.top=1,2")
    with pytest.raises(InputError, match="there is no database"):
        package.leaderboard()


def test_importing_the_package_imports_nothing_heavy():
    code = "import stagetree, sys; print({'hydra', 'torch', 'pandas', 'mlflow', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert not hasattr(package, "nonesuch")
