"""Units on a cluster, by its engine's own means: tasks that wait for others, and that it starts again elsewhere.

The settings are those of Hydra's plugins for Ray and submitit. Their launchers would wait for the slowest of a batch.
"""

import contextlib
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from omegaconf import OmegaConf, open_dict

from stagetree.errors import InputError
from stagetree.execution.engine import Result, Units, run_unit
from stagetree.execution.shutdown import stop_asked

if TYPE_CHECKING:
    from hydra_plugins.stagetree_ray_launcher.launcher import RayLauncher
    from submitit import DelayedSubmission, Job

log = logging.getLogger(__name__)

POLL_S = 0.1
SQUEUE_S, RESULT_S = 2.0, 1.0
"""Between two looks at SLURM's queue, and between the end of a job there and its result on a shared folder."""
PLUGIN_KEYS = {"_target_", "submitit_folder", "max_num_timeout"}
"""Settings of Hydra's submitit launchers that are not for `update_parameters`."""
SHARED_KEYS = {
    "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout",
}  # fmt: skip
"""Settings that all of submitit's executors know; the others are SLURM's."""


class Ray:
    """Tasks of Ray, on the cluster that `init` finds, or on one of its own on this machine.

    Ray starts a task again whose worker or node died, by default three times; a unit goes on from its checkpoints.

    Args:
        init: arguments of `ray.init`.
        remote: options of `ray.remote`, such as `num_cpus` and `num_gpus` of a worker.
        workers: units that run at a time, or `"auto"`: as many as the cluster's CPUs and GPUs allow.
    """

    outlives = False  # Ray ends the tasks of a driver that is gone
    here = False

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any], workers: int | str):
        self._remote = {"num_cpus": 1, **remote}
        # what workers have to say is in the event logs, and shown by the progress display
        ray = start_ray({"log_to_driver": False, "logging_level": logging.WARNING, **init})
        self.workers = self._count_workers(ray.cluster_resources()) if workers == "auto" else int(workers)

    def _count_workers(self, resources: Mapping[str, float]) -> int:
        asked = {"CPU": self._remote["num_cpus"], "GPU": self._remote.get("num_gpus", 0)}
        return max(1, min(int(resources.get(name, 0) / number) for name, number in asked.items() if number))

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        import ray

        task = ray.remote(**self._remote)(_after)
        ended: dict[str, Any] = {}
        for unit_id, after in units.items():
            ended[unit_id] = task.remote(str(sweep_dir), unit_id, *(ended[other] for other in after))
        results = []
        for ref in ended.values():
            with contextlib.suppress(ray.exceptions.RayError):  # its worker died, or one before it
                results.append(ray.get(ref))
        return results


def start_ray(init: Mapping[str, Any]):
    """Connect to Ray, or start it here, and return its module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise InputError("hydra/launcher=ray: Ray is not installed (pip install 'stagetree[ray]')") from None
    if not ray.is_initialized():
        ray.init(**{**({"include_dashboard": False} if init.get("address") is None else {}), **init})
    return ray


def launch_jobs(launcher: "RayLauncher", jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run jobs of any Hydra application as Ray tasks, and wait for them.

    Args:
        launcher: that Hydra made and set up.
        jobs: the overrides of each.
        first: number of the first job.
    """
    setup_globals()
    config = launcher.config
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.to_container(launcher.ray, resolve=True)
    ray = start_ray(settings["init"])
    task = ray.remote(**{"num_cpus": 1, **settings["remote"]})(_run_job)
    shared = ray.put((launcher.hydra_context, config, launcher.task_function, Singleton.get_state()))
    refs = []
    for number, overrides in enumerate(jobs, first):
        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        refs.append(task.remote(shared, list(overrides), number))
    return ray.get(refs)


def _run_job(shared: tuple, overrides: list[str], number: int) -> JobReturn:
    context, config, task_function, state = shared
    setup_globals()
    Singleton.set_state(state)
    config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(config):
        config.hydra.job.id = f"{config.hydra.job.name}_{number}"
        config.hydra.job.num = number
    return run_job(
        hydra_context=context, task_function=task_function, config=config, job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )  # fmt: skip


def _after(sweep_dir: str, unit_id: str, *_: Result) -> Result:
    return run_unit(Path(sweep_dir), unit_id)


class Submitit:
    """Jobs of submitit: in processes of this machine, or in SLURM.

    SLURM gets all jobs at once, those that wait for others as `afterok`; it starts a preempted one again, which goes on
    from its checkpoints, and needs no launching process for that.

    Args:
        settings: of Hydra's submitit launcher.
        slurm: whether to submit to SLURM.
        workers: units that run at a time.
    """

    def __init__(self, settings: Mapping[str, Any], slurm: bool, workers: int):
        self._settings, self.outlives, self.here, self.workers = settings, slurm, not slurm, workers

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        jobs: dict[str, Job] = {}
        try:
            (self._submit_all if self.outlives else self._submit_some)(sweep_dir, units, jobs)
        except BaseException:  # a signal: workers keep their states by themselves, what still waits in SLURM must go
            for job in jobs.values() if self.outlives else ():
                if not _has_result(job):
                    job.cancel(check=False)
            raise
        return [result for job in jobs.values() if (result := _result(job)) is not None]

    def _executor(self, sweep_dir: Path, dependency: str = ""):
        """Make an executor as Hydra's submitit launcher does; `dependency` as `sbatch` takes it."""
        from submitit import AutoExecutor

        if self.outlives and shutil.which("sbatch") is None:
            raise InputError(
                f"hydra/launcher=submitit_slurm: SLURM's sbatch is not installed on {socket.gethostname()} (run this "
                "where it is, or use hydra/launcher=submitit_local)"
            )
        cluster = "slurm" if self.outlives else "local"
        settings = {**self._settings, "name": "stagetree"}
        if dependency:
            more = {"dependency": dependency, "kill_on_invalid_dep": "yes"}
            settings["additional_parameters"] = {**settings["additional_parameters"], **more}
        limit = {"slurm_max_num_timeout": settings["max_num_timeout"]} if "max_num_timeout" in settings else {}
        executor = AutoExecutor(folder=sweep_dir / ".submitit" / "%j", cluster=cluster, **limit)
        executor.update_parameters(
            **{
                key if key in SHARED_KEYS else f"{cluster}_{key}": value
                for key, value in settings.items()
                if key not in PLUGIN_KEYS
            }
        )
        return executor

    def _submit_all(self, sweep_dir: Path, units: Units, jobs: dict[str, "Job"]) -> None:
        """Submit an array of jobs for each set of predecessors, and wait until all have ended."""
        families: dict[tuple[str, ...], list[str]] = {}
        for unit_id, after in units.items():
            families.setdefault(tuple(sorted(after)), []).append(unit_id)
        for after, members in families.items():
            dependency = ":".join(["afterok", *(jobs[other].job_id for other in after)]) if after else ""
            executor = self._executor(sweep_dir, dependency)
            submitted = executor.submit_array([_Task(sweep_dir, unit_id) for unit_id in members])
            jobs.update(zip(members, submitted, strict=True))
        left = list(jobs.values())
        while left := [job for job in left if not _has_result(job)]:
            # submitit would ask `sacct`, which a cluster without accounting lacks, and minutes apart
            queued = _queued()
            if queued is not None:
                time.sleep(RESULT_S)
                left = [job for job in left if job.job_id in queued]
            time.sleep(SQUEUE_S)

    def _submit_some(self, sweep_dir: Path, units: Units, jobs: dict[str, "Job"]) -> None:
        """Submit a job whenever a worker is free, and wait until all have ended."""
        executor = self._executor(sweep_dir)
        waiting, ended = dict(units), set()
        while waiting or len(ended) < len(jobs):
            if stop_asked(sweep_dir):
                waiting.clear()
            ended |= {unit_id for unit_id, job in jobs.items() if unit_id not in ended and job.done()}
            for unit_id in [unit_id for unit_id, after in waiting.items() if ended.issuperset(after)]:
                if len(jobs) - len(ended) < self.workers:
                    del waiting[unit_id]
                    jobs[unit_id] = executor.submit(_Task(sweep_dir, unit_id))
            time.sleep(POLL_S)


def _queued() -> set[str] | None:
    """Ids of this user's jobs that wait or run in SLURM; `None` if it does not say just now."""
    done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%A %F_%K"], capture_output=True, text=True, check=False)
    return None if done.returncode else set(done.stdout.split())


def _has_result(job: "Job") -> bool:
    return job.paths.result_pickle.exists()


class _Task:
    """A unit as a job that submitit may interrupt and start again."""

    def __init__(self, sweep_dir: Path, unit_id: str):
        self._sweep_dir, self._unit_id = sweep_dir, unit_id

    def __call__(self) -> Result:
        return run_unit(self._sweep_dir, self._unit_id)

    def checkpoint(self) -> "DelayedSubmission":
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _result(job: "Job") -> Result | None:
    """What a job returned; `None` if its worker died."""
    from submitit.core.utils import FailedJobError

    try:
        return job.result() if _has_result(job) else None
    except FailedJobError:
        return None
