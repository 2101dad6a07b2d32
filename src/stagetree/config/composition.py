"""One point of a grid: a composed configuration, checked, and what trains it alone."""

import shlex
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from stagetree.config.schema import Config
from stagetree.config.validation import check
from stagetree.errors import InputError
from stagetree.redact import redact_words


@dataclass(frozen=True)
class Job:
    """One point of the grid."""

    overrides: tuple[str, ...]
    """What was chosen for it, in Hydra's notation."""
    config: Config
    flags: tuple[str, ...] = ()
    """Hydra's, that say where the configuration comes from."""

    @property
    def command(self) -> str:
        """What trains this point alone, to type into a shell; secrets are hidden."""
        return shlex.join(redact_words(["stagetree", "train", *self.flags, *self.overrides]))


def source_flags(hydra: DictConfig) -> tuple[str, ...]:
    """The flags by which a configuration is found again, from Hydra's own node of it."""
    added = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [word for path in added for word in ("--config-dir", path)]
    return (*flags, *(["-cn", hydra.job.config_name] if hydra.job.config_name != "config" else []))


def resolve(cfg: DictConfig) -> Config:
    """Resolve a composed configuration without its `hydra` node to plain values, and check them.

    Raises:
        InputError: with a line for each error.
    """
    try:
        return check(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue:
        missing = sorted(OmegaConf.missing_keys(cfg))
        raise InputError("\n".join(f"{key}: is not set (give it as {key}=...)" for key in missing)) from None
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
