"""A run: all that decides its numbers, and the uids of the states that it passes. Standard library only."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

FORMAT = 2
"""A part of every uid, raised when the same configuration would give other numbers."""

Settings = Mapping[str, Any]
"""The settings of one group, such as the optimizer's, as plain values by their names."""


def canonical_json(value: Any) -> str:
    """Write JSON that is equal exactly if the values are: sorted keys, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, order=True)
class Stage:
    """One learning rate held for a number of epochs."""

    epochs: int
    lr: float


Stages = tuple[Stage, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Shared:
    """The settings that a trunk and a pack key share. Both are compared and hashed by their canonical JSON."""

    data: str
    """SHA-256 of the prepared data, in hex."""
    mean: tuple[float, ...]
    """Subtracted for each channel; empty: 0."""
    std: tuple[float, ...]
    """Divided by for each channel; empty: 1."""
    val_size: int | float
    val_seed: int
    model: Settings
    n_params: int
    """Weights and biases of the model."""
    loss: Settings
    reset_optimizer: bool
    batch_size: int
    eval_batch_size: int
    shuffle: bool
    precision: str
    device: str
    """Resolved: never `auto`."""
    threads: int

    @cached_property
    def json(self) -> str:
        """The canonical JSON, from which uids are made."""
        return canonical_json(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.json == other.json

    def __hash__(self) -> int:
        return hash(self.json)


@dataclass(frozen=True, eq=False, kw_only=True)
class PackKey(_Shared):
    """The settings that runs must have in common to train side by side."""

    optimizer: str
    """Its name; members may differ in its settings."""
    folded: bool
    """Whether the optimizer's step is part of the backward pass."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trunk(_Shared):
    """All settings that decide the numbers of a run, except its schedule."""

    optimizer: Settings
    seed: int

    @classmethod
    def from_json(cls, text: str) -> "Trunk":
        """Read a trunk from its canonical JSON.

        Raises:
            ValueError: the text is not a trunk.
        """
        try:
            values = json.loads(text)
            return cls(**values | {name: tuple(values[name]) for name in ("mean", "std")})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a trunk: {error}") from None

    @cached_property
    def pack_key(self) -> PackKey:
        shared = {field.name: getattr(self, field.name) for field in fields(_Shared)}
        name = self.optimizer["name"]
        plain_sgd = name == "sgd" and not any(value for key, value in self.optimizer.items() if key != "name")
        return PackKey(**shared, optimizer=name, folded=plain_sgd and self.precision != "bfloat16")


def prefix_uid(trunk: str, stages: Stages) -> str:
    """Identify the state that training `stages` on `trunk` leads to.

    Args:
        trunk: its canonical JSON.
        stages: all stages trained so far; the last may be part of a longer one.

    Returns:
        64 hex digits, the same on every machine.
    """
    pairs = [[stage.epochs, float(stage.lr)] for stage in stages]
    text = f'{{"format":{FORMAT},"stages":{canonical_json(pairs)},"trunk":{trunk}}}'
    return hashlib.sha256(text.encode()).hexdigest()


class Prefixes:
    """The uids of all prefixes of one run's schedule.

    Each is found by hashing only the stage that its prefix adds to the one before: all prefixes of 10,000 stages take
    0.1 s, and a minute by `prefix_uid`.

    Args:
        trunk: of the run.
        stages: of the run.
    """

    def __init__(self, trunk: Trunk, stages: Stages):
        self.trunk, self.stages = trunk, stages
        self._hashes = [hashlib.sha256(f'{{"format":{FORMAT},"stages":['.encode())]  # before each stage

    def __reduce__(self):
        return Prefixes, (self.trunk, self.stages)

    def uid(self, depth: int, epochs: int) -> str:
        """Identify the state after `depth` stages, at least 1, the last of them trained for `epochs`."""
        while len(self._hashes) < depth:
            stage = self.stages[len(self._hashes) - 1]
            self._hashes.append(self._hashes[-1].copy())
            self._hashes[-1].update(f"{canonical_json([stage.epochs, float(stage.lr)])},".encode())
        found = self._hashes[depth - 1].copy()
        pair = canonical_json([epochs, float(self.stages[depth - 1].lr)])
        found.update(f'{pair}],"trunk":{self.trunk.json}}}'.encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Run:
    """One full configuration."""

    trunk: Trunk
    stages: Stages

    @cached_property
    def uid(self) -> str:
        """The uid of its final state."""
        return prefix_uid(self.trunk.json, self.stages)

    @cached_property
    def prefixes(self) -> Prefixes:
        return Prefixes(self.trunk, self.stages)
