"""Turn typed words into a command, its arguments and Hydra's own command line; answer help and completion at once."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from stagetree.cli.commands import COMMANDS, Command
from stagetree.config.overrides import hydra_override
from stagetree.errors import InputError

HELP = """\
usage: stagetree COMMAND [group=option] [key=value] [Hydra's flags]

{commands}

  stagetree train dataset=mnist model=mlp_300 "schedule.stages=[(3,1e-1)]"
  stagetree sweep dataset=mnist model=mlp,mlp_300 "schedule.stages=[(5,1e-1),(5,1e-2)],[(5,1e-1),(5,1e-3)]" seed=1,2
  stagetree report dataset=mnist optimizer=adam   rank the runs with these settings (predict and export alike)
  stagetree COMMAND --help     the groups, their options, and all settings
  stagetree COMMAND --cfg job  the configuration that would be used
  eval "$(stagetree -sc install=bash)"  completion for this shell (also zsh, fish)
"""
HELP_FLAGS = {"-h", "--help"}
SHOWING_FLAGS = {"-c", "--cfg", "-i", "--info", "--hydra-help", *HELP_FLAGS}
"""Hydra's flags with which nothing runs, so that Hydra does not accept -m beside them."""
MULTIRUN_FLAGS = {"-m", "--multirun"}


@dataclass(frozen=True)
class Call:
    """One parsed call of the program."""

    command: str
    """The name of the command."""
    arguments: Mapping[str, Any]
    """The arguments of the command's function; those that were not typed are missing."""
    words: list[str]
    """Hydra's own command line."""


def answer_at_once(words: Sequence[str]) -> bool:
    """Print answers that need no import: help, the version, and completions of a command or its options.

    Returns:
        Whether the call is answered.
    """
    if not words or words in (["-h"], ["--help"]):
        lines = [f"  {name:8} {command.help}" for name, command in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
    elif words == ["--version"]:
        from stagetree._version import __version__

        print(f"stagetree {__version__}")
    elif asks_completion(words):
        _, *line = (os.environ["COMP_LINE"] + "|").split()  # the bar reveals a space before the cursor
        *before, word = [part.removesuffix("|") for part in line] or [""]
        if before and not word.startswith("-"):
            return False
        options = COMMANDS[before[0]].options if before and before[0] in COMMANDS else ()
        known = [option.name for option in options] if before else COMMANDS
        fitting = [choice for choice in known if choice.startswith(word)]
        if not before and not fitting:
            return False  # overrides without a command
        print(" ".join(fitting))
    else:
        return False
    return True


def asks_completion(words: Sequence[str]) -> bool:
    """Return whether a shell asks for completions of the line."""
    return "COMP_LINE" in os.environ and any(word.startswith("query=") for word in words)


def parse(words: Sequence[str]) -> Call:
    """Parse the words after the program's name; a call without a command trains.

    Raises:
        InputError: there is no such command, or it does not take these words.
    """
    first = words[0]
    if first not in COMMANDS and (first.startswith(("-", "~")) or "=" in first):
        first, words = "train", ["train", *words]
    if first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"stagetree: there is no command {first!r}, expected one of {', '.join(COMMANDS)}{hint}")
    command = COMMANDS[first]
    try:
        given, rest = _take_options(command, words[1:])
        named, rest = _take_names(command, rest)
        overrides, flags = _split_overrides(command, rest)
    except ValueError as error:
        raise InputError(f"stagetree {first}: {error}") from None
    arguments: dict[str, Any] = {}
    for target, value in (*given, *named):
        if target.endswith("="):
            overrides.append(target + (_text(value) if isinstance(value, str) else str(value)))
        elif "=" in target:
            overrides.append(target)
        else:
            arguments[target] = value
    return Call(first, arguments, [*flags, *overrides])


def _take_options(command: Command, words: Sequence[str]) -> tuple[list[tuple[str, Any]], list[str]]:
    """Split off the command's options; return the target and value of each, and the other words."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in command.options:
        kind: dict[str, Any] = {"metavar": "VALUE"} if option.example else {"action": "store_true", "default": None}
        parser.add_argument(option.name, dest=option.name, **kind)
    try:
        typed, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(error) from None
    given = []
    for option in command.options:
        if (value := getattr(typed, option.name)) is not None:
            try:
                given.append((option.target, option.read(value) if option.example else value))
            except ValueError as error:
                raise ValueError(f"{option.name} must be {error}, got {value!r}") from None
    return given, rest


def _take_names(command: Command, words: Sequence[str]) -> tuple[list[tuple[str, Any]], list[str]]:
    """Split off the command's plain words; the name of a file is one even if it looks like an override."""
    if not command.words:
        return [], list(words)
    names = list(takewhile(lambda word: not word.startswith("-") and (Path(word).is_file() or "=" not in word), words))
    rest, most = words[len(names) :], len(command.words)
    if command.usage.endswith("...") and len(names) >= most:
        names = [*names[: most - 1], tuple(names[most - 1 :])]
    if len(names) > most:
        raise ValueError(f"takes {most} word{'s' * (most > 1)}, got {' '.join(names)}")
    return list(zip(command.words, names, strict=False)), list(rest)


def _split_overrides(command: Command, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate overrides from flags, which go first, since Hydra 1.3 refuses overrides on both sides of a flag."""
    overrides = [hydra_override(word) for word in words if _is_override(word)]
    flags = [word for word in words if not _is_override(word)]
    kinds = {flag.split("=")[0] for flag in flags}
    if kinds & MULTIRUN_FLAGS and not command.takes_grid:
        raise ValueError("takes no -m, since it trains nothing (leave it out)")
    for word in command.adds:
        if _is_override(word):
            overrides.append(word)
        elif not kinds & (SHOWING_FLAGS | MULTIRUN_FLAGS):
            flags.insert(0, word)
    return overrides, flags


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _text(value: str) -> str:
    """Quote text for Hydra's grammar, where 5458, 1e5 or null would not be text without quotes."""
    plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and value.lower() not in _NO_TEXT
    if plain:
        return value
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value)
    return f"'{escaped}'"


_NO_TEXT = {"true", "false", "null", "nan", "inf"}


def hydra_line(line: str) -> str:
    """Rewrite the line to complete for Hydra's completion, without our command and with plain overrides alone."""
    _, *words = line.split()
    word = "" if line.endswith(" ") else words.pop()
    plain = [part for part in words if re.fullmatch(r"[\w./@+~-]+=[\w./,+-]*", part)]
    return " ".join(["stagetree", "-m", *plain, word])
