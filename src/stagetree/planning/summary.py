"""Summarise a plan in counts, runs and units: `plan --json` prints it, and `watch` reads it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunSummary:
    """A distinct run of a plan."""

    uid: str
    name: str
    stages: tuple[tuple[int, float], ...]
    """Epochs and learning rate of each."""
    finished: bool


@dataclass(frozen=True)
class NodeSummary:
    """A node that is to be trained."""

    uid: str
    parent: str | None
    epochs: int
    lr: float
    final: bool


@dataclass(frozen=True)
class UnitSummary:
    """A unit of a plan."""

    after: tuple[int, ...]
    """Places of the units that it waits for."""
    nodes: tuple[NodeSummary, ...]


@dataclass(frozen=True)
class PlanSummary:
    """A plan of a sweep in counts, runs and units."""

    sweep: str
    """Its id."""
    points: int
    """Number of points of the grid."""
    duplicates: int
    """Number of points that are the same run as another."""
    finished: int
    """Number of finished runs."""
    epochs_asked: int
    """Epochs of all runs together."""
    epochs_distinct: int
    """Epochs that are left once prefixes are shared."""
    epochs_to_train: int
    """Epochs that are left once finished nodes are cut off."""
    largest_pack: int | None
    """Members; `None` until all pack keys were measured."""
    estimated_seconds: float | None
    """Wall time; `None` until all pack keys were measured."""
    estimated_bytes: int
    """Bytes that the sweep adds to the disk."""
    runs: tuple[RunSummary, ...]
    workers: int
    units: tuple[UnitSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Write the summary as plain values."""
        units = [{"after": unit.after, "nodes": [vars(node) for node in unit.nodes]} for unit in self.units]
        return vars(self) | {"runs": [vars(run) for run in self.runs], "units": units}
