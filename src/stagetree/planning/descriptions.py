"""Describe runs: MLflow's parameters, and a name that says what varies in the sweep."""

import contextlib
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stagetree.config.identity import trunk_digest
from stagetree.config.params import OF_DATA, param
from stagetree.config.schema import Config
from stagetree.data.cache import DataInfo
from stagetree.redact import redact_values
from stagetree.tree.notation import WRITTEN_OUT, brief
from stagetree.tree.runs import Run, Stage, Stages, Trunk
from stagetree.tree.stage_tree import StageTree


@dataclass(frozen=True)
class RunEntry:
    """One run as the tracker records it."""

    uid: str
    name: str
    trunk_name: str
    """The name without the schedule."""
    trunk: str
    """Digest of all that decides its numbers except schedule and seed: equal for runs that may be averaged."""
    path: tuple[str, ...]
    """Uids of the states that it passes, its final one last."""
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    """Resolved configuration; secrets are hidden."""
    dataset: Mapping[str, Any]
    """`name`, `digest`, `n_train`, `n_test`."""
    stages: Stages
    shared_epochs: int
    """Epochs of its schedule that it shares with another run of the sweep."""
    command: str
    """The command that trains this run alone."""
    trunk_json: str = ""
    """Canonical JSON of all that decides its numbers except the schedule; empty in files of earlier versions."""


def write_entries(path: Path, entries: Iterable[RunEntry]) -> None:
    """Keep the entries of runs, so that they can be recorded again: gzip of one line of JSON for each run."""
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines(f"{json.dumps(asdict(entry))}\n" for entry in entries)


def read_entries(path: Path) -> Iterator[RunEntry]:
    """Read the entries that `write_entries` wrote, up to the point where they are damaged or cut off."""
    with (
        contextlib.suppress(OSError, EOFError, ValueError, zlib.error),
        gzip.open(path, "rt", encoding="utf-8") as file,
    ):
        for line in file:
            values = json.loads(line)
            stages = tuple(Stage(**stage) for stage in values["stages"])
            yield RunEntry(**values | {"path": tuple(values["path"]), "stages": stages})


def describe(
    runs: Mapping[str, Run],
    configs: Mapping[str, Config],
    infos: Mapping[str, DataInfo],
    whole: StageTree,
    commands: Mapping[str, str],
) -> tuple[RunEntry, ...]:
    """Describe each run; its name tells what varies in the sweep. All mappings are by uid."""
    params = {uid: recorded_params(config, runs[uid].trunk, len(infos[uid].classes)) for uid, config in configs.items()}
    varying = _varying(params.values())
    paths = _paths(whole)
    users = Counter(uid for path in paths.values() for uid in path)
    epochs = {node.uid: node.epochs for node in whole.walk()}

    def entry(uid: str) -> RunEntry:
        trunk, info, settings = runs[uid].trunk, infos[uid], params[uid]
        named = {name: value for name, value in settings.items() if not param(name).of_schedule}
        counts = {"n_train": info.n_train, "n_test": info.n_test}
        return RunEntry(
            uid=uid,
            name=_name(settings, varying),
            trunk_name=_name(named, varying),
            trunk=trunk_digest(trunk),
            trunk_json=trunk.json,
            path=paths[uid],
            params=settings,
            config=redact_values(configs[uid].model_dump(mode="json")),
            dataset={"name": configs[uid].dataset.label, "digest": info.digest, **counts},
            stages=configs[uid].schedule.stages,
            shared_epochs=sum(epochs[node] for node in paths[uid] if users[node] > 1),
            command=commands[uid],
        )

    return tuple(map(entry, runs))


def _varying(params: Collection[Mapping[str, Any]]) -> set[str]:
    """Name the params that differ between the runs that have them; some belong to one optimizer or loss.

    The digest of the data is among them only if nothing else tells the data sets apart.
    """
    values: dict[str, set[str]] = {}
    for one in params:
        for key, value in one.items():
            values.setdefault(key, set()).add(str(value))
    varying = {key for key, distinct in values.items() if len(distinct) > 1}
    data = {(one["dataset_digest"], *(str(one.get(name)) for name in OF_DATA)) for one in params}
    return varying - {"dataset_digest"} if len({said[1:] for said in data}) == len(data) else varying


def _paths(tree: StageTree) -> dict[str, tuple[str, ...]]:
    """List the uids on the way to each run's final state."""
    parents = {node.uid: node.parent for node in tree.walk()}
    paths = {}
    for node in tree.walk():
        if node.final:
            path = [node.uid]
            while parent := parents[path[-1]]:
                path.append(parent)
            paths[node.uid] = tuple(reversed(path))
    return paths


def recorded_params(config: Config, trunk: Trunk, n_classes: int) -> dict[str, Any]:
    """List MLflow's params of a run: all that decides its numbers, as readable lists and as numbers for plots.

    Args:
        config: of the run.
        trunk: of the run, from which all settings are taken.
        n_classes: of the data.
    """
    rest, stages = json.loads(trunk.json), config.schedule.stages
    model, loss, optimizer = (rest.pop(name) for name in ("model", "loss", "optimizer"))
    dataset = config.dataset.model_dump(mode="json")
    params = {
        "dataset": config.dataset.label,
        "dataset_digest": rest.pop("data")[:16],
        **{name: dataset[name] for name in OF_DATA if name in dataset},
        **{name: rest.pop(name) for name in ("mean", "std", "val_size", "val_seed")},
        "architecture": config.model.architecture(n_classes),
        **model,
        "n_params": rest.pop("n_params"),
        "n_layers": len(config.model.hidden_sizes) + 1,
        "loss": loss.pop("name"),
        **loss,
        "optimizer": optimizer.pop("name"),
        **optimizer,
        "reset_optimizer": rest.pop("reset_optimizer"),
        "lrs": brief([stage.lr for stage in stages]),
        "epochs": brief([stage.epochs for stage in stages]),
        "epochs_total": sum(stage.epochs for stage in stages),
        "batch_size": rest.pop("batch_size"),
        **{name: value for name, value in rest.items() if name != "seed"},
        "seed": rest["seed"],
    }
    for index, stage in enumerate(stages if len(stages) <= WRITTEN_OUT else ()):
        params |= {f"lr_{index}": stage.lr, f"log10_lr_{index}": math.log10(stage.lr), f"epochs_{index}": stage.epochs}
    return params


def _name(params: Mapping[str, Any], varying: set[str]) -> str:
    """Name a run briefly, as MLflow's table cuts long names: `300 sgd lr 0.1>0.001 epochs 20>10 seed 2`."""
    known = map(param, params)
    return " ".join(
        one.words(params) for one in known if one.named == "always" or (one.named == "varies" and one.name in varying)
    )
