"""Choose the engine of a sweep, and how many units run side by side."""

import math
import os

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from stagetree.config.composition import Job, to_plain
from stagetree.config.schema import Config
from stagetree.errors import InputError
from stagetree.execution.engine import Engine
from stagetree.execution.hydra_launchers import HydraLauncher
from stagetree.execution.ray_tasks import Ray
from stagetree.execution.submitit_jobs import Submitit
from stagetree.training.devices import count_devices, resolve_device


def choose_engine(context: HydraContext, config: DictConfig, job: Job) -> Engine:
    """Choose the engine that fits Hydra's launcher.

    Ray and SLURM support tasks that wait for others, but Hydra's launchers for them do not: there only the settings of
    Hydra's plugin are used, and the units are submitted directly.

    Args:
        context: the context of the running Hydra application.
        config: the configuration composed for the whole sweep, with its `hydra` node.
        job: any job of the sweep.
    """
    execution, device = job.config.execution, resolve_device(job.config.trainer.device)
    launcher = config.hydra.launcher
    kind = launcher._target_.rpartition(".")[2]
    if kind == "RayLauncher":
        settings = to_plain(launcher.ray)
        if device == "cuda":
            settings["remote"].setdefault("num_gpus", 1 / execution.workers_per_device)
        return Ray.connect(settings["init"], settings["remote"], execution.workers)
    workers = count_workers(launcher, job.config)
    if launcher._target_.startswith("hydra_plugins.hydra_submitit_launcher"):
        settings = to_plain(launcher)
        if (
            kind == "LocalLauncher" and settings["gpus_per_node"] is None
        ):  # submitit hides all GPUs that are not asked for
            settings["gpus_per_node"] = count_devices(device)
        return Submitit(settings, kind == "SlurmLauncher", workers)
    return HydraLauncher(context, config, job.overrides, workers)


def count_workers(launcher: DictConfig, config: Config) -> int:
    """Count the units that run side by side: as set, or for `"auto"` as many as the launcher and the devices allow.

    Raises:
        InputError: workers would have to share a device, which the settings do not allow.
    """
    wanted, kind = config.execution.workers, launcher._target_.rpartition(".")[2]
    if kind == "SlurmLauncher":
        return launcher.array_parallelism if isinstance(wanted, str) else wanted
    devices = count_devices(resolve_device(config.trainer.device))
    slots = math.inf if devices is None else max(devices, 1) * config.execution.workers_per_device
    if isinstance(wanted, int):
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
    return int(min(n_jobs if n_jobs > 0 else max(cores + 1 + n_jobs, 1), slots))
