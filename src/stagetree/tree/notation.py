"""Parse schedules in the notations that people write, and write them in brief."""

import ast
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from stagetree.tree.runs import Stage

LARGEST_LR = 1e38
NOTATION = "write stages as [[20, 1e-1], [10, 1e-3]]"
MOST_STAGES, MOST_EPOCHS = 10_000, 1_000_000
"""Limits of a schedule, since a state is kept at each stage's end and looked up at each epoch."""
WRITTEN_OUT = 30
"""The most stages that a schedule is shown with in full."""


def parse_stages(value: Any) -> tuple[Stage, ...]:
    """Read a schedule in any notation that people use.

    These are text such as `"[(20,1e-1),(10,1e-3)]"`, lists of pairs, lists of `{epochs, lr}`, and the list that YAML
    makes of the unquoted text, `["(20", "1e-1)", ...]`.

    Raises:
        ValueError: a stage is wrong; the message names it, its value and the notation.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, str) for part in value):
        value = "[" + ",".join(value) + "]"
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"not a list of stages, got {value!r} ({NOTATION})") from None
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(part) for part in value):
        value = [value]  # one bare pair: (20, 1e-1)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"must be a list of at least one stage, got {value!r} ({NOTATION})")
    problems, stages = [], []
    for position, part in enumerate(value):
        try:
            stages.append(_parse_stage(part))
        except ValueError as error:
            problems.append(f"stages[{position}]: {error}")
    if problems:
        raise ValueError("; ".join(problems) + f" ({NOTATION})")
    if len(stages) > MOST_STAGES:
        raise ValueError(f"got {len(stages):,} stages, expected at most {MOST_STAGES:,} (make some of them longer)")
    if (epochs := sum(stage.epochs for stage in stages)) > MOST_EPOCHS:
        raise ValueError(f"got {epochs:,} epochs, expected at most {MOST_EPOCHS:,} in all ({NOTATION})")
    return tuple(stages)


def brief(values: Sequence[float]) -> Sequence[float] | str:
    """Shorten the learning rates or the epochs of a schedule for people; different lists stay different.

    A long list becomes `0.1>0.0999>...>1e-05 of 300 a1b2c3d4`: its beginning, its end, its length and its digest.
    """
    if len(values) <= WRITTEN_OUT:
        return list(values)
    digest = hashlib.sha256(repr([float(value) for value in values]).encode()).hexdigest()[:8]
    first, second, *_, last = map(short, values)
    return f"{first}>{second}>...>{last} of {len(values)} {digest}"


def short(value: float) -> str:
    """Write a number in as few digits as tell it from all others."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parse_stage(part: Any) -> Stage:
    if isinstance(part, Stage):
        return part
    if isinstance(part, Mapping):
        if set(part) != {"epochs", "lr"}:
            raise ValueError(f"needs exactly the keys epochs and lr, got {sorted(map(str, part))}")
        part = (part["epochs"], part["lr"])
    if not isinstance(part, (list, tuple)) or len(part) != 2:
        raise ValueError(f"must be a pair of epochs and lr, got {part!r}")
    epochs, lr = part
    # comparisons, since a whole number that no float holds cannot be asked whether it is finite
    if not _is_number(epochs) or not 1 <= epochs <= MOST_EPOCHS or epochs != int(epochs):
        most = f" and at most {MOST_EPOCHS:,}" if _is_number(epochs) and epochs > MOST_EPOCHS else ""
        raise ValueError(f"epochs must be a whole number of at least 1{most}, got {_shown(epochs)}")
    if not _is_number(lr) or not 0 < lr <= sys.float_info.max:
        raise ValueError(f"lr must be a finite number above 0, got {_shown(lr)}")
    if lr > LARGEST_LR:
        raise ValueError(f"lr must be at most {LARGEST_LR:g}, as weights are float32, got {lr!r}")
    return Stage(epochs=int(epochs), lr=float(lr))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:20]}..."


def listed_stages(argument: str) -> str:
    """Write the tuples of a `schedule.stages=` override as lists, since Hydra's grammar has no tuples.

    Quoted text and the parentheses of functions such as `choice(...)` stay; any other override is returned as it is.
    """
    match = re.match(r"\+{0,2}schedule\.\w+=", argument)  # a misspelt key too: Hydra then says which there are
    if match is None:
        return argument
    written, opened = match.group(), []
    for token in re.findall(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\w+\s*\(|.", argument[match.end() :], re.DOTALL):
        if token.endswith("(") and len(token) > 1:
            opened.append(")")
        elif token in "([":
            opened.append("]")
            token = "["
        elif token in ")]" and opened:
            token = opened.pop()
            written = written.rstrip(", ") if token == "]" else written  # Python's ((20, 1e-1),)
        written += token
    return written
