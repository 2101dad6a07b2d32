"""Errors that a user can mend, each with the sentence that says how."""

import difflib
import re

from stagetree.redact import redact


class InputError(Exception):
    """A user's input cannot be used. The message says what, got, expected and cure."""

    def __init__(self, message: str):
        super().__init__(printable(redact(message)))


class Stopped(BaseException):
    """Training was asked to end. Not an `Exception`, since no run failed."""


def printable(text: str) -> str:
    """Write control characters as escapes, so that a file's name cannot control a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def choices(got: str, known: list[str]) -> str:
    """Write the end of a sentence about a wrong name: the names there are, and the nearest."""
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f", expected one of {', '.join(sorted(known))}{hint}"


def mendable(error: Exception) -> str | None:
    """Say how to mend an error of the user's or trouble of the machine; `None` if it is something else."""
    if isinstance(error, OSError):
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return f"{redact(said)} (nothing that was there is lost; mend it and run the same command again)"
    return str(error) if isinstance(error, InputError) else None


def _raised_by(error: Exception) -> str:
    """Return the package whose code raised an error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] if trace else ""


def composition_error(error: Exception) -> str | None:
    """Give the message of Hydra or YAML for an error in a configuration; `None` if it is something else."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, YAMLError):
        return redact(" ".join(str(error).split()))
    if isinstance(error, ValueError) and _raised_by(error) == "omegaconf":  # it reads `lr` as a place in a list
        return redact(
            f"an override does not fit what it changes, {error} (stages written as pairs have schedule.stages.0.0 for "
            "epochs and schedule.stages.0.1 for lr, stages written as {epochs, lr} have schedule.stages.0.lr)"
        )
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'\n", str(error)):
        return redact(
            f"{ambiguous[1]}: got several values, expected one (stagetree sweep and plan take several, but not with "
            "--cfg; a list is written in brackets, and text that holds a comma is quoted within the quotes)"
        )
    cause = error.__cause__
    said = redact(f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error))
    return f"{said}\n(pip install 'stagetree[slurm]' brings it)" if "find 'hydra/launcher/submitit" in said else said
