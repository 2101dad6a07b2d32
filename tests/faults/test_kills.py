"""Kill, stop and break real processes at random instants: nothing is lost, nothing doubled, no bit differs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
import sweeps
from faults import GRID, compare, kill_a_worker, results, rng
from sweeps import PATIENCE_S, alive, events, small, stagetree, start, succeed, trained, wait_until, workers

from stagetree.storage.events import Failed

LEFT_S = 200  # joblib alone would keep its processes for 300


@pytest.mark.rounds(short=1, full=26)
def test_killed_workers(seed, tmp_path, arrays, reference, tally):
    row, random = tally("kill -9 of a worker"), rng(seed)
    sweep = start(tmp_path, "sweep", *small(arrays), *GRID)
    for _ in range(2):
        kill_a_worker(sweep, tmp_path, row, random, within=4)
        time.sleep(0.5)
    succeed(sweep, tmp_path)
    # when one worker dies, joblib ends all
    compare(tmp_path, reference, row, kills=row.injected)


@pytest.mark.rounds(short=1, full=13)
@pytest.mark.parametrize(
    "everything", [True, pytest.param(False, marks=pytest.mark.full)], ids=["with-its-workers", "alone"]
)
def test_killed_launching_processes(seed, everything, tmp_path, arrays, reference, tally):
    row, random = tally("kill -9 of the launching process" + (" and its workers" * everything)), rng(seed)
    killed = []
    for _ in range(2):
        sweep = start(tmp_path, "sweep", *small(arrays), *GRID)
        time.sleep(random.uniform(0.5, 9))
        row.injected += sweep.poll() is None
        killed.append(sweep.pid)
        if everything:
            sweeps.end(sweep)
        else:
            sweep.kill()
            sweep.wait()  # its workers are left to find out, and the next command does not wait for them
    succeed(start(tmp_path, "sweep", *small(arrays), *GRID), tmp_path)
    compare(tmp_path, reference, row, kills=row.injected)
    wait_until(lambda: not any(alive(pid) for pid in killed), LEFT_S)


@pytest.mark.rounds(short=1, full=20)
def test_killed_and_compared(seed, tmp_path, arrays, tally):
    """One run, of another optimizer each time, with its momentum carried from stage to stage, killed once."""
    random = rng(seed)
    row = tally("kill -9 and resume: one run's bits")
    optimizer = [
        "optimizer=sgd", "optimizer=adam", "optimizer=nadam", "optimizer=rmsprop", "optimizer=adagrad",
    ][seed % 5]  # fmt: skip
    words = [
        "train", *small(arrays), optimizer, "model.hidden_sizes=[64,32]", "model.dropout=0.2",
        "schedule.stages=[(150,2e-3),(150,1e-3)]", "schedule.reset_optimizer=false",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    process = start(broken, *words)
    wait_until(lambda: trained(broken))
    time.sleep(random.uniform(0, 3))
    row.injected += process.poll() is None
    sweeps.end(process)
    for folder in (broken, whole):
        succeed(start(folder, *words), folder)
    once = results(whole)
    row.lost += len(once.keys() ^ results(broken).keys())
    row.differing += results(broken) != once
    row.doubled += sum(times - 1 for times in trained(broken).values()) > row.injected


@pytest.mark.rounds(short=1, full=4)
@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param(signal.SIGINT, False, marks=pytest.mark.full),
        pytest.param(signal.SIGINT, True),
        pytest.param(signal.SIGTERM, False),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.full),
        pytest.param(signal.SIGHUP, False, marks=pytest.mark.full),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.full),
    ],
)
def test_stopped(seed, number, group, tmp_path, arrays, reference, tally):
    """Stopped at a random instant: no process is left, and the same command goes on."""
    row, random = tally(f"{number.name} to the {'whole group' if group else 'launching process'}"), rng(seed)
    sweep = start(tmp_path, "sweep", *small(arrays), "execution.checkpoint_every_s=3600", *GRID)
    time.sleep(0.5)
    wait_until(lambda: sweep.poll() is not None or workers(tmp_path))
    time.sleep(random.uniform(0, 2))
    began = time.monotonic()
    row.injected += sweep.poll() is None
    (os.killpg if group else os.kill)(sweep.pid, number)
    assert sweep.wait(PATIENCE_S) == 128 + number
    wait_until(lambda: not alive(sweep.pid), LEFT_S)
    row.slowest_s = time.monotonic() - began
    assert "the same command goes on from here" in (tmp_path / "out.txt").read_text()
    if number != signal.SIGHUP:  # the terminal is gone then, and joblib's helper says how it ended
        assert "Traceback" not in (tmp_path / "out.txt").read_text()
    done = stagetree(tmp_path, "sweep", *small(arrays), *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    # states were kept at the last epoch though no checkpoint was due, so nothing is trained twice
    compare(tmp_path, reference, row, kills=0)


# ---------------------------------------------------------------- isolation

FAULTY = """
import stagetree.models.mlp as model

real = model.initial_state
def initial_state(seed, *rest):
    if seed == 3:
        {fault}
    return real(seed, *rest)
model.initial_state = initial_state
"""


@pytest.mark.rounds(short=1, full=3)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param("raise ValueError('bad luck')", "ValueError: bad luck", marks=pytest.mark.full),
        ("import ctypes; ctypes.string_at(0)", "its worker died 3 times without a word"),
        pytest.param("import os; os._exit(5)", "its worker died 3 times without a word", marks=pytest.mark.full),
        pytest.param("import os; os.kill(os.getpid(), 9)", "its worker died 3 times", marks=pytest.mark.full),
        ("import torch; torch.empty(10**15)", "can't allocate memory"),
    ],
    ids=["exception", "segmentation fault", "os._exit", "as the kernel's OOM killer", "out of memory"],
)
def test_one_run_breaks_and_all_others_finish(request, seed, fault, reason, tmp_path, arrays, tally):
    """The culprit sits in the middle of a pack."""
    row = tally(f"{request.node.callspec.id.split('-')[-1]} in one run of a pack")
    row.injected += 1
    injected = tmp_path / "injected"
    injected.mkdir()
    (injected / "sitecustomize.py").write_text(FAULTY.format(fault=fault))
    environment = {**os.environ, "PYTHONPATH": str(injected)}
    grid = ["seed=0,1,2,3,4,5", "schedule.stages=[(3,5e-2)]"]
    done = stagetree(tmp_path, "sweep", *small(arrays), *grid, env=environment)
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    assert "1 of 6 runs failed" in done.stdout
    failed = [event for event in events(tmp_path) if isinstance(event, Failed)]
    assert len(failed) == 1
    assert reason in failed[0].reason
    states, doubled = faults.recorded(tmp_path)
    assert states.pop(failed[0].uid) == ["FAILED"]
    row.lost += sum(state != ["FINISHED"] for state in states.values()) + (len(states) != 5)
    row.doubled += doubled
    # without the fault, the same command trains what failed, and only that
    before = sum(trained(tmp_path).values())
    assert stagetree(tmp_path, "sweep", *small(arrays), *grid).returncode == 0
    row.lost += len(results(tmp_path)) != 6
    row.doubled += sum(trained(tmp_path).values()) - before != 3


@pytest.mark.full
def test_a_worker_that_is_told_to_end_keeps_its_states_and_another_goes_on(tmp_path, arrays, reference, tally):
    row = tally("SIGTERM to a worker")
    sweep = start(tmp_path, "sweep", *small(arrays), "execution.checkpoint_every_s=3600", *GRID)
    wait_until(lambda: len(trained(tmp_path)) > 30)
    if pids := workers(tmp_path):
        os.kill(pids[0], signal.SIGTERM)
        row.injected += 1
    succeed(sweep, tmp_path)
    found = results(tmp_path)
    row.lost += len(reference.keys() - found.keys())
    row.differing += sum(found[uid] != reference[uid] for uid in reference.keys() & found.keys())


@pytest.mark.full
@pytest.mark.rounds(short=1, full=5)
def test_a_job_that_slurm_preempts(seed, tmp_path, arrays, reference, tally):
    """There is no SLURM here: submitit's local executor stands in for it.

    The signal, the handler, the checkpoint hook and the requeueing are submitit's own. SLURM's own part, to send the
    signal and to start the job again, is played by this test and by submitit's local controller.
    """
    row, random = tally("preemption, by submitit's hooks"), rng(seed)
    words = [*small(arrays), "execution.checkpoint_every_s=3600", "hydra/launcher=submitit_local", *GRID]
    sweep = start(tmp_path, "sweep", *words)
    wait_until(lambda: len(trained(tmp_path)) > 30)
    time.sleep(random.uniform(0, 1))
    for pid in workers(tmp_path)[:1]:
        os.kill(pid, signal.SIGUSR2)
        row.injected += 1
    succeed(sweep, tmp_path)
    logs = [path.read_text() for path in tmp_path.rglob("*_log.out")]
    assert sum("Requeued job" in log for log in logs) == row.injected
    compare(tmp_path, reference, row, kills=0)


# ---------------------------------------------------------------- two at once


@pytest.mark.rounds(short=1, full=10)
def test_two_sweeps_at_once(seed, tmp_path, arrays, reference, tally):
    """The second contains the first and starts somewhere in its middle: each run is trained and recorded once."""
    row, random = tally("a second sweep on the same store"), rng(seed)
    row.injected += 1
    first = start(tmp_path, "sweep", *small(arrays), *GRID[:-1], GRID[-1].rsplit(",[", 1)[0], "report.output=one.csv")
    time.sleep(random.uniform(0, 8))
    second = start(tmp_path, "sweep", *small(arrays), *GRID)
    succeed(first, tmp_path)
    succeed(second, tmp_path)
    compare(tmp_path, reference, row, kills=0)


@pytest.mark.full
@pytest.mark.rounds(short=1, full=5)
def test_the_same_sweep_twice_at_once_and_one_is_killed(seed, tmp_path, arrays, reference, tally):
    row, random = tally("two equal sweeps, one killed"), rng(seed)
    both = [start(tmp_path, "sweep", *small(arrays), *GRID) for _ in range(2)]
    time.sleep(random.uniform(4, 10))
    row.injected += both[0].poll() is None
    sweeps.end(both[0])
    succeed(both[1], tmp_path)
    compare(tmp_path, reference, row, kills=row.injected)


@pytest.mark.rounds(short=1, full=50)
@pytest.mark.differs("its runs were never trained")
def test_sixteen_processes_on_an_empty_store(seed, tmp_path, tally):
    row = tally("16 processes at once on an empty store")
    row.injected += 1
    script = Path(faults.__file__).with_name("store_rush.py")
    rush = [sys.executable, str(script), str(tmp_path), "16"]
    done = subprocess.run(rush, capture_output=True, text=True, timeout=sweeps.PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "locked" not in done.stderr
    states, doubled = faults.recorded(tmp_path)
    row.lost += 17 - sum(state == ["FINISHED"] for state in states.values())
    row.doubled += doubled + sum(len(state) > 1 for state in states.values())
