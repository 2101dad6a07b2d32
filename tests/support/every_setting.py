"""Each setting of the schema, another value for it, and what a sweep records of configurations, without training."""

import hashlib
import json
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from pandas import DataFrame
from pydantic import BaseModel

from stagetree.config import identity, schema
from stagetree.planning import descriptions
from stagetree.tracking import store
from stagetree.tree.stage_tree import StageTree

CLASSES = ("a", "b", "c")
GROUPS = ("dataset", "model", "optimizer", "loss", "schedule", "trainer", "execution")
OTHER = {
    "root": "elsewhere/pets", "file": "other.npz", "split": "letters", "mean": [0.5], "std": [0.25], "val_size": 0.1,
    "class_weights": [1.0, 2.0, 3.0], "betas": [0.8, 0.95], "hidden_sizes": [5, 4], "activation": "tanh",
    "stages": [[2, 0.1], [1, 0.01]], "device": "mps", "precision": "bfloat16", "duplicates": "ignore",
    "pack_size": 3, "workers": 3,
}  # fmt: skip
"""Another value of settings that are no plain numbers or switches."""
NO_EFFECT = {
    "duplicates", "test_every_epoch", "pack_size", "share_prefixes", "fresh", "checkpoint_every_s", "workers",
    "workers_per_device",
}  # fmt: skip
"""On the numbers; all other settings of these groups decide them."""
CONTEXT = {"val_seed": {"dataset.val_size": 0.2}, "nesterov": {"optimizer.momentum": 0.9}}
"""What a setting needs to have an effect."""
BASE = {
    "dataset": {"val_size": 0, "height": 4, "width": 4, "file": "small.npz", "split": "balanced", "root": "data/cats"},
    "model": {"hidden_sizes": [4]}, "schedule": {"stages": [[2, 0.1]]}, "trainer": {"device": "cpu"},
}  # fmt: skip


def kinds(group: str) -> list[type[BaseModel]]:
    """The models of a group: one for each `name`."""
    annotation = schema.Config.model_fields[group].annotation
    return list(get_args(annotation)) or [annotation]


def leaves():
    """Each setting of each kind of each group, and the seed."""
    for group in GROUPS:
        for kind in kinds(group):
            for name in kind.model_fields:
                if name != "name":
                    yield pytest.param(group, kind, name, id=f"{kind.__name__}.{name}")
            if "name" in kind.model_fields and len(get_args(kind.model_fields["name"].annotation)) > 1:
                yield pytest.param(group, kind, "name", id=f"{kind.__name__}.name")
    yield pytest.param("", schema.Config, "seed", id="seed")


def base(group: str, kind: type[BaseModel], name: str) -> dict[str, Any]:
    """A configuration with this kind of this group, in which the setting has an effect."""
    chosen = {"dataset": schema.Digits, "optimizer": schema.SGD, "loss": schema.CrossEntropy, group: kind}
    values: dict[str, Any] = {"seed": 0, "output_dir": "x"}
    for one in (*GROUPS, "tracking", "report"):
        fields = chosen.get(one, kinds(one)[0]).model_fields
        values[one] = {key: value for key, value in BASE.get(one, {}).items() if key in fields}
        if "name" in fields:
            values[one]["name"] = get_args(fields["name"].annotation)[0]
    for path, value in CONTEXT.get(name, {}).items():
        values[path.split(".")[0]][path.split(".")[1]] = value
    return values


def another(kind: type[BaseModel], name: str, now: Any) -> Any:
    if name == "name":
        return get_args(kind.model_fields[name].annotation)[1]
    if name in OTHER:
        return OTHER[name]
    if isinstance(now, bool):
        return not now
    return now / 2 + 0.25 if isinstance(now, float) else now + 1


def recorded(configs) -> tuple[tuple[descriptions.RunEntry, ...], DataFrame]:
    """What a sweep of these configurations records. Each dataset setting stands for other data."""
    made, infos = {}, {}
    for one in configs:
        source = one.dataset.model_dump(mode="json", exclude={"mean", "std", "val_size", "val_seed", "duplicates"})
        if one.dataset.name in ("digits", "mnist"):
            source.pop("root")
        digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()
        run_ = identity.to_run(one, digest=digest, in_features=16, n_classes=3, device=one.trainer.device)
        made[run_.uid] = (run_, one)
        infos[run_.uid] = SimpleNamespace(name="x", digest=digest, classes=CLASSES, in_features=16, n_train=9, n_test=9)
    runs = {uid: pair[0] for uid, pair in made.items()}
    entries = descriptions.describe(
        runs,
        {uid: pair[1] for uid, pair in made.items()},
        infos,
        StageTree.build(runs.values()),
        dict.fromkeys(runs, ""),
    )
    stored = [
        store.Recorded(
            entry.uid, "FINISHED", None, {key: str(value) for key, value in entry.params.items()}, {"test/acc": 0.5},
            {"stagetree.kind": "run", "stagetree.uid": entry.uid, "stagetree.trunk": entry.trunk},
        )
        for entry in entries
    ]  # fmt: skip
    return entries, store._to_frame(stored)
