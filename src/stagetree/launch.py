"""Run the units of a sweep: in this process, or through whichever launcher Hydra was told to use."""

import copy
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stagetree.mistakes import InputError
from stagetree.stopping import leave_ctrl_c_to_the_launcher, stop_asked

log = logging.getLogger(__name__)


def run_unit(sweep_dir: Path, unit_id: str) -> dict[str, Any]:
    """Train one unit. A failure is logged and returned: with some launchers an exception would end other units."""
    leave_ctrl_c_to_the_launcher()
    if stop_asked(sweep_dir):
        return {"unit": unit_id, "stopped": "before it began"}
    try:
        from stagetree.walk import train_unit  # imports torch

        return train_unit(sweep_dir, unit_id)
    except (InputError, OSError) as error:
        log.error("unit %s: %s", unit_id, error)
        return {"unit": unit_id, "error": str(error)}
    except Exception as error:
        log.exception("unit %s failed", unit_id)
        return {"unit": unit_id, "error": f"{type(error).__name__}: {error}"}


def launch_here(sweep_dir: Path, unit_ids: Sequence[str]) -> None:
    """Run the units one after the other in this process."""
    for unit_id in unit_ids:
        run_unit(sweep_dir, unit_id)


def launch_by_hydra(
    context: HydraContext, config: DictConfig, *, overrides: Sequence[str], workers: int
) -> Callable[[Path, Sequence[str]], None]:
    """Make the function that gives units to Hydra's launcher, one job each.

    Args:
        context: of the running Hydra application.
        config: composed for the whole sweep, `hydra` node included.
        overrides: of any job of the sweep. A worker reads no value from the configuration that Hydra composes for it,
            but composing must succeed, and a group may be mandatory.
        workers: jobs side by side, for launchers that have such a setting.
    """
    job_num = count()

    def launch(sweep_dir: Path, unit_ids: Sequence[str]) -> None:
        if not unit_ids:
            return  # some launchers refuse an empty batch
        settings = {"sweep.dir": str(sweep_dir)}
        if "n_jobs" in config.hydra.launcher:
            settings["launcher.n_jobs"] = workers
        master = _with_hydra_settings(config, settings)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=partial(_unit_task, sweep_dir), config=master
        )
        first, *_ = [next(job_num) for _ in unit_ids]
        launcher.launch([[*overrides, *_unit_overrides(unit_id)] for unit_id in unit_ids], first)

    return launch


def end_idle_workers() -> None:
    """End joblib's workers at once, which it would keep for another call and bid farewell at its leisure."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def count_workers(config: DictConfig, wanted: int | str) -> int:
    """Units that run side by side: as wanted, or with `"auto"` as many as the launcher would run."""
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launcher = config.hydra.launcher
    if launcher._target_.endswith(".BasicLauncher"):
        return 1
    n_jobs = OmegaConf.select(launcher, "n_jobs") or -1
    return n_jobs if n_jobs > 0 else max(cores + 1 + n_jobs, 1)


def _unit_task(sweep_dir: Path, _: DictConfig) -> dict[str, Any]:
    return run_unit(sweep_dir, HydraConfig.get().job.name)


def _with_hydra_settings(config: DictConfig, settings: dict[str, Any]) -> DictConfig:
    """A copy with values set under `hydra`, both for the launcher and for the jobs, which Hydra composes anew."""
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        for key, value in settings.items():
            OmegaConf.update(config.hydra, key, value)
            quoted = value if isinstance(value, int) else "'" + value.replace("'", "\\'") + "'"
            config.hydra.overrides.hydra.append(f"hydra.{key}={quoted}")
    return config


def _unit_overrides(unit_id: str) -> list[str]:
    return [f"hydra.sweep.subdir='units/{unit_id}'", f"hydra.job.name='{unit_id}'", "hydra.output_subdir=null"]
