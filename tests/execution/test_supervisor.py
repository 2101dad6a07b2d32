"""What becomes of units whose workers die, of runs that kill them, and of trouble that is no run's fault.

The engine here forks a process for each unit, so that a worker's death is a real one.
"""

import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from bench import trained

from stagetree.config.composition import Job
from stagetree.execution.engine import run_unit
from stagetree.execution.supervisor import DEATHS, MachineError, Supervisor
from stagetree.planning import planner
from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import Failed
from stagetree.training import trainer

SHORT = {"stages": [[1, 0.1]]}


class Forking:
    """Trains each unit in a process of its own, one after the other."""

    workers, outlives, here = 1, True, True

    def __init__(self, before=lambda unit_id: None, after=lambda: None):
        self.before, self.after = before, after
        self.launches: list[list[str]] = []

    def launch(self, sweep_dir, units):
        self.launches.append(list(units))
        for unit_id in units:
            self.before(unit_id)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests do not concern the child
                pid = os.fork()
            if pid == 0:
                try:
                    run_unit(sweep_dir, unit_id)
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
        self.after()
        return []  # whatever it returned, the event logs and checkpoints are what counts


class Supervised:
    """A sweep of small runs under the supervisor."""

    def __init__(self, bench, engine, configs, workers=1):
        self.bench, self.engine = bench, engine
        self.plan = planner.plan([Job((), config) for config in configs], workers=workers)
        self.folder = bench.output_dir / "sweeps" / "sweep" / "launch"
        self.folder.mkdir(parents=True)

    def train(self, units=None):
        """Train the plan's units, or others."""
        Supervisor(self.plan, self.bench.output_dir, self.folder, self.engine, 0.0).train(units or self.plan.units)

    @property
    def events(self):
        return list(EventReader(self.folder / "events").read())

    @property
    def failed(self):
        return {event.uid: event.reason for event in self.events if isinstance(event, Failed)}

    @property
    def finished(self):
        return set(checkpoints.finished(self.bench.checkpoints).tested)


@pytest.fixture
def supervise(bench):
    """Plan runs that differ in their seed, or in what else is given."""

    def make(engine, *, seeds=range(4), **changes):
        return Supervised(bench, engine, [bench.config(seed=seed, **{"schedule": SHORT} | changes) for seed in seeds])

    return make


@pytest.fixture
def deadly(monkeypatch):
    """Have the worker killed that makes the initial weights of a seed, as often as `times` says."""
    real = trainer.initial_state

    def set_up(seed, folder, times=10**6):
        def initial_state(of, *rest):
            if of == seed and len(list(folder.glob("death*"))) < times:
                (folder / f"death{time.time_ns()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(of, *rest)

        monkeypatch.setattr(trainer, "initial_state", initial_state)

    return set_up


def test_each_unit_is_launched_once_and_trained(supervise):
    sweep = supervise(Forking())
    sweep.train([(root,) for root in sweep.plan.tree.roots])
    assert [len(ids) for ids in sweep.engine.launches] == [4]
    assert sweep.finished == set(sweep.plan.runs)
    assert set(trained(sweep.events).values()) == {1}


def test_a_run_that_kills_its_worker_is_found_by_halving_and_fails_alone(supervise, deadly, tmp_path):
    sweep = supervise(Forking(), seeds=range(6))
    deadly(3, tmp_path)
    sweep.train()
    (culprit,) = [uid for uid, run in sweep.plan.runs.items() if run.trunk.seed == 3]
    assert sweep.failed == {
        culprit: f"its worker died {DEATHS} times without a word (killed, out of memory or crashed)"
    }
    assert sweep.finished == set(sweep.plan.runs) - {culprit}
    assert set(trained(sweep.events).values()) == {1}
    # six in one unit, then halves until the culprit is alone, which is tried twice more
    assert [len(ids) for ids in sweep.engine.launches] in ([1, 2, 2, 1, 1], [1, 2, 2, 2, 1, 1])


def test_a_worker_that_is_killed_for_something_else_is_no_runs_fault(supervise, deadly, tmp_path):
    sweep = supervise(Forking(), seeds=[3])
    deadly(3, tmp_path, times=DEATHS - 1)
    sweep.train()
    assert sweep.failed == {}
    assert sweep.finished == set(sweep.plan.runs)
    assert len(sweep.engine.launches) == DEATHS


def test_what_starts_from_a_state_that_was_never_reached_is_not_launched(bench):
    def fail_after_the_first(unit_id):
        if unit_id != "0000":
            raise RuntimeError("the pool is broken")

    configs = [bench.config(schedule={"stages": [[3, 1e38], [1, lr]]}) for lr in (0.1, 0.2)]
    sweep = Supervised(bench, Forking(fail_after_the_first), configs, workers=2)
    assert len(sweep.plan.units) > 1
    sweep.train()
    assert [len(ids) for ids in sweep.engine.launches] == [len(sweep.plan.units)]
    (trunk,) = sweep.plan.tree.roots
    assert sweep.failed == {trunk.uid: "diverged at lr 1e+38: train/loss became nan in epoch 1"}
    assert sweep.finished == set()


def test_a_launcher_that_raises_once_all_is_trained_has_done_its_work(supervise, capsys):
    def fail():
        raise RuntimeError("the pool is broken")

    sweep = supervise(Forking(after=fail))
    sweep.train()
    assert sweep.finished == set(sweep.plan.runs)
    assert capsys.readouterr().err == "launcher: RuntimeError: the pool is broken\n"


def test_a_launcher_that_starts_no_worker_is_asked_three_times(supervise, capsys):
    def fail(unit_id):
        raise SystemExit("no such queue")

    sweep = supervise(Forking(before=fail))
    with pytest.raises(MachineError, match=r"no worker began to train, 3 times in a row \(SystemExit: no such queue\)"):
        sweep.train()
    assert len(sweep.engine.launches) == 3
    assert sweep.failed == {}


def test_what_a_full_disk_is_to_workers_ends_the_sweep_and_blames_no_run(supervise, bench):
    sweep = supervise(Forking())
    bench.checkpoints.write_text("where a folder should be")
    with pytest.raises(MachineError, match=f"{bench.checkpoints}: File exists"):
        sweep.train()
    assert (len(sweep.engine.launches), sweep.failed) == (1, {})


class Elsewhere(Forking):
    """Workers that do not see the launching process's files."""

    def launch(self, sweep_dir, units):
        self.launches.append(list(units))
        with ThreadPoolExecutor() as pool:  # in the main thread it would ignore Ctrl-C from then on
            return list(pool.map(partial(run_unit, Path("/nowhere")), units))


def test_workers_that_do_not_see_the_output_folder_end_the_sweep(supervise):
    sweep = supervise(Elsewhere())
    with pytest.raises(MachineError, match=r"does not see /nowhere, .* \(give an output_dir that all machines share"):
        sweep.train()
    assert len(sweep.engine.launches) == 1


def test_a_sweep_that_is_asked_to_stop_launches_no_more(supervise):
    sweep = supervise(Forking(before=lambda unit_id: (sweep.folder / "stop").touch()))
    sweep.train()
    assert len(sweep.engine.launches) == 1
    assert sweep.finished == set()
    assert sweep.failed == {}
    sweep.train()
    assert len(sweep.engine.launches) == 1
