"""Hydra's jobs as Ray tasks. Hydra executes this module at each start, so Ray is imported when jobs are launched.

It takes the settings of hydra-ray-launcher and gives way to it. That plugin wants `cloudpickle<3`, which today's joblib
does not get along with.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RayLauncher(Launcher):
    """A task for each job.

    A sweep of stagetree is not launched by this, since its units wait for others: see `stagetree.execution.ray_tasks`.

    Args:
        ray: `init`, the arguments of `ray.init`, and `remote`, the options of `ray.remote`.
    """

    def __init__(self, ray: DictConfig) -> None:
        self.ray = ray

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from stagetree.execution.ray_tasks import launch_jobs

        return launch_jobs(self, job_overrides, initial_job_idx)


if find_spec("hydra_plugins.hydra_ray_launcher") is None:
    # a dict, as for the sweeper
    node: dict[str, Any] = {
        "_target_": f"{__name__}.RayLauncher",
        "ray": {"init": {"address": None}, "remote": {}},
    }
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=node, provider="stagetree")
