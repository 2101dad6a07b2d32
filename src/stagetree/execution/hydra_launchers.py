"""Run units as jobs of any launcher of Hydra's."""

import copy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stagetree.execution.engine import Result, Units, run_next


class HydraLauncher:
    """Runs units with any of Hydra's launchers: a job for each unit, all in one batch.

    Hydra's launchers have no jobs that wait for others, so a job is not bound to a unit: when it starts, it takes the
    next unit that can start.

    Args:
        context: the context of the running Hydra application.
        config: the configuration composed for the whole sweep, with its `hydra` node.
        overrides: the overrides of any job of the sweep. A worker reads no value from the configuration that Hydra
            composes for it, but composing must succeed, and a group may be mandatory.
        workers: the number of units that run at a time.
    """

    outlives = False

    def __init__(self, context: HydraContext, config: DictConfig, overrides: Sequence[str], workers: int):
        self.workers = workers
        self.here = config.hydra.launcher._target_.rpartition(".")[2] in ("BasicLauncher", "JoblibLauncher")
        self._context, self._config, self._overrides = context, config, overrides
        self._n_jobs = 0

    def launch(self, sweep_dir: Path, units: Units) -> Sequence[Result]:
        settings: dict[str, Any] = {"sweep.dir": str(sweep_dir)}
        if "n_jobs" in self._config.hydra.launcher:
            settings["launcher.n_jobs"] = self.workers
        config, task = _with_hydra_settings(self._config, settings), partial(_run_next, sweep_dir, dict(units))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=task, config=config
        )
        jobs = launcher.launch([[*self._overrides, *_job_overrides(unit_id)] for unit_id in units], self._n_jobs)
        self._n_jobs += len(units)
        return [job.return_value for job in jobs if job.status == JobStatus.COMPLETED and job.return_value]


def _run_next(sweep_dir: Path, units: Units, _: DictConfig) -> Result | None:
    return run_next(sweep_dir, units)


def _job_overrides(name: str) -> list[str]:
    return [f"hydra.sweep.subdir='units/{name}'", f"hydra.job.name='{name}'", "hydra.output_subdir=null"]


def end_idle_workers() -> None:
    """End joblib's workers at once; joblib would keep them for another call and end them slowly."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        # loky's documentation has True, its default "auto" alone tells pyright the type
        get_reusable_executor(reuse=True).shutdown(  # pyright: ignore[reportArgumentType]
            wait=True, kill_workers=True
        )


def _with_hydra_settings(config: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """Copy a configuration and set values under `hydra`, for the launcher and for the jobs that Hydra composes anew."""
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        for key, value in settings.items():
            OmegaConf.update(config.hydra, key, value)
            quoted = value if isinstance(value, int) else "'" + value.replace("'", "\\'") + "'"
            config.hydra.overrides.hydra.append(f"hydra.{key}={quoted}")
    return config
