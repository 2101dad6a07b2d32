"""The command line: `stagetree COMMAND` with Hydra's overrides and flags."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.cli.arguments import HELP_FLAGS, Call, answer_at_once, asks_completion, hydra_line, parse
from stagetree.cli.commands import COMMANDS

# Hydra and everything below it are imported late: help and the first word's completion answer at once.
if TYPE_CHECKING:
    from omegaconf import DictConfig

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable; 1 shows tracebacks."""


def main() -> None:
    """Run the command in `sys.argv`.

    Exits with 0; 1 for an error in the command or the configuration; 3 when runs failed; 128 plus the signal's number
    when interrupted.
    """
    if answer_at_once(sys.argv[1:]):
        return
    full_error = os.environ.get(FULL_ERROR) == "1"
    try:
        with _errors_shown():
            _run(sys.argv[1:], full_error=full_error)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print("stagetree: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))
    except BrokenPipeError:  # `stagetree report | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end
        sys.exit(128 + signal.SIGPIPE)
    except SystemExit as error:
        sys.exit(1 if error.code == 2 else error.code)  # argparse exits with 2 for usage errors


def _run(words: Sequence[str], *, full_error: bool) -> None:
    if asks_completion(words):
        os.environ["COMP_LINE"] = hydra_line(os.environ["COMP_LINE"])
        call = Call("train", {}, list(words))
    else:
        call = parse(words)

    import hydra

    if HELP_FLAGS & set(call.words):
        print(f"stagetree {call.command}  {COMMANDS[call.command].help}", end="\n\n")
    sys.argv = [sys.argv[0], *call.words]
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}  # Hydra 1.4 warns about it
    task = Task(COMMANDS[call.command].function, call.arguments, full_error)
    hydra.main(**base, config_path=str(conf_dir()), config_name="config")(task)()


@dataclass(frozen=True)
class Task:
    """A command as Hydra's task function; the sweeper knows this program's own tasks by it."""

    function: str
    """The function of the command, as `module:name` within this folder."""
    arguments: Mapping[str, Any]
    full_error: bool
    """Whether to let exceptions pass."""

    def __call__(self, cfg: "DictConfig") -> Any:
        """Run the command on a composed configuration; exit with a sentence if a user can correct the error."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from stagetree.config.composition import Job, resolve, source_flags
        from stagetree.errors import mendable

        settings = HydraConfig.get()
        try:
            module, _, name = self.function.partition(":")
            job = Job(tuple(settings.overrides.task), resolve(cfg), source_flags(settings))
            return getattr(import_module(f"stagetree.cli.{module}"), name)(job, **self.arguments)
        except BrokenPipeError:
            raise
        except Exception as error:
            said = mendable(error)
            if said is None or self.full_error or settings.mode == RunMode.MULTIRUN:
                raise
            sys.exit(said)  # for an exception, Hydra would first print its job


def conf_dir() -> Path:
    """Find the folder of the groups: inside the package when installed from a wheel, else beside the sources."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "conf", package.parents[1] / "conf") if path.is_dir())


class FailedRunError(Exception):
    """A run failed in a job of another sweeper."""


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Turn errors that a user can correct into a line on stderr and exit status 1, unless HYDRA_FULL_ERROR=1.

    Hydra itself would print a traceback for any exception but its own, even for an error in a YAML file. With that
    variable set, it raises instead.
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
        from stagetree.errors import composition_error, mendable

        if isinstance(error, FailedRunError):
            print(error, file=sys.stderr)
            sys.exit(3)
        said, composing = mendable(error), composition_error(error)
        if said is None and composing is None:
            raise
        sys.exit(said or f"{composing}\nSet {FULL_ERROR}=1 to see where.")
    finally:
        os.environ.pop(FULL_ERROR)
        if given is not None:
            os.environ[FULL_ERROR] = given
