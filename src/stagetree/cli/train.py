"""`stagetree train`, `sweep` and `plan`: check, plan and train what Hydra has composed."""

import json
import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from rich.console import Console

from stagetree import runner
from stagetree.cli.main import FailedRunError
from stagetree.cli.progress import ProgressDisplay
from stagetree.config.composition import Job
from stagetree.config.grid import compose_grid
from stagetree.errors import InputError
from stagetree.execution.engine import InProcess
from stagetree.execution.engine_choice import choose_engine
from stagetree.execution.hydra_launchers import end_idle_workers
from stagetree.planning import planner
from stagetree.runner import Outcome


def train(job: Job) -> float:
    """Train one run; return its accuracy, which other sweepers, such as Optuna's, optimise.

    Raises:
        FailedRunError: the run failed under another sweeper, which needs an exception.
        SystemExit: the run failed.
    """
    outcome = runner.run([job], engine=InProcess(), command=_typed_command(), progress=ProgressDisplay.of_plan)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        _conclude(outcome)
    elif outcome.exit_code:
        raise FailedRunError(outcome.text)
    return outcome.objective


def train_grid(context: HydraContext, config: DictConfig, arguments: Sequence[str], *, mode: str) -> float | None:
    """Check the whole grid, then plan and train it or print its plan; the sweeper plugin calls this.

    Args:
        context: the context of the running Hydra application.
        config: the configuration composed for the whole sweep, with its `hydra` node.
        arguments: the overrides of the command line.
        mode: `train`, `plan` or `plan_json`.

    Returns:
        The best run's accuracy, or None for a plan.

    Raises:
        InputError: the grid has errors; the message has a line for each.
        SystemExit: a run failed.
    """
    if mode not in ("train", "plan", "plan_json"):
        raise InputError(f"hydra.sweeper.mode: got {mode!r}, expected one of plan, plan_json, train")
    jobs = compose_grid(context.config_loader, config, arguments)
    engine = choose_engine(context, config, jobs[0])
    if mode != "train":
        plan = planner.plan(jobs, workers=engine.workers, here=engine.here, measure=True)
        if mode == "plan":
            plan.show(Console())
        else:
            print(json.dumps(plan.summary.to_json(), indent=2))
        return None
    try:
        outcome = runner.run(jobs, engine=engine, command=_typed_command(), progress=ProgressDisplay.of_plan)
    except KeyboardInterrupt:
        end_idle_workers()
        raise
    _conclude(outcome)
    return outcome.objective


def _conclude(outcome: Outcome) -> None:
    """Print the outcome's text, and exit if its exit code is not 0."""
    if outcome.text:
        print(outcome.text)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)


def _typed_command() -> list[str]:
    """The typed command, as Hydra understood it; it runs again as it stands."""
    return ["stagetree", *sys.argv[1:]]
