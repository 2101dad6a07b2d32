"""Estimate the wall time of a sweep from measured throughput, and the space that it takes on disk."""

import heapq
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

from stagetree.data.cache import DataInfo, val_count
from stagetree.training.throughput import Throughput
from stagetree.tree.runs import PackKey, Settings
from stagetree.tree.stage_tree import Node, StageTree
from stagetree.tree.units import Unit, packs, predecessors

START_S = 6.0
"""Time from launch to the first minibatch and from the last to the leaderboard, mostly imports of torch and MLflow."""
STATE_BYTES, EPOCH_BYTES, RUN_BYTES = 2_000, 130, 30_000
"""Sizes on disk beside the weights: a state's record, a line of its history, and a run's artifacts and rows in
MLflow's database."""
SWEEP_BYTES = 6_400_000
"""Size of a sweep's page among MLflow's artifacts and of an empty database."""
UNFOLDED = 1.5
"""The factor by which an optimizer's own step raises the cost of pack keys that were not measured."""


def epoch_costs(
    keys: Iterable[PackKey], throughputs: Mapping[PackKey, Throughput], infos: Mapping[str, DataInfo]
) -> dict[PackKey, float]:
    """Weigh a member's epoch for each pack key, to divide the work between workers.

    The weights are seconds if all pack keys were measured; else they count multiplications, in any unit.
    """
    keys = set(keys)
    if keys <= throughputs.keys():
        bests = {key: throughputs[key].best_size for key in keys}
        return {key: _steps(key, infos) * throughputs[key].step_s(bests[key]) / bests[key] for key in keys}
    return {key: key.n_params * infos[key.data].n_train * (1.0 if key.folded else UNFOLDED) for key in keys}


def seconds(
    units: Sequence[Unit],
    workers: int,
    throughputs: Mapping[PackKey, Throughput],
    infos: Mapping[str, DataInfo],
    pack_size: int | str,
) -> float | None:
    """Estimate the wall time of a sweep.

    Args:
        units: in the order in which they are started.
        workers: units that run at a time.
        throughputs: by pack key.
        infos: by digest of the data.
        pack_size: most members of a pack, or `"auto"`.

    Returns:
        Seconds; `None` if a pack key was not measured yet.
    """
    if not _are_measured(units, throughputs):
        return None
    durations = [unit_s(unit, throughputs, infos, pack_size) for unit in units]
    return START_S + makespan(durations, predecessors(units), workers) if units else 0.0


def _are_measured(units: Sequence[Unit], throughputs: Mapping[PackKey, Throughput]) -> bool:
    return all(node.pack_key in throughputs for unit in units for root in unit for node in root.walk())


def makespan(durations: Sequence[float], after: Sequence[Collection[int]], workers: int) -> float:
    """Compute when the last unit ends, in seconds, if each worker that is free takes the first unit that can start.

    Args:
        durations: of the units, in seconds, in the order of their start.
        after: for each, the positions of those that must have ended.
        workers: units that run at a time.
    """
    missing = [len(those) for those in after]
    followers: dict[int, list[int]] = defaultdict(list)
    for place, those in enumerate(after):
        for other in those:
            followers[other].append(place)
    ready = [place for place, count in enumerate(missing) if not count]  # sorted, so a heap
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            place = heapq.heappop(ready)
            heapq.heappush(running, (now + durations[place], place))
        now, ended = heapq.heappop(running)
        for place in followers[ended]:
            missing[place] -= 1
            if not missing[place]:
                heapq.heappush(ready, place)
    return now


def largest_pack(units: Sequence[Unit], throughputs: Mapping[PackKey, Throughput], pack_size: int | str) -> int | None:
    """Count the members of the largest pack; `None` until all pack keys were measured."""
    if not _are_measured(units, throughputs):
        return None
    return max((len(pack) for unit in units for pack in _packs(unit, throughputs, pack_size)), default=0)


def disk_bytes(tree: StageTree) -> int:
    """Estimate the bytes a sweep adds to the disk: states, each run's weights as an artifact, the best run's twice."""
    n_moments = cache(lambda trunk: _moments(trunk.optimizer))
    total = largest = 0
    for node in tree.walk():
        weights = 4 * node.trunk.n_params
        largest = max(largest, weights)
        if node.kept:
            total += STATE_BYTES + EPOCH_BYTES * node.last_epoch + weights * (1 + n_moments(node.trunk))
        total += (RUN_BYTES + weights) * node.final
    return total + largest + SWEEP_BYTES if total else 0


def _moments(optimizer: Settings) -> int:
    """Count the tensors of the weights' size that an optimizer keeps."""
    name, extra = optimizer["name"], bool(optimizer.get("momentum")) + bool(optimizer.get("centered"))
    return {"sgd": 0, "rmsprop": 1, "adagrad": 1}.get(name, 2) + extra


def _packs(unit: Unit, throughputs: Mapping[PackKey, Throughput], pack_size: int | str) -> Iterator[list[Node]]:
    """Yield the packs of a unit as a worker will choose them."""
    fixed = 0 if pack_size == "auto" else int(pack_size)
    return packs(unit, lambda node, _: fixed or throughputs[node.pack_key].best_size)


def unit_s(
    unit: Unit, throughputs: Mapping[PackKey, Throughput], infos: Mapping[str, DataInfo], pack_size: int | str
) -> float:
    """Estimate the seconds that a worker needs for a unit."""
    chosen = _packs(unit, throughputs, pack_size)
    return sum(_pack_s(pack[0].pack_key, pack, throughputs[pack[0].pack_key], infos) for pack in chosen)


def _pack_s(spec: PackKey, members: Sequence[Node], own: Throughput, infos: Mapping[str, DataInfo]) -> float:
    info, k, epochs = infos[spec.data], len(members), members[0].epochs
    n_val = _n_val(spec, info)
    evaluated = n_val * (epochs + any(node.parent is None for node in members))
    evaluated += info.n_test * any(node.final for node in members)
    return epochs * _steps(spec, infos) * own.step_s(k) + evaluated * k * own.image_s


def _n_val(spec: PackKey, info: DataInfo) -> int:
    return val_count(info.n_train, spec.val_size) if spec.val_size else 0


def _steps(spec: PackKey, infos: Mapping[str, DataInfo]) -> int:
    """Count the minibatches of an epoch."""
    info = infos[spec.data]
    return math.ceil((info.n_train - _n_val(spec, info)) / spec.batch_size)
