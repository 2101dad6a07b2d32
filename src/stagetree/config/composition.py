"""A job: one point of a grid, composed, checked, and with the command that trains it alone."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from stagetree.config.schema import Config
from stagetree.config.validation import check
from stagetree.errors import InputError
from stagetree.redact import redact_words

if TYPE_CHECKING:
    from hydra.conf import HydraConf


@dataclass(frozen=True)
class Job:
    """One point of the grid."""

    overrides: tuple[str, ...]
    """Its choices, in Hydra's notation."""
    config: Config
    flags: tuple[str, ...] = ()
    """Hydra's flags that say where the configuration comes from."""

    @property
    def command(self) -> str:
        """The command that trains this point alone, to type into a shell; secrets are hidden."""
        return shlex.join(redact_words(["stagetree", "train", *self.flags, *self.overrides]))


def to_plain(node: DictConfig, *, throw_on_missing: bool = False) -> dict[str, Any]:
    """Resolve a node of a configuration to plain values.

    Raises:
        OmegaConfBaseException: it refers to something that is not there, or, if asked for, a value is missing.
    """
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True, throw_on_missing=throw_on_missing))


def source_flags(hydra: "DictConfig | HydraConf") -> tuple[str, ...]:
    """The flags by which a configuration is found again, from Hydra's own node of it."""
    added = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [str(word) for path in added for word in ("--config-dir", path)]
    return (*flags, *(["-cn", str(hydra.job.config_name)] if hydra.job.config_name != "config" else []))


def resolve(cfg: DictConfig) -> Config:
    """Resolve a composed configuration without its `hydra` node to plain values, and check them.

    Raises:
        InputError: the configuration has errors; the message has a line for each.
    """
    try:
        return check(to_plain(cfg, throw_on_missing=True))
    except MissingMandatoryValue:
        missing = sorted(OmegaConf.missing_keys(cfg))
        raise InputError("\n".join(f"{key}: is not set (give it as {key}=...)" for key in missing)) from None
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
