"""Measure how fast packs train: real steps on the real data, for some hundredths of a second a size."""

import time
from collections.abc import Callable
from dataclasses import replace

from stagetree.models.mlp import Pack, initial_state
from stagetree.training.epochs import Member, PackTraining, Split, evaluate, prepared_device
from stagetree.training.throughput import SLOW_S, Throughput, most_members
from stagetree.tree.runs import PackKey, Settings
from stagetree.tree.stage_tree import Node

STEPS = 5
"""Steps of a pass: enough to record a CUDA graph in the first pass, which is not timed."""
PASSES, PASSES_S = 3, 0.03
"""Passes are repeated at least so often and for so many seconds; the quickest counts, as other load only adds time."""
LR = 1e-3
Check = Callable[[], None]
"""Called often; an error that it raises ends measuring."""


def measure(
    node: Node, wanted: int, load: Callable[[PackKey], Split], check: Check, known: Throughput | None = None
) -> Throughput:
    """Measure packs of a node's pack key beyond the known sizes, doubled as long as that pays and members are left.

    Args:
        node: of the pack key.
        wanted: members available for a pack.
        load: brings the data of a pack key to its device.
        check: called often.
        known: the earlier measurement.

    Raises:
        InputError: this machine lacks the device.
    """
    spec, optimizer = node.pack_key, node.trunk.optimizer
    with prepared_device(spec):
        return _measure(spec, optimizer, most_members(spec, wanted), load(spec), check, known)


def _measure(
    spec: PackKey, optimizer: Settings, wanted: int, split: Split, check: Check, known: Throughput | None
) -> Throughput:
    few = replace(split, train=split.train[: STEPS * spec.batch_size])
    state = initial_state(0, split.info.in_features, len(split.info.classes), spec.model)

    def training(size: int) -> PackTraining:
        return PackTraining([Member(state, optimizer, LR, seed, 0) for seed in range(size)], few, spec)

    if known is None:
        alone = training(1)
        known = Throughput({1: _step_s(alone, check)}, _image_s(alone.pack, split, spec, check))
    while not known.decides(wanted):
        size = 2 * max(known.steps)
        known = replace(known, steps={**known.steps, size: _step_s(training(size), check)})
    return known


def _step_s(training: PackTraining, check: Check) -> float:
    """Time a step of a pack, in seconds."""
    training.epoch(0, check)
    times: list[float] = []
    while len(times) < PASSES or training.steps * sum(times) < PASSES_S:
        started = time.perf_counter()
        training.epoch(0, check)
        times.append((time.perf_counter() - started) / training.steps)
        if times[0] > SLOW_S:
            break
    return min(times)


def _image_s(pack: Pack, split: Split, spec: PackKey, check: Check) -> float:
    """Time the evaluation of an image by one member, in seconds."""
    few = replace(split, val=split.train[: spec.eval_batch_size])
    times = []
    for _ in range(PASSES):
        started = time.perf_counter()
        evaluate(pack, few, spec, "val", check)
        times.append((time.perf_counter() - started) / len(few.val))
    return min(times)
