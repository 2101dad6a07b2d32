"""The kinds of event that a sweep's processes log, each a line of JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

EpochLine = Mapping[str, float]
"""An epoch of a run: `epoch` (counted from 1 over the whole schedule; 0: before training), its metrics by their names
in MLflow, such as `train/loss`, and `seconds`."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a sweep."""

    kind: ClassVar[str]
    """Its name in the log."""


@dataclass(frozen=True)
class UnitBegan(Event):
    """A worker took a unit."""

    kind = "unit"
    unit: str
    pid: int
    host: str
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class UnitEnded(Event):
    """A worker has trained as much of a unit as could be trained; this is the last event of its log."""

    kind = "unit_done"
    unit: str
    time: float


@dataclass(frozen=True)
class PackBegan(Event):
    """Nodes are about to train side by side."""

    kind = "pack"
    uids: tuple[str, ...]
    epochs: int


@dataclass(frozen=True)
class EpochEnded(Event):
    """A node was trained for an epoch, or evaluated before its first."""

    kind = "epoch"
    uid: str
    line: EpochLine

    @property
    def epoch(self) -> int:
        return int(self.line["epoch"])


@dataclass(frozen=True)
class StateReached(Event):
    """A node's state was saved, or was found on disk."""

    kind = "done"
    uid: str


@dataclass(frozen=True)
class Failed(Event):
    """A node failed, and with it all nodes that start from its state."""

    kind = "failed"
    uid: str
    reason: str
    traceback: str = ""
    alone: bool = False
    """Whether its state was reached all the same, so that the nodes which start from it go on."""


@dataclass(frozen=True)
class Waiting(Event):
    """Another process trains these nodes."""

    kind = "waiting"
    uids: tuple[str, ...]


@dataclass(frozen=True)
class StateDamaged(Event):
    """A state is damaged and counts as absent."""

    kind = "damaged"
    reason: str


@dataclass(frozen=True)
class Note(Event):
    """A remark that reports no failure."""

    kind = "note"
    text: str


@dataclass(frozen=True)
class Trouble(Event):
    """A worker cannot go on though no run is to blame, for example because the disk is full."""

    kind = "trouble"
    reason: str


KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in Event.__subclasses__()}


def to_json(event: Event) -> dict[str, Any]:
    """Write an event as plain values."""
    if isinstance(event, EpochEnded):
        return {"kind": event.kind, "uid": event.uid, **event.line}
    return {"kind": event.kind} | {field.name: getattr(event, field.name) for field in fields(event)}


def from_json(values: Mapping[str, Any]) -> Event | None:
    """Read an event from the values of `to_json`; return `None` for a kind that this version does not know.

    Raises:
        TypeError: a value is missing, or there is one too many.
    """
    own = dict(values)
    kind = KINDS.get(own.pop("kind", ""))
    if kind is None:
        return None
    if kind is EpochEnded:
        return EpochEnded(own.pop("uid"), own)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})
