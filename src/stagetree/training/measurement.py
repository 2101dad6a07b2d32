"""Measure how fast packs of a shape train: the real steps, on the real data, for some hundredths of a second a size."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stagetree.models.mlp import Pack, initial_state
from stagetree.training import throughput
from stagetree.training.epochs import Member, PackTraining, Split, evaluate, never, prepared_device
from stagetree.training.throughput import SLOW_S, Speed
from stagetree.tree.runs import PackKey, Settings
from stagetree.tree.stage_tree import Node

STEPS = 5
"""Of a pass: enough for a CUDA graph to be recorded in the first, which is not timed."""
PASSES, PASSES_S = 3, 0.03
"""Passes are repeated at least so often and for so long, and the quickest counts: what else runs only adds."""
LR = 1e-3


def measured(
    output_dir: Path, node: Node, wanted: int, load: Callable[[PackKey], Split], check: Callable[[], None] = never
) -> Speed:
    """Look up how fast packs of a node's shape train, or measure it, up to packs of `wanted` members.

    Args:
        output_dir: where speeds are kept.
        node: of the shape.
        wanted: members that there are for a pack.
        load: brings the data of a shape to its device.
        check: called often; what it raises ends measuring.

    Raises:
        InputError: this machine lacks the device.
    """
    known = throughput.find(output_dir, node.pack_key)
    if known is None or not known.decides(throughput.most_members(node.pack_key, wanted)):
        known = measure(node, wanted, load, check, known)
        throughput.keep(output_dir, node.pack_key, known)
    return known


def measure(
    node: Node, wanted: int, load: Callable[[PackKey], Split], check: Callable[[], None] = never,
    known: Speed | None = None,
) -> Speed:  # fmt: skip
    """Measure packs of a node's shape, beyond what is known: doubled as long as that pays and there are members."""
    spec, optimizer = node.pack_key, node.trunk.optimizer
    wanted = throughput.most_members(spec, wanted)
    with prepared_device(spec):
        return _measure(spec, optimizer, wanted, load(spec), check, known)


def _measure(
    spec: PackKey, optimizer: Settings, wanted: int, split: Split, check: Callable[[], None], known: Speed | None
) -> Speed:
    few = replace(split, train=split.train[: STEPS * spec.batch_size])
    state = initial_state(0, split.info.in_features, len(split.info.classes), spec.model)

    def training(size: int) -> PackTraining:
        return PackTraining([Member(state, optimizer, LR, seed, 0) for seed in range(size)], few, spec)

    if known is None:
        alone = training(1)
        known = Speed({1: _step_s(alone, check)}, _picture_s(alone.pack, split, spec, check))
    while not known.decides(wanted):
        size = 2 * max(known.steps)
        known = replace(known, steps={**known.steps, size: _step_s(training(size), check)})
    return known


def _step_s(training: PackTraining, check: Callable[[], None]) -> float:
    """Time a step of a pack."""
    training.epoch(0, check)
    times: list[float] = []
    while len(times) < PASSES or training.steps * sum(times) < PASSES_S:
        started = time.perf_counter()
        training.epoch(0, check)
        times.append((time.perf_counter() - started) / training.steps)
        if times[0] > SLOW_S:
            break
    return min(times)


def _picture_s(pack: Pack, split: Split, spec: PackKey, check: Callable[[], None]) -> float:
    """Time the evaluation of a picture."""
    few = replace(split, val=split.train[: spec.eval_batch_size])
    times = []
    for _ in range(PASSES):
        started = time.perf_counter()
        evaluate(pack, few, spec, "val", check)
        times.append((time.perf_counter() - started) / len(few.val))
    return min(times)
