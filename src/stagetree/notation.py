"""Schedules in the notations that people write."""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from stagetree.tree import Stage

LARGEST_LR = 1e38
NOTATION = "write stages as [[20, 1e-1], [10, 1e-3]]"


def parse_stages(value: Any) -> tuple[Stage, ...]:
    """Read a schedule in any notation that people write.

    Text such as `"[(20,1e-1),(10,1e-3)]"`, lists of pairs, lists of `{epochs, lr}`, and what YAML makes of the
    unquoted text: `["(20", "1e-1)", ...]`.

    Raises:
        ValueError: naming the stage, what it got, and how to write it.
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
    return tuple(stages)


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
    if not _is_number(epochs) or epochs != int(epochs) or epochs < 1:
        raise ValueError(f"epochs must be a whole number of at least 1, got {epochs!r}")
    if not _is_number(lr) or not math.isfinite(lr) or lr <= 0:
        raise ValueError(f"lr must be a finite number above 0, got {lr!r}")
    if lr > LARGEST_LR:
        raise ValueError(f"lr must be at most {LARGEST_LR:g}, as weights are float32, got {lr!r}")
    return Stage(epochs=int(epochs), lr=float(lr))


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
