"""Keep units on disk, so that a worker in any process on any machine finds them, again after a crash."""

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stagetree.errors import InputError
from stagetree.storage.files import read_sealed, write_sealed
from stagetree.tree.stage_tree import Node, nodes_from_json, nodes_to_json


@dataclass(frozen=True)
class UnitSettings:
    """The settings of a unit; none of them decides a number."""

    output_dir: str
    data: Mapping[str, str]
    """The folder of the prepared arrays for each digest."""
    pack_size: int | str = "auto"
    test_every_epoch: bool = False
    checkpoint_every_s: float = 60.0
    share: bool = True
    """Whether nodes that another process trains are left to it, and its states are used here."""
    workers_per_device: int = 1
    """Number of workers that may share an accelerator."""
    since: float = 0.0
    """States written before this are ignored; a file's time in seconds."""
    launcher: str = ""
    """The host of the launching process, whose workers there end with it; empty: workers outlive it."""


@dataclass(frozen=True)
class UnitFile:
    """A unit as a worker reads it."""

    nodes: list[Node]
    """Parents first, without their children."""
    settings: UnitSettings
    after: tuple[str, ...] = ()
    """The units of the same launch that train the states from which this one starts."""


class UnseenError(InputError):
    """A worker does not see the launching process's files."""


def write_unit(
    folder: Path, unit_id: str, roots: Iterable[Node], settings: UnitSettings, after: Collection[str] = ()
) -> None:
    """Write `folder/units/<unit_id>.json`, a `UnitFile` of whole subtrees."""
    nodes = nodes_to_json(node for root in roots for node in root.walk())
    path = _path(folder, unit_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, {"settings": vars(settings), "nodes": nodes, "after": sorted(after)})


def read_unit(folder: Path, unit_id: str) -> UnitFile:
    """Read a unit that `write_unit` wrote.

    Raises:
        UnseenError: the folder is not on this machine.
        InputError: the unit is missing or damaged.
    """
    path = _path(folder, unit_id)
    if not path.parent.is_dir():
        raise UnseenError(
            f"output_dir: a worker on {socket.gethostname()} does not see {folder}, which the launching process made "
            "(give an output_dir that all machines share, at one path)"
        )
    try:
        values = read_sealed(path)
    except (ValueError, FileNotFoundError):
        raise InputError(f"{path}: the unit is missing or damaged (run the same command again)") from None
    return UnitFile(nodes_from_json(values["nodes"]), UnitSettings(**values["settings"]), tuple(values["after"]))


def take_unit(folder: Path, after: Mapping[str, Collection[str]], is_busy: Callable[[str], bool]) -> str | None:
    """Choose a unit for a free worker; no other worker on any machine that shares the folder gets the same.

    Args:
        folder: of the launch.
        after: for each unit, the units it starts from; in the order in which units are to be started.
        is_busy: tells whether a live worker trains a unit.

    Returns:
        The first unit that can start, or that waits for units which nobody trains; the empty string if it is too early
        for those that are left; `None` if none is left.
    """
    left = [unit_id for unit_id in after if not _mark(folder, unit_id, "taken").exists()]
    ended = {unit_id for unit_id in after if _mark(folder, unit_id, "ended").exists()}
    for unit_id in left:
        missing = set(after[unit_id]) - ended
        if any(map(is_busy, missing)):
            continue
        with contextlib.suppress(FileExistsError):
            os.close(os.open(_mark(folder, unit_id, "taken"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return unit_id
    return "" if left else None


def output_dir_of(folder: Path) -> Path:
    """Find the output folder of a launch's folder, `output_dir/sweeps/<sweep>/<launch>`."""
    return folder.parents[2]


def mark_ended(folder: Path, unit_id: str) -> None:
    """Mark a unit as ended, so that the units which wait for it can start."""
    _mark(folder, unit_id, "ended").touch()


def _path(folder: Path, unit_id: str) -> Path:
    return folder / "units" / f"{unit_id}.json"


def _mark(folder: Path, unit_id: str, what: str) -> Path:
    return folder / "units" / f"{unit_id}.{what}"
