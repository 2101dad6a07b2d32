"""The command line: `stagetree COMMAND`, each with Hydra's overrides and flags."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Hydra and everything below it are imported late: help and the first word's completion answer at once.
if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig

    from stagetree.sweep import Outcome

HELP = """\
usage: stagetree COMMAND [group=option] [key=value] [Hydra's flags]

  train    train one run (--fresh --quiet)
  sweep    train a grid: values separated by commas, shared schedule prefixes once (--fresh --quiet)
  plan     say what a sweep would train, and train nothing (--json)
  watch    show the progress of a sweep that runs elsewhere
  report   rank the runs (--metric test_acc --top 20 --group-by seed --output leaderboard.csv)
  ui       open MLflow's user interface (--port 5000)
  data     say what a data set holds, and draw sample pictures
  predict  RUN picture.png ...: name the classes of pictures; RUN is best, a run's name, or the beginning of its id

  stagetree train dataset=mnist model=mlp_300 "schedule.stages=[(3,1e-1)]"
  stagetree sweep dataset=mnist model=mlp,mlp_300 "schedule.stages=[(5,1e-1),(5,1e-2)],[(5,1e-1),(5,1e-3)]" seed=1,2
  stagetree COMMAND --help     the groups, their options, and all settings
  stagetree COMMAND --cfg job  the configuration that would be used
  eval "$(stagetree -sc install=bash)"  completion for this shell (also zsh, fish)
"""
OPTIONS = {
    "train": {"fresh": "trainer.fresh", "quiet": "quiet"},
    "sweep": {"fresh": "trainer.fresh", "quiet": "quiet"},
    "plan": {"fresh": "trainer.fresh"},
    "watch": {},
    "report": {
        "metric": "report.metric",
        "top": "report.top",
        "group-by": "report.group_by",
        "output": "report.output",
    },
    "ui": {"port": "ui.port"},
    "data": {},
    "predict": {},
}
"""For each command, options that are another way to write an override."""
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: 1 for tracebacks."""
SWITCHES = {"fresh", "quiet"}
"""Options without a value: they stand for `true`."""


def main() -> None:
    """Run the command in `sys.argv`.

    Exits with 0, 1 for a mistake of usage or configuration, 3 when runs failed, 128 and the signal's number when
    interrupted.
    """
    if _answered_at_once(sys.argv[1:]):
        return
    full_error = os.environ.get(FULL_ERROR) == "1"
    try:
        with _mistakes_shown():
            _run(sys.argv[1:], full_error=full_error)
    except KeyboardInterrupt as error:
        print("stagetree: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))
    except SystemExit as error:
        sys.exit(1 if error.code == 2 else error.code)  # argparse says 2 for mistakes of usage


def _answered_at_once(words: Sequence[str]) -> bool:
    """Print what needs no import: help, the version, and the words that complete a command or its options."""
    if not words or words in (["-h"], ["--help"]):
        print(HELP, end="")
    elif words == ["--version"]:
        from stagetree import __version__

        print(f"stagetree {__version__}")
    elif _asks_completion(words):
        _, *line = (os.environ["COMP_LINE"] + "|").split()  # the mark shows a space before the cursor
        *before, word = [part.removesuffix("|") for part in line] or [""]
        if before and not word.startswith("-"):
            return False
        known = [f"--{option}" for option in OPTIONS.get(before[0], ())] if before else OPTIONS
        fitting = [choice for choice in known if choice.startswith(word)]
        if not before and not fitting:
            return False  # overrides without a command
        print(" ".join(fitting))
    else:
        return False
    return True


def _run(words: Sequence[str], *, full_error: bool) -> None:
    if _asks_completion(words):
        os.environ["COMP_LINE"] = _hydra_line(os.environ["COMP_LINE"])
        command = "train"
    else:
        command, words = split_command(words)
        words = hydra_words(command, words)

    import hydra

    sys.argv = [sys.argv[0], *words]
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}  # 1.4 warns when it is given
    hydra.main(**base, config_path=str(_conf_dir()), config_name="config")(_job(TASKS[command], full_error))()


def _job(task: Callable[["DictConfig"], Any], full_error: bool) -> Callable[["DictConfig"], Any]:
    """Let a job end with a sentence: of an exception, Hydra would first say in which job it was."""

    @wraps(task)
    def job(cfg: "DictConfig") -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            return task(cfg)
        except Exception as error:
            said = _mendable(error)
            if said is None or full_error or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            sys.exit(said)

    return job


def _asks_completion(words: Sequence[str]) -> bool:
    return "COMP_LINE" in os.environ and any(word.startswith("query=") for word in words)


def split_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """Take the command off the front. Words that are Hydra's own from the first on mean `train`.

    Raises:
        InputError: there is no such command.
    """
    first = words[0]
    if first in OPTIONS:
        return first, list(words[1:])
    if first.startswith(("-", "~")) or "=" in first:
        return "train", list(words)

    import difflib

    from stagetree.config import InputError

    near = difflib.get_close_matches(first, OPTIONS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"stagetree: there is no command {first!r}, expected one of {', '.join(OPTIONS)}{hint}")


def hydra_words(command: str, words: Sequence[str]) -> list[str]:
    """Write the words after a command as Hydra's own command line would have them.

    Flags come before overrides, since Hydra 1.3 refuses overrides on both sides of a flag.
    """
    import argparse

    from stagetree.compose import listed_stages
    from stagetree.config import InputError

    parser = argparse.ArgumentParser(prog=f"stagetree {command}", add_help=False, allow_abbrev=False)
    for option in OPTIONS[command]:
        if option in SWITCHES:
            parser.add_argument(f"--{option}", action="store_const", const="true")
        else:
            parser.add_argument(f"--{option}", metavar="VALUE")
    if command == "plan":
        parser.add_argument("--json", action="store_true")
    given, words = parser.parse_known_args(words)
    named, words = _split_names(words) if command == "predict" else ([], words)
    overrides = [listed_stages(word) for word in words if _is_override(word)]
    flags = [word for word in words if not _is_override(word)]
    for option, key in OPTIONS[command].items():
        value = getattr(given, option.replace("-", "_"))
        if value is not None:
            overrides.append(f"{key}={_quoted(value)}")
    if command == "plan":
        overrides.append(f"hydra.sweeper.mode={'plan_json' if given.json else 'plan'}")
    if named:
        overrides += [f"predict.run={_quoted(named[0])}", f"predict.pictures=[{','.join(map(_quoted, named[1:]))}]"]
    if command in ("report", "ui", "data", "predict") and {"-m", "--multirun"} & set(flags):
        raise InputError(f"stagetree {command}: takes no -m, since it trains nothing (leave it out)")
    shows = {"-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help", "-m", "--multirun"}
    if command in ("sweep", "plan") and not any(flag.split("=")[0] in shows for flag in flags):
        flags = ["-m", *flags]
    return [*flags, *overrides]


def _split_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the run and the pictures off the front: a file is a picture even if its name looks like an override."""
    names = list(takewhile(lambda word: not word.startswith("-") and (Path(word).is_file() or "=" not in word), words))
    return names, list(words[len(names) :])


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w./-]*", value):
        return value
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _hydra_line(line: str) -> str:
    """The line to complete as Hydra's completion can read it: without our command and all but plain overrides."""
    _, *words = line.split()
    word = "" if line.endswith(" ") else words.pop()
    plain = [part for part in words if re.fullmatch(r"[\w./@+~-]+=[\w./,+-]*", part)]
    return " ".join(["stagetree", "-m", *plain, word])


def _conf_dir() -> Path:
    """The groups: inside the package when installed from a wheel, else beside the sources."""
    package = Path(__file__).resolve().parent
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
    except Exception as error:
        if given == "1":
            raise
        if isinstance(error, FailedRunError):
            print(error, file=sys.stderr)
            sys.exit(3)
        said = _mendable(error) or _hydra_mistake(error)
        if said is None:
            raise
        sys.exit(said)
    finally:
        os.environ.pop(FULL_ERROR)
        if given is not None:
            os.environ[FULL_ERROR] = given


def _mendable(error: Exception) -> str | None:
    """What to say of a mistake of the user's or a trouble of the machine's; `None` if the error is something else."""
    from stagetree.config import InputError

    if isinstance(error, OSError):
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return f"{said} (nothing that was there is lost; mend it and run the same command again)"
    return str(error) if isinstance(error, InputError) else None


def _hydra_mistake(error: Exception) -> str | None:
    """What Hydra or YAML says of a mistake in a configuration; `None` if the error is something else."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, YAMLError):
        return " ".join(str(error).split())
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    cause = error.__cause__
    said = f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    return f"{said}\nSet {FULL_ERROR}=1 to see where."


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

    from stagetree import sweep
    from stagetree.compose import Job, checked
    from stagetree.launch import launch_here

    job = Job(tuple(HydraConfig.get().overrides.task), checked(cfg))
    return sweep.run([job], workers=1, launch=launch_here, command=_command())


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

    from stagetree import prepare, sweep
    from stagetree.compose import compose_grid
    from stagetree.config import InputError
    from stagetree.launch import count_workers, end_idle_workers, launch_by_hydra

    if mode not in ("train", "plan", "plan_json"):
        raise InputError(f"hydra.sweeper.mode: got {mode!r}, expected one of plan, plan_json, train")
    jobs = compose_grid(context.config_loader, config, arguments)
    workers = count_workers(config, jobs[0].config.trainer.workers)
    if mode != "train":
        plan = prepare.plan(jobs, workers=workers, measure=True)
        if mode == "plan":
            plan.show(Console())
        else:
            print(json.dumps(plan.as_dict(), indent=2))
        return None
    launch = launch_by_hydra(context, config, overrides=jobs[0].overrides, workers=workers)
    try:
        outcome = sweep.run(jobs, workers=workers, launch=launch, command=_command())
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
    from stagetree.compose import checked
    from stagetree.watch import watch

    watch(Path(checked(cfg).output_dir).resolve())


def _report(cfg: "DictConfig") -> None:
    from stagetree import sweep
    from stagetree.compose import checked

    sweep.leaderboard(checked(cfg))


def _data(cfg: "DictConfig") -> None:
    from rich.console import Console

    from stagetree import pictures
    from stagetree.compose import checked

    pictures.describe_data(checked(cfg), Console())


def _predict(cfg: "DictConfig") -> None:
    from rich.console import Console

    from stagetree import pictures
    from stagetree.compose import checked

    pictures.predict(checked(cfg), Console())


def _ui(cfg: "DictConfig") -> None:
    from stagetree import ui
    from stagetree.compose import checked

    ui.serve(checked(cfg))


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
}
"""For each command, Hydra's task function; the sweeper plugin stands in for it in `sweep` and `plan`."""
