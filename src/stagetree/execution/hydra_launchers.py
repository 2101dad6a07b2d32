"""Run the units of a sweep through whichever launcher Hydra was told to use."""

import copy
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stagetree.config.composition import Job
from stagetree.config.schema import Config
from stagetree.errors import InputError
from stagetree.execution.clusters import Ray, Submitit
from stagetree.execution.engine import Engine, Result, Units, run_next
from stagetree.training.devices import count_devices, resolve_device


def choose_engine(context: HydraContext, config: DictConfig, job: Job) -> Engine:
    """Find out what runs the units.

    Ray and SLURM know of tasks that wait for others, Hydra's launchers for them do not: there the plugins' settings
    count, and the engines are asked themselves.

    Args:
        context: of the running Hydra application.
        config: composed for the whole sweep, `hydra` node included.
        job: any of the sweep.
    """
    execution, device, launcher = job.config.execution, job.config.trainer.device, config.hydra.launcher
    kind = launcher._target_.rpartition(".")[2]
    if kind == "RayLauncher":
        settings = OmegaConf.to_container(launcher.ray, resolve=True)
        if resolve_device(device) == "cuda":
            settings["remote"].setdefault("num_gpus", 1 / execution.workers_per_device)
        return Ray(settings["init"], settings["remote"], execution.workers)
    workers = count_workers(launcher, job.config)
    if launcher._target_.startswith("hydra_plugins.hydra_submitit_launcher"):
        settings = OmegaConf.to_container(launcher, resolve=True)
        if kind == "LocalLauncher" and settings["gpus_per_node"] is None:  # submitit hides all others
            settings["gpus_per_node"] = count_devices(resolve_device(device))
        return Submitit(settings, kind == "SlurmLauncher", workers)
    return HydraLauncher(context, config, job.overrides, workers)


class HydraLauncher:
    """Any launcher of Hydra's: a job for each unit, all in one batch.

    Hydra's launchers know nothing of jobs that wait for others, so a job is not bound to a unit: it takes the next one
    that can start when it starts itself.

    Args:
        context: of the running Hydra application.
        config: composed for the whole sweep, `hydra` node included.
        overrides: of any job of the sweep. A worker reads no value from the configuration that Hydra composes for it,
            but composing must succeed, and a group may be mandatory.
        workers: units that run at a time.
    """

    outlives = False

    def __init__(self, context: HydraContext, config: DictConfig, overrides: Sequence[str], workers: int):
        self.workers = workers
        self.here = config.hydra.launcher._target_.rpartition(".")[2] in ("BasicLauncher", "JoblibLauncher")
        self._context, self._config, self._overrides = context, config, overrides
        self._job_num = count()

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        settings: dict[str, Any] = {"sweep.dir": str(sweep_dir)}
        if "n_jobs" in self._config.hydra.launcher:
            settings["launcher.n_jobs"] = self.workers
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=partial(_run_next, sweep_dir, dict(units)),
            config=_with_hydra_settings(self._config, settings),
        )  # fmt: skip
        first, *_ = [next(self._job_num) for _ in units]
        jobs = launcher.launch([[*self._overrides, *_job_overrides(unit_id)] for unit_id in units], first)
        return [job.return_value for job in jobs if job.status == JobStatus.COMPLETED and job.return_value]


def _run_next(sweep_dir: Path, units: Units, _: DictConfig) -> Result | None:
    return run_next(sweep_dir, units)


def _job_overrides(name: str) -> list[str]:
    return [f"hydra.sweep.subdir='units/{name}'", f"hydra.job.name='{name}'", "hydra.output_subdir=null"]


def end_idle_workers() -> None:
    """End joblib's workers at once, which it would keep for another call and bid farewell at its leisure."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def count_workers(launcher: DictConfig, config: Config) -> int:
    """Units that run side by side: as wanted, or with `"auto"` as many as the launcher would run and devices are for.

    Raises:
        InputError: workers would have to share a device, and nobody allowed that.
    """
    wanted, kind = config.execution.workers, launcher._target_.rpartition(".")[2]
    if kind == "SlurmLauncher":
        return launcher.array_parallelism if wanted == "auto" else wanted
    devices = count_devices(resolve_device(config.trainer.device))
    slots = math.inf if devices is None else max(devices, 1) * config.execution.workers_per_device
    if wanted != "auto":
        if devices and wanted > slots:  # a machine without any is told so by the plan
            raise InputError(
                f"execution.workers: got {wanted} for {devices} device{'s' * (devices != 1)}, expected at most {slots} "
                f"(execution.workers_per_device={-(-wanted // max(devices, 1))} lets them share)"
            )
        return wanted
    if kind == "BasicLauncher":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_jobs = OmegaConf.select(launcher, "n_jobs") or -1
    return min(n_jobs if n_jobs > 0 else max(cores + 1 + n_jobs, 1), slots)


def _with_hydra_settings(config: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """A copy with values set under `hydra`, both for the launcher and for the jobs, which Hydra composes anew."""
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        for key, value in settings.items():
            OmegaConf.update(config.hydra, key, value)
            quoted = value if isinstance(value, int) else "'" + value.replace("'", "\\'") + "'"
            config.hydra.overrides.hydra.append(f"hydra.{key}={quoted}")
    return config
