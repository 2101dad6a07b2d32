"""Look up or measure how fast this machine trains each pack key: it decides the size of packs.

Nothing here changes a number of a run: a pack's size affects when its members are done, not their bits.
"""

import contextlib
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stagetree.storage.files import read_sealed, write_sealed
from stagetree.training.devices import use_device
from stagetree.tree.runs import PackKey
from stagetree.tree.stage_tree import Node, StageTree

if TYPE_CHECKING:  # torch
    from stagetree.training.epochs import Split

GAIN = 0.05
"""The saving in a member's time, as a share, below which a larger pack is not worth it."""
SLOW_S = 0.02
"""Seconds of a step that is too slow to be measured often."""
LARGEST = 1024
"""The most members of a pack."""
PACK_BYTES = 2**30
"""The most bytes that a pack's weights, gradients and two moments may take."""
MEASURE_S = 10.0
"""Seconds after which a plan measures no further pack key; those left stay unknown."""


@dataclass(frozen=True)
class Throughput:
    """The measured throughput of a pack key."""

    steps: Mapping[int, float]
    """Seconds of a training step, by the pack's size: 1, 2, 4 and so on, at least the first."""
    image_s: float
    """Seconds that a member takes to evaluate an image."""

    @property
    def best_size(self) -> int:
        """The smallest size that is nearly as good as the best one measured."""
        shares = {size: seconds / size for size, seconds in self.steps.items()}
        return min(size for size, share in shares.items() if share <= (1 + GAIN) * min(shares.values()))

    def decides(self, wanted: int) -> bool:
        """Tell whether the best size for `wanted` members is known: all sizes were tried, or two were no better."""
        largest = max(self.steps)
        if self.steps[1] > SLOW_S and largest > 1:  # a core is full, and trying more would take long
            return self.best_size < largest
        return largest >= min(wanted, 4 * self.best_size)

    def step_s(self, k: int) -> float:
        """Estimate the seconds of a training step of `k` members."""
        below = max(size for size in self.steps if size <= k)
        above = min((size for size in self.steps if size >= k), default=None)
        if above is None:
            return self.steps[below] * k / below
        if above == below:
            return self.steps[k]
        share = (k - below) / (above - below)
        return (1 - share) * self.steps[below] + share * self.steps[above]


def most_members(key: PackKey, wanted: int) -> int:
    """Limit `wanted` members of a pack key to as many as may train side by side with their memory."""
    return max(1, min(wanted, LARGEST, PACK_BYTES // (16 * key.n_params)))


# ---------------------------------------------------------------- looked up or measured


def look_up_or_measure(
    output_dir: Path, node: Node, wanted: int, load: "Callable[[PackKey], Split]", check: Callable[[], None]
) -> Throughput:
    """Find out how fast packs of a node's pack key train, up to packs of `wanted` members.

    Args:
        output_dir: keeps the measurements.
        node: of the pack key.
        wanted: members available for a pack.
        load: brings the data of a pack key to its device.
        check: called often; an error that it raises ends measuring, and nothing is kept.

    Raises:
        InputError: this machine lacks the device.
    """
    known = find(output_dir, node.pack_key)
    if known is None or not known.decides(most_members(node.pack_key, wanted)):
        from stagetree.training.measurement import measure  # torch

        known = measure(node, wanted, load, check, known)
        keep(output_dir, node.pack_key, known)
    return known


def look_up_or_measure_all(
    tree: StageTree, output_dir: Path, folders: Mapping[str, str], workers: int, workers_per_device: int = 1
) -> dict[PackKey, Throughput]:
    """Find out in advance how fast each pack key of a tree trains, with all workers at work as in training.

    Args:
        tree: to be trained.
        output_dir: keeps the measurements.
        folders: of the prepared data, by digest.
        workers: processes that measure at a time, as many as will train, since they share caches and memory; 0:
            nothing is measured.
        workers_per_device: workers that may share an accelerator.

    Returns:
        Throughputs by pack key, without those for which there was no time.
    """
    nodes: dict[PackKey, list[Node]] = {}
    for node in tree.walk():
        nodes.setdefault(node.pack_key, []).append(node)
    found = {key: find(output_dir, key) for key in nodes}
    missing = [nodes[key] for key, own in found.items() if own is None]
    if workers and missing:
        print(f"measuring how fast this machine trains {len(missing)} shape{'s' * (len(missing) > 1)}", file=sys.stderr)
        from joblib import Parallel, delayed

        # resolved, since joblib's workers may be left from a call in another working folder
        resolved = {digest: str(Path(folder).resolve()) for digest, folder in folders.items()}
        tasks = [(members[0], -(-len(members) // workers)) for members in missing]
        here = min(workers, os.cpu_count() or 1)
        calls = (delayed(_measure_each)(tasks, resolved, workers_per_device) for _ in range(here))
        measured: list[list[Throughput]] = cast(Any, Parallel(n_jobs=here)(calls))
        for (node, _), own in zip(tasks, measured[0], strict=False):
            found[node.pack_key] = own
            keep(output_dir, node.pack_key, own)
    return {key: own for key, own in found.items() if own is not None}


def _measure_each(
    tasks: Sequence[tuple[Node, int]], folders: Mapping[str, str], workers_per_device: int
) -> list[Throughput]:
    """Measure pack keys while there is time; each task is a node and the members available for its pack."""
    from stagetree.training.epochs import Split, never
    from stagetree.training.measurement import measure  # torch

    measured, until = [], time.monotonic() + MEASURE_S
    for node, wanted in tasks:
        use_device(node.trunk.device, workers_per_device, never, print)
        if time.monotonic() > until:
            break
        measured.append(measure(node, wanted, partial(Split.load, Path(folders[node.trunk.data])), never))
    return measured


# ---------------------------------------------------------------- kept


def find(output_dir: Path, key: PackKey) -> Throughput | None:
    """Look up the throughput measured on this machine; `None` if there is none."""
    try:
        values = read_sealed(_path(output_dir, key))
    except (OSError, ValueError):
        return None
    return Throughput({int(size): seconds for size, seconds in values["steps"].items()}, values["picture_s"])


def keep(output_dir: Path, key: PackKey, own: Throughput) -> None:
    """Keep a measurement, if the disk can be written."""
    path = _path(output_dir, key)
    values = {"steps": own.steps, "picture_s": own.image_s, "shape": key.settings}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, values)


def _path(output_dir: Path, key: PackKey) -> Path:
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} torch {metadata.version('torch')}"
    return output_dir / "speeds" / f"{hashlib.sha256(f'{machine} {key.json}'.encode()).hexdigest()[:16]}.json"
