"""Make a configuration's run: separate the settings that decide the numbers from those that do not."""

import hashlib

from stagetree.config.schema import Config
from stagetree.tree.runs import Run, Trunk, canonical_json


def to_run(config: Config, *, digest: str, in_features: int, n_classes: int, device: str) -> Run:
    """Keep the settings that decide the numbers, as a trunk and stages, and leave out the others.

    Args:
        config: a checked configuration.
        digest: the digest of the data's content.
        in_features: the number of values of an image.
        n_classes: the number of classes of the data.
        device: the device to use, which `auto` stands for on this machine.
    """
    plain = config.model_dump(mode="json")
    trunk = Trunk(
        data=digest,
        mean=config.dataset.mean,
        std=config.dataset.std,
        val_size=config.dataset.val_size,
        val_seed=config.dataset.val_seed if config.dataset.val_size else 0,
        model=plain["model"],
        n_params=config.model.n_params(in_features, n_classes),
        loss=plain["loss"],
        reset_optimizer=config.schedule.reset_optimizer,
        **plain["trainer"] | {"device": device, "threads": config.trainer.threads if device == "cpu" else 1},
        optimizer=plain["optimizer"],
        seed=config.seed,
    )
    return Run(trunk, config.schedule.stages)


def trunk_digest(trunk: Trunk) -> str:
    """Identify everything that decides the numbers except schedule and seed, by 16 hex digits."""
    settings = trunk.settings
    del settings["seed"]
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]
