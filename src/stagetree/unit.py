"""A unit's task on disk, so that a worker in any process on any machine finds it, again after a crash."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stagetree.checkpoint import write_atomic
from stagetree.plan import Node


@dataclass(frozen=True)
class Settings:
    """What a unit needs to know beside its nodes; none of it decides a number."""

    output_dir: str
    data: Mapping[str, str]
    """Folder of the prepared arrays for each digest."""
    pack_size: int | str = "auto"
    test_every_epoch: bool = False
    checkpoint_every_s: float = 60.0


def write_unit(folder: Path, unit_id: str, roots: Iterable[Node], settings: Settings) -> None:
    """Write `folder/units/<unit_id>.json`: the nodes of whole subtrees, parents first."""
    task = {"settings": vars(settings), "nodes": [node.to_json() for root in roots for node in root.walk()]}
    path = folder / "units" / f"{unit_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(task).encode())


def read_unit(folder: Path, unit_id: str) -> tuple[list[Node], Settings]:
    """Read what `write_unit` wrote; the nodes come without their children."""
    task = json.loads((folder / "units" / f"{unit_id}.json").read_text())
    return [Node.from_json(values) for values in task["nodes"]], Settings(**task["settings"])
