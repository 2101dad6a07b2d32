"""Run Hydra's jobs as Ray tasks. Hydra executes this module at each start, so Ray is imported when jobs are launched.

The settings are those of hydra-ray-launcher, which is used instead where it is installed. That plugin needs
`cloudpickle<3`, with which the present joblib does not work.
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
    """Runs each job as a task.

    A sweep of stagetree is not launched by this, since its units wait for others: see `stagetree.execution.ray_tasks`.

    Args:
        ray: the arguments of `ray.init` as `init`, and the options of `ray.remote` as `remote`.
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
    # a dict, for the same reason as the sweeper's
    node: dict[str, Any] = {
        "_target_": f"{__name__}.RayLauncher",
        "ray": {"init": {"address": None}, "remote": {}},
    }
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=node, provider="stagetree")
