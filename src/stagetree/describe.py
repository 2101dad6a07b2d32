"""What people see of a run: MLflow's parameters, and a name that says what varies in the sweep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagetree.config import Config
from stagetree.data import DataInfo
from stagetree.notation import WRITTEN_OUT, brief, short
from stagetree.redact import redact_values
from stagetree.tree import Run, Stages, StageTree


@dataclass(frozen=True)
class RunEntry:
    """One run as the tracker needs it."""

    uid: str
    name: str
    trunk_name: str
    """Its name without the schedule."""
    path: tuple[str, ...]
    """Uids of the states on its way, its own last."""
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    """Resolved configuration; secrets are hidden."""
    dataset: Mapping[str, Any]
    """`name`, `digest`, `n_train`, `n_test`."""
    stages: Stages
    shared_epochs: int
    """Epochs of its schedule that it shares with another run of the sweep."""
    command: str
    """Trains this run alone."""


def describe(
    runs: Mapping[str, Run],
    configs: Mapping[str, Config],
    infos: Mapping[str, DataInfo],
    whole: StageTree,
    commands: Mapping[str, str],
) -> tuple[RunEntry, ...]:
    """Describe each run; names say what varies in the sweep. All mappings are by uid."""
    params = {uid: _params(config, infos[uid]) for uid, config in configs.items()}
    # a setting that only some optimizers or losses have varies where those that have it differ
    values: dict[str, set[str]] = {}
    for one in params.values():
        for key, value in one.items():
            values.setdefault(key, set()).add(str(value))
    varying = {key for key, distinct in values.items() if len(distinct) > 1}
    paths = _paths(whole)
    users: dict[str, int] = {}
    for path in paths.values():
        for uid in path:
            users[uid] = users.get(uid, 0) + 1
    epochs = {node.uid: node.epochs for node in whole.walk()}
    return tuple(
        RunEntry(
            uid=uid,
            name=_name(params[uid], varying),
            trunk_name=_name(params[uid], varying, without=("lrs", "epochs")),
            path=paths[uid],
            params=params[uid],
            config=redact_values(configs[uid].model_dump(mode="json")),
            dataset={
                "name": infos[uid].name, "digest": infos[uid].digest,
                "n_train": infos[uid].n_train, "n_test": infos[uid].n_test,
            },
            stages=configs[uid].schedule.stages,
            shared_epochs=sum(epochs[node] for node in paths[uid] if users[node] > 1),
            command=commands[uid],
        )
        for uid in runs
    )  # fmt: skip


def _paths(tree: StageTree) -> dict[str, tuple[str, ...]]:
    """The uids on the way to each run's final state."""
    parents = {node.uid: node.parent for node in tree.walk()}
    paths = {}
    for node in tree.walk():
        if node.final:
            path = [node.uid]
            while parent := parents[path[-1]]:
                path.append(parent)
            paths[node.uid] = tuple(reversed(path))
    return paths


def _params(config: Config, info: DataInfo) -> dict[str, Any]:
    """MLflow's parameters: readable lists beside numbers that its plots can use."""
    n_classes, stages = len(info.classes), config.schedule.stages
    optimizer = config.optimizer.model_dump(mode="json")
    loss = config.loss.model_dump(mode="json")
    params = {
        "dataset": info.name,
        "dataset_digest": info.digest[:16],
        "val_size": config.dataset.val_size,
        "architecture": config.model.architecture(n_classes),
        "hidden_sizes": list(config.model.hidden_sizes),
        "activation": config.model.activation,
        "dropout": config.model.dropout,
        "n_params": config.model.n_params(info.in_features, n_classes),
        "n_layers": len(config.model.hidden_sizes) + 1,
        "loss": loss.pop("name"),
        **loss,
        "optimizer": optimizer.pop("name"),
        **optimizer,
        "reset_optimizer": config.schedule.reset_optimizer,
        "lrs": brief([stage.lr for stage in stages]),
        "epochs": brief([stage.epochs for stage in stages]),
        "epochs_total": sum(stage.epochs for stage in stages),
        "batch_size": config.trainer.batch_size,
        "shuffle": config.trainer.shuffle,
        "precision": config.trainer.precision,
        "seed": config.seed,
    }
    for index, stage in enumerate(stages if len(stages) <= WRITTEN_OUT else ()):
        params |= {f"lr_{index}": stage.lr, f"log10_lr_{index}": math.log10(stage.lr), f"epochs_{index}": stage.epochs}
    return params


_IN_NAMES = {"architecture", "optimizer", "lrs"}  # always named
_NOT_IN_NAMES = {"hidden_sizes", "n_params", "n_layers", "epochs_total", "dataset_digest"}  # said by others


def _name(params: Mapping[str, Any], varying: set[str], without: Sequence[str] = ()) -> str:
    """Short, as MLflow's table cuts names: `300 sgd lr 0.1>0.001 epochs 20>10 seed 2`."""
    words = []
    for key, value in params.items():
        if key in without:
            continue
        if key not in _IN_NAMES and (key not in varying or key in _NOT_IN_NAMES or key[-1].isdigit()):
            continue
        if key == "architecture":
            words.append("-".join(map(str, params["hidden_sizes"])) or "softmax")
        elif key in ("dataset", "optimizer", "activation"):
            words.append(str(value))
        elif key in ("lrs", "epochs"):
            written = value if isinstance(value, str) else ">".join(map(short, value))
            words.append(f"{'lr' if key == 'lrs' else key} {written}")
        else:
            words.append(f"{key} {value}")
    return " ".join(words)
