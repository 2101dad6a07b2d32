"""Sweep a whole grid. Hydra executes this module at each start, so heavy imports wait until a sweep runs."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StagetreeSweeper(Sweeper):
    """Plans the whole grid at once, and trains the units of the plan instead of single jobs.

    For any other program there is nothing to plan, and Hydra's basic sweeper launches its jobs.

    Args:
        mode: `train`; or `plan` or `plan_json`, to print the plan as text or JSON and train nothing.
        params: overrides that belong to the grid, as for Hydra's basic sweeper.
    """

    def __init__(self, mode: str, params: DictConfig | None) -> None:
        self.mode = mode
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        from stagetree.cli.main import Task

        assert self.hydra_context is not None, "Hydra calls setup first"
        assert self.config is not None
        if not isinstance(self.task_function, Task):
            from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

            params: Any = self.params  # Hydra's own gets a DictConfig too
            basic = BasicSweeper(max_batch_size=None, params=params)
            basic.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
            return basic.sweep(arguments)
        from stagetree.cli.train import train_grid

        return train_grid(self.hydra_context, self.config, arguments, mode=self.mode)


# A dict, since Hydra 1.3 may execute this module twice and a dataclass would then be unequal to itself.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="stagetree",
    node={"_target_": f"{__name__}.StagetreeSweeper", "mode": "train", "params": {}},
    provider="stagetree",
)
