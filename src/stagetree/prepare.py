"""From the points of a grid to a plan: settings checked, data prepared, runs merged into a tree and cut into units."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from stagetree import checkpoint, data, drawing, estimate, speed
from stagetree.compose import Job
from stagetree.config import Config, InputError, to_run
from stagetree.describe import RunEntry, describe
from stagetree.plan import Node, Run, StageTree, Unit, cut_waves

MEASURE_S = 10.0
"""Most that a plan takes to find out how fast shapes train."""


@dataclass(frozen=True)
class Plan:
    """What a sweep would train."""

    jobs: Sequence[Job]
    runs: Mapping[str, Run]
    """The distinct ones, by uid."""
    entries: tuple[RunEntry, ...]
    whole: StageTree
    """All runs merged, as if nothing were finished."""
    tree: StageTree
    """What is left to train."""
    waves: list[list[Unit]]
    data: Mapping[str, data.DataInfo]
    """By digest."""
    config: Config
    """Of the first job, for settings that all share."""
    speeds: Mapping[str, speed.Speed]
    """By shape, of those that were measured on this machine."""

    @property
    def sweep_id(self) -> str:
        """Names the set of runs: the same command, run again, goes on with the same sweep."""
        return hashlib.sha256("".join(sorted(self.runs)).encode()).hexdigest()[:12]

    @property
    def epochs_asked(self) -> int:
        return sum(stage.epochs for run in self.runs.values() for stage in run.stages)

    @property
    def seconds(self) -> float | None:
        """Estimated wall time of training what is left; `None` until all its shapes were measured."""
        return estimate.seconds(self.waves, self.speeds, self.data, self.config.trainer.pack_size)

    def as_dict(self) -> dict[str, Any]:
        """Counts, runs and units as plain values."""
        names = {entry.uid: entry.name for entry in self.entries}
        waiting = {node.uid for node in self.tree.walk() if node.final}
        return {
            "sweep": self.sweep_id,
            "points": len(self.jobs),
            "duplicates": len(self.jobs) - len(self.runs),
            "finished": len(self.runs) - len(waiting),
            "epochs_asked": self.epochs_asked,
            "epochs_distinct": self.whole.epochs,
            "epochs_to_train": self.tree.epochs,
            "largest_pack": estimate.largest_pack(self.waves, self.speeds, self.config.trainer.pack_size),
            "estimated_seconds": self.seconds,
            "estimated_bytes": estimate.disk_bytes(self.tree),
            "runs": [
                {"uid": uid, "name": names[uid], "stages": _pairs(run), "finished": uid not in waiting}
                for uid, run in self.runs.items()
            ],
            "waves": [[[_describe_node(node) for root in unit for node in root.walk()] for unit in wave]
                      for wave in self.waves],
        }  # fmt: skip

    def show(self, console: Console) -> None:
        """Print counts, the tree of what is left, and what training it takes."""
        values = self.as_dict()
        to_train = len(self.runs) - values["finished"]
        saved = 1 - self.whole.epochs / self.epochs_asked
        lines = [
            f"sweep {self.sweep_id}: {values['points']} points, {values['duplicates']} duplicates, "
            f"{values['finished']} finished, {to_train} to train",
            f"epochs: {self.epochs_asked} asked for, {self.whole.epochs} after sharing prefixes "
            f"({saved:.0%} saved), {self.tree.epochs} to train",
        ]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
        if not self.tree.roots:
            return
        names = {root.trunk: entry.trunk_name for root, entry in self._first_entries()}
        console.print(drawing.draw(self.tree, names), highlight=False)
        units = sum(map(len, self.waves))
        line = f"units: {units} in {len(self.waves)} wave{'s' * (len(self.waves) > 1)}"
        if values["largest_pack"] is not None:
            line += f", packs of up to {values['largest_pack']}"
        line += f"; {size(values['estimated_bytes'])} on disk"
        if values["estimated_seconds"] is not None:
            line += f"; {duration(values['estimated_seconds'])}, by what this machine was measured to train"
        console.print(line, highlight=False, soft_wrap=True)

    def _first_entries(self) -> Iterator[tuple[Node, RunEntry]]:
        """Each root of what is left, with a run that it leads to."""
        by_uid = {entry.uid: entry for entry in self.entries}
        for root in self.tree.roots:
            yield root, next(by_uid[node.uid] for node in root.walk() if node.final)


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """`3 MB` or `1.2 GB`."""
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def _pairs(run: Run) -> list[list[float]]:
    return [[stage.epochs, stage.lr] for stage in run.stages]


def _describe_node(node: Node) -> dict[str, Any]:
    return {"uid": node.uid, "parent": node.parent, "epochs": node.epochs, "lr": node.lr, "final": node.final}


def plan(jobs: Sequence[Job], *, workers: int, measure: bool = False) -> Plan:
    """Prepare the data, merge the runs and cut them into units for `workers`; train nothing.

    Args:
        jobs: the points of the grid.
        workers: units that run at a time.
        measure: find out how fast this machine trains shapes that it never trained.

    Raises:
        InputError: with a line for each problem of any job.
    """
    config = _common_settings(jobs)
    output_dir = Path(config.output_dir)
    prepared = _prepare_data(jobs, output_dir)
    runs: dict[str, Run] = {}
    kept: dict[str, Job] = {}
    for job in jobs:
        info = prepared[job.config.dataset]
        run = to_run(
            job.config, digest=info.digest, in_features=info.in_features, n_classes=len(info.classes),
            device=resolve_device(job.config.trainer.device),
        )  # fmt: skip
        runs.setdefault(run.uid, run)
        kept.setdefault(run.uid, job)
    whole = StageTree.build(runs.values())
    asked = whole if config.trainer.share_prefixes else StageTree.build(runs.values(), share=False)
    if config.trainer.fresh:
        tree = asked
    else:
        tree = asked.remaining(checkpoint.finished(checkpoint.folder_of(output_dir), on_damage=_note_damage))
    infos = {uid: prepared[job.config.dataset] for uid, job in kept.items()}
    entries = describe(runs, {uid: job.config for uid, job in kept.items()}, infos, whole)
    by_digest = {info.digest: info for info in prepared.values()}
    speeds = _speeds(tree, output_dir, by_digest, workers if measure else 0)
    waves = cut_waves(tree, workers, estimate.epoch_costs((node.shape for node in tree.walk()), speeds, by_digest))
    return Plan(jobs, runs, entries, whole, tree, waves, by_digest, config, speeds)


def _speeds(
    tree: StageTree, output_dir: Path, infos: Mapping[str, data.DataInfo], workers: int
) -> dict[str, speed.Speed]:
    """Look up the speed of each shape, or measure it as `workers` processes will train, none: not at all."""
    nodes: dict[str, list[Node]] = {}
    for node in tree.walk():
        nodes.setdefault(node.shape, []).append(node)
    found = {shape: speed.find(output_dir, shape) for shape in nodes}
    missing = [nodes[shape] for shape, own in found.items() if own is None]
    if workers and missing:
        print(f"measuring how fast this machine trains {_count(len(missing), 'shape')}", file=sys.stderr)
        tasks = [
            (members[0], -(-len(members) // workers), infos[json.loads(members[0].shape)["data"]].folder)
            for members in missing
        ]
        for (node, _, _), own in zip(tasks, _measure_crowded(tasks, workers), strict=False):
            found[node.shape] = own
            speed.keep(output_dir, node.shape, own)
    return {shape: own for shape, own in found.items() if own is not None}


def _measure_crowded(tasks: Sequence[tuple[Node, int, str]], workers: int) -> list[speed.Speed]:
    """Measure in as many processes as will train: what one does slows the others down."""
    from joblib import Parallel, delayed

    until = time.time() + MEASURE_S
    return Parallel(n_jobs=workers)(delayed(_measure_each)(tasks, until) for _ in range(workers))[0]


def _measure_each(tasks: Sequence[tuple[Node, int, str]], until: float) -> list[speed.Speed]:
    """Measure shapes for which there is time: a node of each, members for a pack, and the folder of its data."""
    from stagetree.calibrate import measure  # torch
    from stagetree.epoch import Split

    speeds = []
    for node, wanted, folder in tasks:
        if time.time() > until:
            break
        speeds.append(measure(node, wanted, partial(Split.load, Path(folder))))
    return speeds


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _note_damage(error: checkpoint.StateError) -> None:
    print(f"note: {error.what}; its epochs are trained again", file=sys.stderr)


def _common_settings(jobs: Sequence[Job]) -> Config:
    """Settings of the sweep as a whole must not vary within it."""
    first = jobs[0].config
    names = ("workers", "pack_size", "share_prefixes", "fresh", "test_every_epoch", "checkpoint_every_s")
    pairs = [(f"trainer.{name}", {getattr(job.config.trainer, name) for job in jobs}) for name in names]
    whole = ("tracking", "report", "output_dir", "quiet")
    pairs += [(name, {getattr(job.config, name) for job in jobs}) for name in whole]
    varying = [name for name, values in pairs if len(values) > 1]
    if varying:
        raise InputError("\n".join(f"{name}: must be one for the whole sweep, got several values" for name in varying))
    return first


def _prepare_data(jobs: Sequence[Job], output_dir: Path) -> dict[Any, data.DataInfo]:
    """Prepare each distinct data set once, and report the problems of all."""
    prepared, problems = {}, []
    for dataset in dict.fromkeys(job.config.dataset for job in jobs):
        try:
            prepared[dataset] = data.prepare(dataset, output_dir)
            for note in prepared[dataset].notes:
                print(f"note: {note}", file=sys.stderr)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return prepared


@cache
def resolve_device(device: str) -> str:
    """What `auto` stands for on this machine, found out without importing torch."""
    if device != "auto":
        return device
    cpu_build = metadata.version("torch").endswith("+cpu")
    if Path("/proc/driver/nvidia/version").exists() and not cpu_build:
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"
