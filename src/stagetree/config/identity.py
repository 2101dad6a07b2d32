"""Which run a configuration is: what decides the numbers, apart from what does not."""

import hashlib
import json

from stagetree.config.schema import SGD, Config
from stagetree.tree.stage_tree import Run, canonical_json


def to_run(config: Config, *, digest: str, in_features: int, n_classes: int, device: str) -> Run:
    """Separate what decides the numbers (the trunk and the stages) from what does not.

    Args:
        config: checked.
        digest: of the data's content.
        in_features: of one image.
        n_classes: of the data.
        device: what `auto` stands for here, at the most specific.
    """
    plain = config.model_dump(mode="json")
    n_params = config.model.n_params(in_features, n_classes)
    shape = {
        "data": digest,
        **{name: plain["dataset"][name] for name in ("mean", "std", "val_size")},
        "val_seed": config.dataset.val_seed if config.dataset.val_size else 0,
        "model": plain["model"],
        "n_params": n_params,
        "loss": plain["loss"],
        "reset_optimizer": config.schedule.reset_optimizer,
        **plain["trainer"],
        "device": device,
        "threads": config.trainer.threads if device == "cpu" else 1,
    }
    optimizer = plain["optimizer"]
    folded = config.trainer.precision != "bfloat16" and optimizer == SGD(name="sgd").model_dump(mode="json")
    return Run(
        trunk=canonical_json({**shape, "optimizer": optimizer, "seed": config.seed}),
        shape=canonical_json({**shape, "optimizer": optimizer["name"], "folded": folded}),
        stages=config.schedule.stages,
    )


def trunk_digest(trunk: str) -> str:
    """Identify all that decides the numbers but schedule and seed: 16 hex digits."""
    settings = {name: value for name, value in json.loads(trunk).items() if name != "seed"}
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]
