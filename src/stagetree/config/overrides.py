"""Translate typed overrides, earlier names included, into those that Hydra and the schema understand."""

import re

from stagetree.errors import InputError
from stagetree.tree.notation import listed_stages

_TO_EXECUTION = "workers workers_per_device pack_size share_prefixes fresh checkpoint_every_s test_every_epoch"
RENAMED = {f"trainer.{name}": f"execution.{name}" for name in _TO_EXECUTION.split()}
"""Settings of earlier versions, and their present names."""
COMMANDS = {
    "predict": "stagetree predict RUN image.png ...",
    "export": "stagetree export RUN DIR",
    "migrate": "stagetree migrate URI",
    "verify": "stagetree verify --repair",
    "ui": "stagetree ui --port 5000",
}
"""Groups of earlier versions, and the commands that have their settings as arguments now."""


def hydra_override(word: str) -> str:
    """Rewrite an override that has stages as tuples, or a setting's earlier name, for Hydra.

    Raises:
        InputError: the setting is an argument of a command now.
    """
    match = re.fullmatch(r"(~|\+{0,2})([^=]*)(.*)", word, re.DOTALL)
    assert match is not None, "every word matches"
    prefix, key, rest = match.groups()
    key = RENAMED.get(key, key)
    if said := describe_change(key):
        raise InputError(f"{key}: {said}")
    return listed_stages(prefix + key + rest)


def describe_change(key: str) -> str | None:
    """Describe the change of a setting or a group of earlier versions; `None` for any other."""
    if key in RENAMED:
        return f"is called {RENAMED[key]} now"
    command = COMMANDS.get(key.partition(".")[0])
    return f"is no setting now but an argument of its command ({command})" if command else None
