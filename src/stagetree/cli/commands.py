"""List all commands with their help, options and functions. It imports nothing heavy, since help reads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of a command."""

    name: str
    """The word to type, such as `--group-by`."""
    target: str
    """Its meaning: an override; the beginning of one, which its value completes; or an argument of the function."""
    example: str = ""
    """An example of its value for the help; empty if it takes none."""
    read: Callable[[str], Any] = str
    """Converts the typed text to the value; raises `ValueError` with the expected kind."""


@dataclass(frozen=True)
class Command:
    """A word that may follow `stagetree`."""

    about: str
    """Its line in the help."""
    function: str
    """The function to call with the checked `Job` and the command's arguments, as `module:name` within this folder."""
    options: tuple[Option, ...] = ()
    usage: str = ""
    """The plain words that may come first, for the help; if it ends with ..., the last takes all that follow."""
    words: tuple[str, ...] = ()
    """Their targets, as those of options."""
    takes_grid: bool = False
    """Whether it takes several values of a setting, and Hydra's flag -m."""
    adds: tuple[str, ...] = ()
    """Words that Hydra gets beside the typed ones."""

    @property
    def help(self) -> str:
        """The line of the command in the help."""
        options = " ".join(f"{option.name} {option.example}".rstrip() for option in self.options)
        return (f"{self.usage}: " if self.usage else "") + self.about + (f" ({options})" if options else "")


def _read_count(typed: str) -> int:
    if typed.isdecimal():
        return int(typed)
    raise ValueError("a whole number")


def _read_port(typed: str) -> int:
    if typed.isdecimal() and int(typed) <= 65535:
        return int(typed)
    raise ValueError("a whole number up to 65535, 0 for any port that is free")


_FRESH, _QUIET = Option("--fresh", "execution.fresh=true"), Option("--quiet", "quiet=true")
_PORT = Option("--port", "port", "5000", _read_port)
_REPORT = (
    Option("--metric", "report.metric=", "test_acc"),
    Option("--top", "report.top=", "20", _read_count),
    Option("--group-by", "report.group_by=", "seed"),
    Option("--output", "report.output=", "X.csv"),
)
COMMANDS: Mapping[str, Command] = {
    "train": Command("train one run", "train:train", (_FRESH, _QUIET), takes_grid=True),
    "sweep": Command(
        "train a grid: values separated by commas, shared schedule prefixes once",
        "train:train",  # with -m, the sweeper plugin stands in for it
        (_FRESH, _QUIET),
        takes_grid=True,
        adds=("-m",),
    ),
    "plan": Command(
        "say what a sweep would train, and train nothing",
        "train:train",
        (Option("--json", "hydra.sweeper.mode=plan_json"), _FRESH),
        takes_grid=True,
        adds=("-m", "hydra.sweeper.mode=plan"),
    ),
    "watch": Command("show the progress of a sweep that runs elsewhere", "watch:watch"),
    "report": Command("rank the runs as a table, a CSV file and a page", "records:report", _REPORT),
    "ui": Command("open MLflow's user interface", "ui:serve", (_PORT,)),
    "data": Command(
        "say what a data set holds, and draw sample images", "data:describe_data", (), "DATASET", ("dataset=",)
    ),
    "predict": Command(
        "name the classes of images; RUN is best, a run's name, or the beginning of its id",
        "predict:predict",
        usage="RUN image.png ...",
        words=("run", "images"),
    ),
    "export": Command(
        "write a trained model that needs torch and safetensors alone",
        "predict:export_run",
        usage="RUN DIR",
        words=("run", "folder"),
    ),
    "migrate": Command(
        "copy what is recorded to another MLflow store, such as a team's server", "records:migrate", (), "URI", ("uri",)
    ),
    "verify": Command(
        "say whether checkpoints, MLflow and the leaderboard agree, or put right what does not",
        "records:verify",
        (Option("--repair", "repair"),),
    ),
}
"""In the order of the help."""
