"""How fast this machine trains the shapes of a tree: looked up, or measured as a sweep would train them."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from stagetree.data.cache import DataInfo
from stagetree.training import throughput
from stagetree.training.devices import use_device
from stagetree.training.throughput import Speed
from stagetree.tree.runs import PackKey
from stagetree.tree.stage_tree import Node, StageTree

MEASURE_S = 10.0
"""After which no further shape is measured; those left stay unknown."""


def speeds(
    tree: StageTree, output_dir: Path, infos: Mapping[str, DataInfo], workers: int, workers_per_device: int = 1
) -> dict[PackKey, Speed]:
    """Look up the speed of each shape, and measure those that this machine never trained.

    Args:
        tree: of what is to be trained.
        output_dir: of the store, where measured speeds are kept.
        infos: by digest of the data.
        workers: processes that measure at a time, as many as will train, since they share caches and memory; 0: none,
            unknown shapes stay unknown.
        workers_per_device: of those that may share an accelerator.
    """
    nodes: dict[PackKey, list[Node]] = {}
    for node in tree.walk():
        nodes.setdefault(node.pack_key, []).append(node)
    found = {shape: throughput.find(output_dir, shape) for shape in nodes}
    missing = [nodes[shape] for shape, own in found.items() if own is None]
    if workers and missing:
        print(f"measuring how fast this machine trains {len(missing)} shape{'s' * (len(missing) > 1)}", file=sys.stderr)
        # resolved, since joblib's workers may be left from a call in another working folder
        folders = {digest: str(Path(info.folder).resolve()) for digest, info in infos.items()}
        tasks = [(members[0], -(-len(members) // workers), folders[members[0].trunk.data]) for members in missing]
        for (node, _, _), own in zip(tasks, _measure(tasks, workers, workers_per_device), strict=False):
            found[node.pack_key] = own
            throughput.keep(output_dir, node.pack_key, own)
    return {shape: own for shape, own in found.items() if own is not None}


def _measure(tasks: Sequence[tuple[Node, int, str]], workers: int, workers_per_device: int) -> list[Speed]:
    from joblib import Parallel, delayed

    here = min(workers, os.cpu_count() or 1)
    return Parallel(n_jobs=here)(delayed(_measure_each)(tasks, workers_per_device) for _ in range(here))[0]


def _measure_each(tasks: Sequence[tuple[Node, int, str]], workers_per_device: int) -> list[Speed]:
    """Measure shapes for which there is time: a node of each, members for a pack, and the folder of its data."""
    from stagetree.training.epochs import Split, never
    from stagetree.training.measurement import measure  # torch

    measured, until = [], time.monotonic() + MEASURE_S
    for node, wanted, folder in tasks:
        use_device(node.trunk.device, workers_per_device, never, print)
        if time.monotonic() > until:
            break
        measured.append(measure(node, wanted, partial(Split.load, Path(folder))))
    return measured
