"""Make a plan of a grid: check settings, prepare data, merge runs into a tree and cut it into units."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from stagetree.config.composition import Job
from stagetree.config.identity import to_run
from stagetree.config.schema import Config, Frozen
from stagetree.data import cache
from stagetree.errors import InputError
from stagetree.planning import drawing, estimate
from stagetree.planning.descriptions import RunEntry, describe
from stagetree.planning.summary import NodeSummary, PlanSummary, RunSummary, UnitSummary
from stagetree.storage import checkpoints
from stagetree.training.devices import lacking, resolve_device
from stagetree.training.throughput import Throughput, look_up_or_measure_all
from stagetree.tree.runs import PackKey, Run, Trunk
from stagetree.tree.stage_tree import Node, StageTree
from stagetree.tree.units import Unit, cut_units, predecessors


@dataclass(frozen=True)
class Plan:
    """A sweep before it trains: its runs, its tree and its units."""

    jobs: Sequence[Job]
    runs: Mapping[str, Run]
    """The distinct ones, by uid."""
    entries: tuple[RunEntry, ...]
    whole: StageTree
    """All runs merged, as if nothing were finished."""
    tree: StageTree
    """The part that is left to train."""
    units: list[Unit]
    """The units in an order in which they can be started."""
    workers: int
    """Units that run at a time."""
    data: Mapping[str, cache.DataInfo]
    """The data sets by digest."""
    config: Config
    """Configuration of the first job, for settings that all share."""
    throughputs: Mapping[PackKey, Throughput]
    """The throughputs measured on this machine, by pack key."""

    @property
    def sweep_id(self) -> str:
        """An id of the set of runs: the same command, run again, goes on with the same sweep."""
        return hashlib.sha256("".join(sorted(self.runs)).encode()).hexdigest()[:12]

    @property
    def epochs_asked(self) -> int:
        return sum(stage.epochs for run in self.runs.values() for stage in run.stages)

    @property
    def seconds(self) -> float | None:
        """Estimated wall time of the training that is left; `None` until all its pack keys were measured."""
        return estimate.seconds(self.units, self.workers, self.throughputs, self.data, self.config.execution.pack_size)

    @cached_property
    def summary(self) -> PlanSummary:
        """The plan in counts, runs and units."""
        names = {entry.uid: entry.name for entry in self.entries}
        waiting = {node.uid for node in self.tree.walk() if node.final}
        runs = tuple(
            RunSummary(uid, names[uid], tuple((stage.epochs, stage.lr) for stage in run.stages), uid not in waiting)
            for uid, run in self.runs.items()
        )
        units = tuple(
            UnitSummary(tuple(sorted(after)), tuple(_summarize(node) for root in unit for node in root.walk()))
            for unit, after in zip(self.units, predecessors(self.units), strict=True)
        )
        return PlanSummary(
            sweep=self.sweep_id,
            points=len(self.jobs),
            duplicates=len(self.jobs) - len(self.runs),
            finished=len(self.runs) - len(waiting),
            epochs_asked=self.epochs_asked,
            epochs_distinct=self.whole.epochs,
            epochs_to_train=self.tree.epochs,
            largest_pack=estimate.largest_pack(self.units, self.throughputs, self.config.execution.pack_size),
            estimated_seconds=self.seconds,
            estimated_bytes=estimate.disk_bytes(self.tree),
            runs=runs,
            workers=self.workers,
            units=units,
        )

    def show(self, console: Console) -> None:
        """Print the counts, the tree that is left to train, and its estimated cost."""
        drawing.show(self.summary, self.tree, dict(self._names()), console)

    def _names(self) -> Iterator[tuple[Trunk, str]]:
        """Yield each trunk that is left to train, with its name."""
        by_uid = {entry.uid: entry for entry in self.entries}
        for root in self.tree.roots:
            yield root.trunk, next(by_uid[node.uid] for node in root.walk() if node.final).trunk_name


def _summarize(node: Node) -> NodeSummary:
    return NodeSummary(node.uid, node.parent, node.epochs, node.lr, node.final)


def plan(jobs: Sequence[Job], *, workers: int, here: bool = True, measure: bool = False) -> Plan:
    """Prepare the data, merge the runs and cut them into units for `workers`; train nothing.

    Args:
        jobs: the points of the grid.
        workers: units that run at a time.
        here: whether all workers are on this machine.
        measure: whether unknown throughputs are measured, if this machine has the device.

    Raises:
        InputError: jobs have problems; the message has a line for each.
    """
    _check_common_settings(jobs)
    config = jobs[0].config
    output_dir = Path(config.output_dir)
    prepared = _prepare_data(jobs, output_dir)
    _check_fit(jobs, prepared, here)
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
    asked = whole if config.execution.share_prefixes else StageTree.build(runs.values(), share=False)
    if config.execution.fresh:
        tree = asked
    else:
        tree = asked.remaining(checkpoints.finished(checkpoints.folder_of(output_dir), on_damage=_note_damage))
    infos = {uid: prepared[job.config.dataset] for uid, job in kept.items()}
    commands = {uid: job.command for uid, job in kept.items()}
    entries = describe(runs, {uid: job.config for uid, job in kept.items()}, infos, whole, commands)
    by_digest = {info.digest: info for info in prepared.values()}
    devices = {resolve_device(job.config.trainer.device) for job in jobs}
    measuring = workers if measure and not any(map(lacking, devices)) else 0
    folders = {digest: info.folder for digest, info in by_digest.items()}
    throughputs = look_up_or_measure_all(tree, output_dir, folders, measuring, config.execution.workers_per_device)
    keys = {node.pack_key for node in tree.walk()}
    packs = {key: throughputs[key].best_size for key in keys} if keys <= throughputs.keys() else None
    units = cut_units(tree, workers, estimate.epoch_costs(keys, throughputs, by_digest), packs)
    return Plan(jobs, runs, entries, whole, tree, units, workers, by_digest, config, throughputs)


def _note_damage(error: checkpoints.StateError) -> None:
    print(f"note: {error.what}; its epochs are trained again", file=sys.stderr)


def _check_common_settings(jobs: Sequence[Job]) -> None:
    """Check that settings of the sweep as a whole do not vary within it."""
    varying: list[str] = []
    for name in ("execution", "tracking", "report", "output_dir", "quiet"):
        values = {getattr(job.config, name) for job in jobs}
        settings = [dict(value) if isinstance(value, Frozen) else {"": value} for value in values]
        varying += [f"{name}.{key}".rstrip(".") for key in settings[0] if len({one[key] for one in settings}) > 1]
    if varying:
        raise InputError("\n".join(f"{name}: must be one for the whole sweep, got several values" for name in varying))


def _check_fit(jobs: Sequence[Job], prepared: Mapping[Any, cache.DataInfo], here: bool) -> None:
    """Check that settings fit the data and this machine, as far as that is known before training."""
    problems: dict[str, None] = {}  # each said once
    for job in jobs:
        loss, trainer = job.config.loss, job.config.trainer
        device, n_classes = resolve_device(trainer.device), len(prepared[job.config.dataset].classes)
        n_weights = len(getattr(loss, "class_weights", ()))
        if n_weights not in (0, n_classes):
            problems[
                f"loss.class_weights: got {n_weights} for the {n_classes} classes of {job.config.dataset.name}, "
                "expected one for each (or none: all 1)"
            ] = None
        if trainer.precision == "tf32" and device != "cuda":
            problems[
                f"trainer.precision: got tf32, which is for cuda, but trainer.device={trainer.device} is {device} here "
                "(set trainer.precision=float32)"
            ] = None
        if here and (said := lacking(device)):
            problems[said] = None
    if problems:
        raise InputError("\n".join(problems))


def _prepare_data(jobs: Sequence[Job], output_dir: Path) -> dict[Any, cache.DataInfo]:
    """Prepare each distinct data set once, and report the problems of all together."""
    prepared, problems = {}, []
    for dataset in dict.fromkeys(job.config.dataset for job in jobs):
        try:
            prepared[dataset] = cache.prepare(dataset, output_dir)
            for note in prepared[dataset].notes:
                print(f"note: {note}", file=sys.stderr)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return prepared
