"""The command line: `stagetree COMMAND`, each with Hydra's overrides and flags."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.cli.arguments import answered_at_once, asks_completion, hydra_line, hydra_words, split_command

# Hydra and everything below it are imported late: help and the first word's completion answer at once.
if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig

    from stagetree.runner import Outcome

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: 1 for tracebacks."""


def main() -> None:
    """Run the command in `sys.argv`.

    Exits with 0, 1 for a mistake of usage or configuration, 3 when runs failed, 128 and the signal's number when
    interrupted.
    """
    if answered_at_once(sys.argv[1:]):
        return
    full_error = os.environ.get(FULL_ERROR) == "1"
    try:
        with _mistakes_shown():
            _run(sys.argv[1:], full_error=full_error)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print("stagetree: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))
    except BrokenPipeError:  # `stagetree report | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
        sys.exit(128 + signal.SIGPIPE)
    except SystemExit as error:
        sys.exit(1 if error.code == 2 else error.code)  # argparse says 2 for mistakes of usage


def _run(words: Sequence[str], *, full_error: bool) -> None:
    if asks_completion(words):
        os.environ["COMP_LINE"] = hydra_line(os.environ["COMP_LINE"])
        command = "train"
    else:
        command, words = split_command(words)
        words = hydra_words(command, words)

    import hydra

    sys.argv = [sys.argv[0], *words]
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}  # 1.4 warns when it is given
    hydra.main(**base, config_path=str(conf_dir()), config_name="config")(_job(TASKS[command], full_error))()


def _job(task: Callable[["DictConfig"], Any], full_error: bool) -> Callable[["DictConfig"], Any]:
    """Let a job end with a sentence: of an exception, Hydra would first say in which job it was."""

    @wraps(task)
    def job(cfg: "DictConfig") -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from stagetree.errors import mendable

        try:
            return task(cfg)
        except BrokenPipeError:
            raise
        except Exception as error:
            said = mendable(error)
            if said is None or full_error or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            sys.exit(said)

    _OWN.add(job)
    return job


_OWN: set[Callable] = set()


def is_own(task: Callable) -> bool:
    """Whether a task function of Hydra's is one of this program's commands."""
    return task in _OWN


def conf_dir() -> Path:
    """Where the groups are: inside the package when installed from a wheel, else beside the sources."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "conf", package.parents[1] / "conf") if path.is_dir())


class FailedRunError(Exception):
    """A job of another sweeper did not come to its end."""


@contextmanager
def _mistakes_shown() -> Iterator[None]:
    """Turn what a person can mend into a line on stderr and exit status 1; HYDRA_FULL_ERROR=1 keeps the traceback.

    Hydra itself would print a traceback of whatever is no exception of its own, a slip in a YAML file included. With
    that variable set it raises instead.
    """
    given = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if given == "1":
            raise
        from stagetree.errors import composition_mistake, mendable

        if isinstance(error, FailedRunError):
            print(error, file=sys.stderr)
            sys.exit(3)
        said, composing = mendable(error), composition_mistake(error)
        if said is None and composing is None:
            raise
        sys.exit(said or f"{composing}\nSet {FULL_ERROR}=1 to see where.")
    finally:
        os.environ.pop(FULL_ERROR)
        if given is not None:
            os.environ[FULL_ERROR] = given


# ---------------------------------------------------------------- commands


def _train(cfg: "DictConfig") -> float:
    """Train one run. The result is what other sweepers, such as Optuna's, optimise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode == RunMode.MULTIRUN:  # a job of another sweeper: it wants exceptions, not exit codes
        outcome = _train_one(cfg)
        if outcome.exit_code:
            raise FailedRunError(outcome.text)
    else:
        outcome = _train_one(cfg)
        _conclude(outcome)
    return outcome.objective


def _train_one(cfg: "DictConfig") -> "Outcome":
    from hydra.core.hydra_config import HydraConfig

    from stagetree import runner
    from stagetree.cli.progress import ProgressDisplay
    from stagetree.config.composition import Job, checked, source_flags
    from stagetree.execution.engine import InProcess

    job = Job(tuple(HydraConfig.get().overrides.task), checked(cfg), source_flags(HydraConfig.get()))
    return runner.run([job], engine=InProcess(), command=_command(), progress=ProgressDisplay.of_plan)


def train_grid(context: "HydraContext", config: "DictConfig", arguments: Sequence[str], *, mode: str) -> float | None:
    """Do the work of the sweeper plugin: check the whole grid, then plan and train it, or print its plan.

    Args:
        context: of the running Hydra application.
        config: composed for the whole sweep, `hydra` node included.
        arguments: overrides of the command line.
        mode: `train`, `plan` or `plan_json`.

    Returns:
        The best run's figure, or None for a plan.
    """
    import json

    from rich.console import Console

    from stagetree import runner
    from stagetree.cli.progress import ProgressDisplay
    from stagetree.config.composition import compose_grid
    from stagetree.errors import InputError
    from stagetree.execution.hydra_launchers import choose_engine, end_idle_workers
    from stagetree.planning import planner

    if mode not in ("train", "plan", "plan_json"):
        raise InputError(f"hydra.sweeper.mode: got {mode!r}, expected one of plan, plan_json, train")
    jobs = compose_grid(context.config_loader, config, arguments)
    engine = choose_engine(context, config, jobs[0])
    if mode != "train":
        plan = planner.plan(jobs, workers=engine.workers, here=engine.here, measure=True)
        if mode == "plan":
            plan.show(Console())
        else:
            print(json.dumps(plan.summary, indent=2))
        return None
    try:
        outcome = runner.run(jobs, engine=engine, command=_command(), progress=ProgressDisplay.of_plan)
    except KeyboardInterrupt:
        end_idle_workers()
        raise
    _conclude(outcome)
    return outcome.objective


def _conclude(outcome: "Outcome") -> None:
    """Print what there is to say, and exit unless all is well."""
    if outcome.text:
        print(outcome.text)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)


def _watch(cfg: "DictConfig") -> None:
    from stagetree.cli.watch import watch
    from stagetree.config.composition import checked

    watch(Path(checked(cfg).output_dir).resolve())


def _report(cfg: "DictConfig") -> None:
    from stagetree import runner
    from stagetree.config.composition import checked

    runner.leaderboard(checked(cfg), _overrides())


def _data(cfg: "DictConfig") -> None:
    from rich.console import Console

    from stagetree.cli.data import describe_data
    from stagetree.config.composition import checked

    describe_data(checked(cfg), Console())


def _predict(cfg: "DictConfig") -> None:
    from rich.console import Console

    from stagetree.cli.predict import predict
    from stagetree.config.composition import checked

    predict(checked(cfg), Console(), _overrides())


def _export(cfg: "DictConfig") -> None:
    from stagetree.cli.predict import export_run
    from stagetree.config.composition import checked

    export_run(checked(cfg), _overrides())


def _migrate(cfg: "DictConfig") -> None:
    from rich.console import Console
    from rich.progress import track

    from stagetree.config.composition import checked
    from stagetree.redact import redact
    from stagetree.tracking.migration import migrate

    config, console = checked(cfg), Console(stderr=True)
    copied = migrate(config, lambda runs, total: track(runs, "copying runs", total, console=console))
    to = redact(config.migrate.to)
    print(f"{copied} runs copied to {to}; use it with tracking=server tracking.uri={to}")


def _verify(cfg: "DictConfig") -> None:
    from rich.console import Console

    from stagetree.config.composition import checked
    from stagetree.report.verification import verify

    if not verify(checked(cfg), Console()):
        sys.exit(3)


def _ui(cfg: "DictConfig") -> None:
    from stagetree.cli import ui
    from stagetree.config.composition import checked

    ui.serve(checked(cfg))


def _overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def _command() -> list[str]:
    """What was typed, as Hydra understood it; it runs again as it stands."""
    return ["stagetree", *sys.argv[1:]]


TASKS = {
    "train": _train,
    "sweep": _train,
    "plan": _train,
    "watch": _watch,
    "report": _report,
    "ui": _ui,
    "data": _data,
    "predict": _predict,
    "export": _export,
    "migrate": _migrate,
    "verify": _verify,
}
"""For each command, Hydra's task function; the sweeper plugin stands in for it in `sweep` and `plan`."""
