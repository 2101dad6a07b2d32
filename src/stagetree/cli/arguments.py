"""What is typed -> Hydra's own command line; help and completion, which are answered at once, without imports."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

from stagetree.errors import InputError
from stagetree.tree.notation import listed_stages

HELP = """\
usage: stagetree COMMAND [group=option] [key=value] [Hydra's flags]

  train    train one run (--fresh --quiet)
  sweep    train a grid: values separated by commas, shared schedule prefixes once (--fresh --quiet)
  plan     say what a sweep would train, and train nothing (--json)
  watch    show the progress of a sweep that runs elsewhere
  report   rank the runs as a table, a CSV file and a page (--metric test_acc --top 20 --group-by seed --output X.csv)
  ui       open MLflow's user interface (--port 5000)
  data     DATASET: say what a data set holds, and draw sample images
  predict  RUN image.png ...: name the classes of images; RUN is best, a run's name, or the beginning of its id
  export   RUN DIR: write a trained model that needs torch and safetensors alone
  migrate  URI: copy what is recorded to another MLflow store, such as a team's server
  verify   say whether checkpoints, MLflow and the leaderboard agree (--repair: put right what does not)

  stagetree train dataset=mnist model=mlp_300 "schedule.stages=[(3,1e-1)]"
  stagetree sweep dataset=mnist model=mlp,mlp_300 "schedule.stages=[(5,1e-1),(5,1e-2)],[(5,1e-1),(5,1e-3)]" seed=1,2
  stagetree report dataset=mnist optimizer=adam   rank the runs with these settings (predict and export alike)
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
    "export": {},
    "migrate": {},
    "verify": {"repair": "verify.repair"},
}
"""For each command, options that are another way to write an override."""
SWITCHES = {"fresh", "quiet", "repair"}
"""Options without a value: they stand for `true`."""
COUNTS = {"top", "port"}
"""Options that take a number; what others take is text, even if it looks like one."""
WORDS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "data": lambda words: [f"dataset={_text(words[0])}"],
    "predict": lambda words: [
        f"predict.run={_text(words[0])}",
        f"predict.pictures=[{','.join(map(_text, words[1:]))}]",
    ],
    "export": lambda words: [
        f"export.{key}={_text(word)}" for key, word in zip(("run", "folder"), words, strict=False)
    ],
    "migrate": lambda words: [f"migrate.to={_text(words[0])}"],
}
"""For each command that takes plain words first, the overrides that they stand for."""
MOST_WORDS = {"data": 1, "export": 2, "migrate": 1}
TRAINING = {"train", "sweep", "plan"}
"""Commands that take a whole grid."""


def answered_at_once(words: Sequence[str]) -> bool:
    """Print what needs no import: help, the version, and the words that complete a command or its options."""
    if not words or words in (["-h"], ["--help"]):
        print(HELP, end="")
    elif words == ["--version"]:
        from stagetree._version import __version__

        print(f"stagetree {__version__}")
    elif asks_completion(words):
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


def asks_completion(words: Sequence[str]) -> bool:
    """Whether a shell wants to know how the line goes on."""
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

    near = difflib.get_close_matches(first, OPTIONS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"stagetree: there is no command {first!r}, expected one of {', '.join(OPTIONS)}{hint}")


def hydra_words(command: str, words: Sequence[str]) -> list[str]:
    """Write the words after a command as Hydra's own command line would have them.

    Flags come before overrides, since Hydra 1.3 refuses overrides on both sides of a flag.
    """
    import argparse

    parser = argparse.ArgumentParser(prog=f"stagetree {command}", add_help=False, allow_abbrev=False)
    for option in OPTIONS[command]:
        if option in SWITCHES:
            parser.add_argument(f"--{option}", action="store_const", const="true")
        else:
            parser.add_argument(f"--{option}", metavar="VALUE")
    if command == "plan":
        parser.add_argument("--json", action="store_true")
    given, words = parser.parse_known_args(words)
    named, words = _split_names(words) if command in WORDS else ([], words)
    most = MOST_WORDS.get(command)
    if most is not None and len(named) > most:
        raise InputError(f"stagetree {command}: takes {most} word{'s' * (most > 1)}, got {' '.join(named)}")
    overrides = [listed_stages(word) for word in words if _is_override(word)]
    flags = [word for word in words if not _is_override(word)]
    for option, key in OPTIONS[command].items():
        value = getattr(given, option.replace("-", "_"))
        if value is not None:
            plain = option in SWITCHES or (option in COUNTS and value.isdecimal())
            overrides.append(f"{key}={value if plain else _text(value)}")
    if command == "plan":
        overrides.append(f"hydra.sweeper.mode={'plan_json' if given.json else 'plan'}")
    if named:
        overrides += WORDS[command](named)
    if command not in TRAINING and {"-m", "--multirun"} & set(flags):
        raise InputError(f"stagetree {command}: takes no -m, since it trains nothing (leave it out)")
    shows = {"-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help", "-m", "--multirun"}
    if command in ("sweep", "plan") and not any(flag.split("=")[0] in shows for flag in flags):
        flags = ["-m", *flags]
    return [*flags, *overrides]


def _split_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take plain words off the front: a file is a picture even if its name looks like an override."""
    names = list(takewhile(lambda word: not word.startswith("-") and (Path(word).is_file() or "=" not in word), words))
    return names, list(words[len(names) :])


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _text(value: str) -> str:
    """Write text for Hydra's grammar, where 5458, 1e5, null and the like would be no text without quotes."""
    plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and value.lower() not in _NO_TEXT
    if plain:
        return value
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value)
    return f"'{escaped}'"


_NO_TEXT = {"true", "false", "null", "nan", "inf"}


def hydra_line(line: str) -> str:
    """The line to complete as Hydra's completion can read it: without our command and all but plain overrides."""
    _, *words = line.split()
    word = "" if line.endswith(" ") else words.pop()
    plain = [part for part in words if re.fullmatch(r"[\w./@+~-]+=[\w./,+-]*", part)]
    return " ".join(["stagetree", "-m", *plain, word])
