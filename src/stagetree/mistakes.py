"""Mistakes that a person can mend, and the sentence that says how."""

import difflib
import re


class InputError(Exception):
    """What a user gave cannot be used. The message is complete: what, got, expected, cure."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Write control characters as escapes, so that a file's name cannot give orders to a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def choices(got: str, known: list[str]) -> str:
    """End a sentence about a wrong name: what there is, and the nearest."""
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f", expected one of {', '.join(sorted(known))}{hint}"


def mendable(error: Exception) -> str | None:
    """What to say of a mistake of the user's or a trouble of the machine's; `None` if the error is something else."""
    if isinstance(error, OSError):
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return f"{said} (nothing that was there is lost; mend it and run the same command again)"
    return str(error) if isinstance(error, InputError) else None


def composition_mistake(error: Exception) -> str | None:
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
    return f"{said}\n(pip install 'stagetree[slurm]' brings it)" if "find 'hydra/launcher/submitit" in said else said
