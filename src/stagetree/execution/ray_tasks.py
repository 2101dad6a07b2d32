"""Run units, and the jobs of other Hydra applications, as Ray tasks.

The settings are those of Hydra's Ray plugin. Its launcher is not used, since it would wait for the slowest of a batch.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from omegaconf import open_dict

from stagetree.config.composition import to_plain
from stagetree.errors import InputError
from stagetree.execution.engine import Result, Units, run_unit

if TYPE_CHECKING:
    from hydra_plugins.stagetree_ray_launcher.launcher import RayLauncher

log = logging.getLogger(__name__)


@dataclass
class Ray:
    """Runs units as Ray tasks on the cluster that this process is connected to; `connect` makes one.

    Ray restarts a task whose worker or node died, by default three times; the unit continues from its checkpoints.
    """

    remote: Mapping[str, Any]
    """Options of `ray.remote` for a worker, such as `num_cpus` and `num_gpus`."""
    workers: int
    outlives = False  # Ray ends the tasks of a driver that is gone
    here = False

    @classmethod
    def connect(cls, init: Mapping[str, Any], remote: Mapping[str, Any], workers: int | str) -> "Ray":
        """Connect to the cluster that `init` finds, or start one on this machine.

        Args:
            init: the arguments of `ray.init`.
            remote: the options of `ray.remote`; without `num_cpus`, a worker has one.
            workers: the number of units that run at a time, or `"auto"`: as many as the cluster's CPUs and GPUs allow.

        Raises:
            InputError: Ray is not installed.
        """
        # workers write to the event logs, which the progress display shows
        ray = start_ray({"log_to_driver": False, "logging_level": logging.WARNING, **init})
        remote = {"num_cpus": 1, **remote}
        return cls(remote, _count_workers(remote, ray.cluster_resources()) if workers == "auto" else int(workers))

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        import ray
        from ray.exceptions import RayError

        task = ray.remote(**self.remote)(_run_after)
        ended: dict[str, Any] = {}
        for unit_id, after in units.items():
            ended[unit_id] = task.remote(str(sweep_dir), unit_id, *(ended[other] for other in after))
        results = []
        for ref in ended.values():
            with contextlib.suppress(RayError):  # its worker, or that of a predecessor, died
                results.append(ray.get(ref))
        return results


def _count_workers(remote: Mapping[str, Any], resources: Mapping[str, float]) -> int:
    asked = {"CPU": remote["num_cpus"], "GPU": remote.get("num_gpus", 0)}
    return max(1, min(int(resources.get(name, 0) / number) for name, number in asked.items() if number))


def _run_after(sweep_dir: str, unit_id: str, *_: Result) -> Result:
    return run_unit(Path(sweep_dir), unit_id)


def start_ray(init: Mapping[str, Any]):
    """Connect to Ray, or start it on this machine, and return its module.

    Raises:
        InputError: Ray is not installed.
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
        launcher: the launcher that Hydra made and set up.
        jobs: the overrides of each job.
        first: the number of the first job.
    """
    setup_globals()
    config = launcher.config
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    settings = to_plain(launcher.ray)
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
        hydra_context=context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
