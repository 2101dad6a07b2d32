"""Hydra's own suites for launchers, run through our sweeper; and other people's sweepers on our task function.

`make conformance` runs them with every launcher, and prints the counts.

Left out: `BatchedSweeperTestSuite`, which asks for `hydra.sweeper.max_batch_size`. Units are cut for workers, and what
a launcher is given at a time is not the user's to choose.
"""

import os
import subprocess
import sys

import pytest
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase
from sweeps import small, stagetree, trained

# Hydra's test applications are written for several versions of Hydra, and warn in each
pytestmark = pytest.mark.filterwarnings("default")

Plugins.instance()  # before Hydra's fixture takes a copy of its singletons: 1.4 finds plugins once a process

LAUNCHERS = [
    "basic",
    "joblib",
    pytest.param("submitit_local", marks=pytest.mark.full),
    pytest.param("ray", marks=pytest.mark.full),
]
OWN = "hydra/sweeper=stagetree"


VERSION_BASE = vars(VersionBase.instance()).copy()  # as nobody set it


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in VERSION_BASE.items():  # our own tests set it, and Hydra's expect its defaults
        monkeypatch.setattr(VersionBase.instance(), name, value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def overrides() -> list[str]:
    return [OWN]


@pytest.mark.parametrize("launcher_name", LAUNCHERS)
class TestLaunchers(LauncherTestSuite):
    pass


@pytest.fixture
def extra_flags(launcher) -> list[str]:
    return ["-m", OWN, f"hydra/launcher={launcher}"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("task_launcher_cfg", [{}])
class TestIntegration(IntegrationTestSuite):
    pass


# ---------------------------------------------------------------- other sweepers


def test_hydras_basic_sweeper_runs_our_task_without_sharing(tmp_path, arrays):
    grid = ["hydra/sweeper=basic", "hydra/launcher=basic", "schedule.stages=[(2,5e-2),(1,1e-2)],[(2,5e-2),(1,1e-3)]"]
    done = stagetree(tmp_path, "train", "-m", *grid, *small(arrays), "execution.fresh=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(trained(tmp_path).values()) == 6


def test_optuna_optimises_what_our_task_returns(tmp_path, tmp_path_factory, arrays):
    """The plugin wants an Optuna that no longer gets along with this SQLAlchemy, so it keeps its trials in memory."""
    packages = tmp_path_factory.mktemp("optuna")
    wanted = ["hydra-optuna-sweeper==1.3.0", "optuna==2.10.1", "cmaes==0.9.1", "colorlog", "cliff", "tqdm"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *wanted]
    subprocess.run(install, check=True)
    words = [
        "hydra/sweeper=optuna", "hydra/launcher=basic", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1",
        "model.dropout=interval(0,0.5)", "schedule.stages=[(1,5e-2)]",
    ]  # fmt: skip
    done = stagetree(
        tmp_path, "train", "-m", *words, *small(arrays), env={**os.environ, "PYTHONPATH": str(packages)}
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mlruns/sweeps/optimization_results.yaml").exists()
    assert sum(trained(tmp_path).values()) == 3
