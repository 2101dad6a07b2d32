"""A unit's task on disk, so that a worker in any process on any machine finds it, again after a crash."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stagetree.checkpoint import read_sealed, write_sealed
from stagetree.mistakes import InputError
from stagetree.tree import Node


@dataclass(frozen=True)
class Settings:
    """What a unit needs to know beside its nodes; none of it decides a number."""

    output_dir: str
    data: Mapping[str, str]
    """Folder of the prepared arrays for each digest."""
    pack_size: int | str = "auto"
    test_every_epoch: bool = False
    checkpoint_every_s: float = 60.0
    share: bool = True
    """Whether what another process trains is left to it, and what it has trained is taken over."""
    since: float = 0.0
    """States written before are passed over; a file's time in seconds."""
    launcher: str = ""
    """Host of the launching process; a worker there ends with it. Empty: nobody watches."""


def write_unit(folder: Path, unit_id: str, roots: Iterable[Node], settings: Settings) -> None:
    """Write `folder/units/<unit_id>.json`: the nodes of whole subtrees, parents first."""
    task = {"settings": vars(settings), "nodes": [node.to_json() for root in roots for node in root.walk()]}
    path = _path(folder, unit_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, task)


def read_unit(folder: Path, unit_id: str) -> tuple[list[Node], Settings]:
    """Read what `write_unit` wrote; the nodes come without their children.

    Raises:
        InputError: it is missing or damaged.
    """
    path = _path(folder, unit_id)
    try:
        task = read_sealed(path)
    except (ValueError, FileNotFoundError):
        raise InputError(f"{path}: the unit is missing or damaged (run the same command again)") from None
    return [Node.from_json(values) for values in task["nodes"]], Settings(**task["settings"])


def _path(folder: Path, unit_id: str) -> Path:
    return folder / "units" / f"{unit_id}.json"
