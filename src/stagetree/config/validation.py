"""Check plain values and make a `Config` of them, or a sentence for each error."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from stagetree.config.overrides import describe_change
from stagetree.config.schema import Config
from stagetree.errors import InputError, choices

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
"""For pydantic's kinds of errors, the words before the bound and the key of its value."""


def check(values: Mapping[str, Any]) -> Config:
    """Turn composed plain values into a `Config`.

    Raises:
        InputError: the values have errors; the message has a line for each.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_describe(problem, values) for problem in error.errors(include_url=False))
        raise InputError("\n".join(lines)) from None


def _describe(problem: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Write a sentence for one of pydantic's errors, with its place, the value given and the values expected."""
    where = _path(problem["loc"], values)
    kind, got, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "value_error":
        return f"{where}: {context['error']}"
    if kind == "missing":
        return f"{where}: is not set (give it as {where}=...)"
    if kind == "extra_forbidden":
        known = choices(str(problem["loc"][-1]), _known_fields(problem["loc"][:-1], values))
        return f"{where}: {describe_change(where) or f'there is no such setting{known}'}"
    if kind in ("literal_error", "union_tag_invalid", "union_tag_not_found"):
        known = re.findall(r"'(\w+)'", context.get("expected") or context.get("expected_tags") or "")
        key = where if kind == "literal_error" else f"{where}.name"
        name = got.get("name") if isinstance(got, Mapping) else got
        return f"{key}: got {name!r}{choices(str(name), known)}"
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"{where}: must be {word} {context[key]}, got {got!r}"
    if kind == "string_type" and isinstance(got, (int, float)):
        return f"{where}: must be text, got {got!r} (text that looks like a number is quoted twice: {where}=\"'...'\")"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{where}: must be {expected}, got {got!r}"


def _path(loc: tuple, values: Mapping[str, Any]) -> str:
    """`optimizer.betas[1]` for pydantic's `('optimizer', 'adam', 'betas', 1)`: tags of unions are left out."""
    path = ""
    here: Any = values
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
            here = here[part] if isinstance(here, (list, tuple)) and part < len(here) else None
        elif isinstance(here, Mapping) and part in here:
            path += f".{part}"
            here = here[part]
        elif part == loc[-1] and isinstance(here, Mapping) and part != here.get("name"):
            path += f".{part}"  # a missing field
    return path.removeprefix(".")


def _known_fields(loc: tuple, values: Mapping[str, Any]) -> list[str]:
    model: Any = Config
    for part in loc:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = fields[part].annotation
        members = get_args(model)
        chosen = [m for m in members if part in get_args(m.model_fields["name"].annotation)] if members else []
        model = chosen[0] if chosen else model
    return sorted(getattr(model, "model_fields", {}))
