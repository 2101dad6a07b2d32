"""How fast this machine trains each shape, as measured and kept: it decides how many runs train side by side.

Nothing here decides a number of a run: a pack's size changes when its members are done, not their bits.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from stagetree.storage.files import read_sealed, write_sealed
from stagetree.tree.runs import PackKey

GAIN = 0.05
"""Share of a member's time that is not worth a larger pack."""
SLOW_S = 0.02
"""A step that takes so long is not measured often."""
LARGEST = 1024
PACK_BYTES = 2**30
"""Most that a pack's weights, gradients and two moments may take."""


@dataclass(frozen=True)
class Speed:
    """What was measured of a shape."""

    steps: Mapping[int, float]
    """Seconds of a training step, by the pack's size: 1, 2, 4 and so on, at least the first."""
    picture_s: float
    """Seconds in which a member evaluates a picture."""

    @property
    def best(self) -> int:
        """The smallest size that is nearly as good as the best that was measured."""
        shares = {size: seconds / size for size, seconds in self.steps.items()}
        return min(size for size, share in shares.items() if share <= (1 + GAIN) * min(shares.values()))

    def decides(self, wanted: int) -> bool:
        """Whether the best size for `wanted` members is known: all were tried, or two were no better."""
        largest = max(self.steps)
        if self.steps[1] > SLOW_S and largest > 1:  # a core is full, and trying more would take long
            return self.best < largest
        return largest >= min(wanted, 4 * self.best)

    def step(self, k: int) -> float:
        """Seconds of a training step of `k` members."""
        below = max(size for size in self.steps if size <= k)
        above = min((size for size in self.steps if size >= k), default=None)
        if above is None:
            return self.steps[below] * k / below
        if above == below:
            return self.steps[k]
        share = (k - below) / (above - below)
        return (1 - share) * self.steps[below] + share * self.steps[above]


def most_members(key: PackKey, wanted: int) -> int:
    """How many of `wanted` members of a pack key may train side by side at all, for their memory."""
    return max(1, min(wanted, LARGEST, PACK_BYTES // (16 * key.n_params)))


def find(output_dir: Path, key: PackKey) -> Speed | None:
    """What was measured of a pack key on this machine, if anything."""
    try:
        values = read_sealed(_path(output_dir, key))
    except (OSError, ValueError):
        return None
    return Speed({int(size): seconds for size, seconds in values["steps"].items()}, values["picture_s"])


def keep(output_dir: Path, key: PackKey, speed: Speed) -> None:
    """Remember what was measured, if the disk can be written."""
    path = _path(output_dir, key)
    values = {"steps": speed.steps, "picture_s": speed.picture_s, "shape": key.settings}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, values)


def _path(output_dir: Path, key: PackKey) -> Path:
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} torch {metadata.version('torch')}"
    return output_dir / "speeds" / f"{hashlib.sha256(f'{machine} {key.json}'.encode()).hexdigest()[:16]}.json"
