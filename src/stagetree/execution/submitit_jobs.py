"""Run units as jobs of submitit: in processes of this machine, or in SLURM, where jobs wait for others.

The settings are those of Hydra's submitit plugin. Its launchers are not used, since they would wait for the slowest of
a batch.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.errors import InputError
from stagetree.execution.engine import Result, Units, run_unit
from stagetree.execution.shutdown import stop_asked

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

POLL_S = 0.1
SQUEUE_S, RESULT_S = 2.0, 1.0
"""Seconds between two queries of SLURM's queue, and from the end of a job there to its result in a shared folder."""
PLUGIN_KEYS = {"_target_", "submitit_folder", "max_num_timeout"}
"""Settings of Hydra's submitit launchers that are not for `update_parameters`."""
RESOURCE_KEYS = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes"}
SHARED_KEYS = RESOURCE_KEYS | {"name", "stderr_to_stdout"}
"""Settings that all of submitit's executors have; the others are SLURM's."""


class Submitit:
    """Runs units as submitit jobs, in processes of this machine or in SLURM.

    SLURM gets all jobs at once, those that wait for others with `afterok`. It restarts a preempted job, which continues
    from its checkpoints and needs no launching process for that.

    Args:
        settings: the settings of Hydra's submitit launcher.
        slurm: whether to submit to SLURM.
        workers: the number of units that run at a time.
    """

    def __init__(self, settings: Mapping[str, Any], slurm: bool, workers: int):
        self._settings, self.outlives, self.here, self.workers = settings, slurm, not slurm, workers

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        jobs: dict[str, Job] = {}
        try:
            (self._submit_all if self.outlives else self._submit_some)(sweep_dir, units, jobs)
        except BaseException:  # on a signal workers save their states, but jobs that wait in SLURM must go
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
        own = {key: value for key, value in settings.items() if key not in PLUGIN_KEYS}
        executor.update_parameters(**{key if key in SHARED_KEYS else f"{cluster}_{key}": own[key] for key in own})
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
    """Return the ids of this user's jobs that wait or run in SLURM; `None` if the query fails."""
    done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%A %F_%K"], capture_output=True, text=True, check=False)
    return None if done.returncode else set(done.stdout.split())


def _has_result(job: "Job") -> bool:
    return job.paths.result_pickle.exists()


class _Task:
    """The job of a unit, which submitit may interrupt and start again."""

    def __init__(self, sweep_dir: Path, unit_id: str):
        self._sweep_dir, self._unit_id = sweep_dir, unit_id

    def __call__(self) -> Result:
        return run_unit(self._sweep_dir, self._unit_id)

    def checkpoint(self) -> "DelayedSubmission":
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _result(job: "Job") -> Result | None:
    """Give the result of a job; `None` if its worker died."""
    from submitit.core.utils import FailedJobError

    try:
        return job.result() if _has_result(job) else None
    except FailedJobError:
        return None
