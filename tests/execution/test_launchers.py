"""The same sweep on every engine: the same bits and leaderboard, nothing lost when workers, nodes or launchers die.

`make launchers` runs all of it, with full counts, and prints the table.
"""

import os
import signal
import time

import pytest
import sweeps
from clusters import ray_cluster, slurm_cluster
from faults import GRID, compare, kill_a_worker, results, rng
from pandas import read_csv
from pandas.testing import assert_frame_equal
from sweeps import PATIENCE_S, alive, small, stagetree, start, succeed, trained, wait_until, workers

from stagetree.storage.events import Failed

RAY_QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # nothing into the home folder, or out


@pytest.fixture(scope="module", autouse=True)
def quiet_ray():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_QUIET.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def slurm():
    if os.getuid() != 0:
        pytest.skip("SLURM's daemons are started by root")
    with slurm_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def launcher(request):
    """Overrides that choose a launcher, by its name."""
    name = request.param
    if name == "submitit_slurm":
        request.getfixturevalue("slurm")
    return name, [f"hydra/launcher={name}"]


every = pytest.mark.parametrize(
    "launcher", ["basic", "joblib", "submitit_local", "submitit_slurm", "ray"], indirect=True
)


def some(*names: str):
    """These launchers in the short pass, and all that have workers in the full one."""
    launchers = ("joblib", "submitit_local", "submitit_slurm", "ray")
    params = [pytest.param(name, marks=() if name in names else pytest.mark.full) for name in launchers]
    return pytest.mark.parametrize("launcher", params, indirect=True)


@every
def test_every_launcher_gives_the_same_bits_and_leaderboard(launcher, tmp_path, arrays, reference, reference_csv):
    _, words = launcher
    done = stagetree(tmp_path, "sweep", *small(arrays), *GRID, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path) == reference
    varying = ["run_id", "train_seconds"]
    ours, theirs = [read_csv(path).drop(columns=varying) for path in (tmp_path / "leaderboard.csv", reference_csv)]
    assert_frame_equal(ours, theirs)
    assert "launcher:" not in done.stderr


@some("submitit_slurm", "ray")
@pytest.mark.rounds(short=1, full=5)
def test_killed_workers(seed, launcher, tmp_path, arrays, reference, tally):
    name, words = launcher
    row, random = tally(f"{name}: kill -9 of a worker"), rng(seed)
    sweep = start(tmp_path, "sweep", *small(arrays), *GRID, *words)
    kill_a_worker(sweep, tmp_path, row, random, within=2)
    succeed(sweep, tmp_path)
    compare(tmp_path, reference, row, kills=row.injected)


@some("submitit_slurm")  # of Ray's cluster a minute passes until it notices that its driver is gone
@pytest.mark.rounds(short=1, full=5)
def test_killed_launching_processes(seed, launcher, tmp_path, arrays, reference, tally):
    """The same command goes on; workers that outlive their launching process are in nobody's way."""
    name, words = launcher
    row, random = tally(f"{name}: kill -9 of the launching process"), rng(seed)
    sweep = start(tmp_path, "sweep", *small(arrays), *GRID, *words)
    wait_until(lambda: sweep.poll() is not None or trained(tmp_path))
    time.sleep(random.uniform(0, 2))
    row.injected += sweep.poll() is None
    sweep.kill()
    sweep.wait()
    succeed(start(tmp_path, "sweep", *small(arrays), *GRID, *words), tmp_path)
    compare(tmp_path, reference, row, kills=row.injected)
    wait_until(lambda: not alive(sweep.pid))


@some("submitit_local")
def test_interrupted_sweeps_keep_their_states(launcher, tmp_path, arrays, reference, tally):
    name, words = launcher
    row = tally(f"{name}: SIGINT to the launching process")
    row.injected += 1
    words = [*small(arrays), *GRID, *words, "execution.checkpoint_every_s=3600"]
    sweep = start(tmp_path, "sweep", *words)
    wait_until(lambda: trained(tmp_path))
    os.kill(sweep.pid, signal.SIGINT)
    assert sweep.wait(PATIENCE_S) == 128 + signal.SIGINT
    said = (tmp_path / "out.txt").read_text()
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    succeed(start(tmp_path, "sweep", *words), tmp_path)
    compare(tmp_path, reference, row, kills=0)


@some("joblib", "submitit_slurm", "ray")
def test_a_tree_that_must_be_cut_trains_each_epoch_once(launcher, tmp_path, arrays):
    """Units that wait for others: through dependencies of the engine where it has them."""
    _, words = launcher
    grid = "schedule.stages=" + ",".join(f"[(20,5e-2),(10,{lr})]" for lr in ("1e-2", "2e-2", "3e-2", "4e-2"))
    done = stagetree(tmp_path, "sweep", *small(arrays), grid, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 for 2 workers (2 wait for others)" in done.stdout
    assert sum(trained(tmp_path).values()) == 60
    assert "another process trains" not in done.stderr


def test_jobs_of_slurm_outlive_their_launching_process_and_can_be_watched(slurm, tmp_path, arrays, reference, tally):
    row = tally("submitit_slurm: kill -9 of the launching process, which stays away")
    row.injected += 1
    words = [*small(arrays), *GRID, "hydra/launcher=submitit_slurm"]
    sweep = start(tmp_path, "sweep", *words)
    wait_until(lambda: len(workers(tmp_path)) == 2)
    sweep.kill()
    sweep.wait()
    watched = stagetree(tmp_path, "watch")
    assert watched.returncode == 0
    assert watched.stderr.splitlines()[-1] == "24/24 runs done; no process trains this sweep now"
    assert results(tmp_path) == reference
    epochs = sum(trained(tmp_path).values())
    succeed(start(tmp_path, "sweep", *words), tmp_path)
    assert sum(trained(tmp_path).values()) == epochs, "all that was left was to record it"
    compare(tmp_path, reference, row, kills=0)


def test_a_run_that_diverges_fails_what_forks_from_it_and_nothing_else(tmp_path, arrays):
    """Its children are units of their own, which then have nothing to start from."""
    grid = "schedule.stages=" + ",".join(f"[(6,{a}),(6,{b})]" for a in ("1e38", "5e-2") for b in ("1e-2", "1e-3"))
    done = stagetree(tmp_path, "sweep", *small(arrays), grid, "hydra/launcher=submitit_local")
    assert done.returncode == 3
    assert "2 of 4 runs failed" in done.stdout
    assert len(results(tmp_path)) == 2
    failed = [event for event in sweeps.events(tmp_path) if isinstance(event, Failed)]
    assert len(failed) == 1
    assert "became nan in epoch 1" in failed[0].reason


def test_slurm_that_is_not_there_is_told_before_anything_trains(tmp_path, arrays, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = stagetree(tmp_path, "sweep", *small(arrays), "seed=0,1", "hydra/launcher=submitit_slurm")
    assert done.returncode == 3
    assert "SLURM's sbatch is not installed on" in done.stdout
    assert "2 of 2 runs are not finished; what is finished is kept." in done.stdout
    assert not trained(tmp_path)


def test_slurms_own_words_are_told_when_it_takes_no_job(slurm, tmp_path, arrays):
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=elsewhere", "seed=0,1"]
    done = stagetree(tmp_path, "sweep", *small(arrays), *words)
    assert done.returncode == 3
    assert "no worker began to train, 3 times in a row" in done.stdout
    assert "invalid partition specified: elsewhere" in done.stdout
    assert not [event for event in sweeps.events(tmp_path) if isinstance(event, Failed)], "no run is to blame"


def test_ray_that_is_not_there_is_told_with_what_brings_it(tmp_path, arrays):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ray'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = stagetree(tmp_path, "sweep", *small(arrays), "seed=0,1", "hydra/launcher=ray", env=environment)
    assert done.returncode == 1
    assert done.stderr == "hydra/launcher=ray: Ray is not installed (pip install 'stagetree[ray]')\n"


def test_slurm_on_two_nodes_of_which_one_dies(slurm, tmp_path, arrays, reference, tally):
    """SLURM starts what was there again, on the node that is left."""
    row = tally("submitit_slurm: a node dies")
    row.injected += 1
    sweep = start(tmp_path, "sweep", *small(arrays), *GRID, "hydra/launcher=submitit_slurm")
    wait_until(lambda: len(workers(tmp_path)) == 2)
    slurm.kill_node("n1")
    succeed(sweep, tmp_path)
    assert "launcher:" not in (tmp_path / "out.txt").read_text()
    compare(tmp_path, reference, row, kills=1)
    slurm.start_node("n1")
    wait_until(slurm.is_idle)


def test_ray_on_two_nodes_of_which_one_dies(tmp_path, arrays, reference, tally):
    row = tally("ray: a node dies")
    row.injected += 1
    with ray_cluster(nodes=2) as cluster:
        at = [f"+hydra.launcher.ray.init.address={cluster.address}", "execution.workers=auto"]
        sweep = start(tmp_path, "sweep", *small(arrays), *GRID, "hydra/launcher=ray", *at)
        wait_until(lambda: len(workers(tmp_path)) == 2)
        cluster.kill_node()
        succeed(sweep, tmp_path)
    assert "for 2 workers" in (tmp_path / "out.txt").read_text()
    compare(tmp_path, reference, row, kills=1)
