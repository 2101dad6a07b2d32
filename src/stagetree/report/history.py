"""Prepare the learning curves and the stage tree of recorded runs for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, cast

import pandas as pd
from pandas import DataFrame, Series

from stagetree.config.params import param
from stagetree.tracking.curves import MOST_DOTS
from stagetree.tracking.store import param_columns, stages_of
from stagetree.tree.notation import short
from stagetree.tree.runs import Run, Stages, Trunk, canonical_json
from stagetree.tree.stage_tree import LONGEST_CHAIN, Node, StageTree

DEEPEST = 100
"""The number of levels that the tree on the page has."""

Histories = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metric values by run id, metric and epoch."""


def curves(known: DataFrame, histories: Histories) -> list[dict[str, Any]]:
    """List each run's curves as `[epochs, values]` by metric, and its stages' ends, in the order of the ranking."""
    return [
        {
            "ends": _ends(stages_of(cast(Series, known.loc[run_id]))),
            "metrics": {
                name: [list(points), [float(f"{value:.6g}") for value in points.values()]]
                for name, points in curves.items()
            },
        }
        for run_id, curves in histories.items()
    ]


def _ends(stages: Stages) -> list[int]:
    return list(accumulate(stage.epochs for stage in stages)) if len(stages) <= MOST_DOTS else []


def tree(known: DataFrame, histories: Histories, metric: str) -> list[dict[str, Any]]:
    """Build the stage tree of the runs; each node has the accuracy that was reached at its end.

    Args:
        known: from `store.load`, by the runs' ids.
        histories: from `store.load_histories`, in the order of the ranking.
        metric: the one that ranks.

    Returns:
        A mapping for each trunk, the best first, with its `label` and its nodes as `children`.
    """
    told = [name for name in param_columns(known) if param(name).plotted and not param(name).of_schedule]
    varying = [name for name in told if known[name].nunique() > 1]
    runs = recorded_runs(known.loc[list(histories)])
    places = {run_id: place for place, run_id in enumerate(histories)}
    labels: dict[Trunk, str] = {}
    best: dict[str, _Ranked] = {}
    for run_id, run in runs.items():
        row: Any = known.loc[run_id]
        words = [f"{name} {row[name]}" for name in varying if pd.notna(row[name])]
        labels.setdefault(run.trunk, ", ".join(words) or "all runs")
        best.setdefault(run.uid, _Ranked(places[run_id], float(row[metric]), histories[run_id]))
    part = "val_acc" if any("val_acc" in curves for curves in histories.values()) else "train_acc"
    trunks: dict[Trunk, dict[str, Any]] = {}
    for root in StageTree.build(runs.values()).roots:
        trunk = trunks.setdefault(root.trunk, {"label": labels[root.trunk], "children": []})
        _add(trunk["children"], root, best, part)
    return sorted(trunks.values(), key=lambda trunk: min(node["best"] for node in trunk["children"]))


def recorded_runs(known: DataFrame) -> dict[str, Run]:
    """Restore the runs whose schedule is recorded as they were planned, so that their uids are the recorded ones.

    Earlier versions did not record trunks. Such a run takes the trunk of another run with the same digest, or one made
    of its settings: it shares the same prefixes as then, but its nodes have uids of their own.

    Args:
        known: from `store.load`, by the runs' ids.

    Returns:
        The runs, by their ids.
    """
    recorded = known.dropna(subset="trunk_json")
    by_digest = dict(zip(recorded["trunk"], recorded["trunk_json"], strict=True))
    settings = [name for name in param_columns(known) if not param(name).of_schedule]
    runs = {}
    for run_id, row in known.iterrows():
        if row["trunk"] in by_digest:
            trunk = replace(Trunk.from_json(by_digest[row["trunk"]]), seed=int(row["seed"]))
        else:
            told = ["trunk", "seed"] if row["trunk"] else settings
            trunk = _stand_in(canonical_json({name: str(row[name]) for name in told}))
        if stages := stages_of(row):
            runs[run_id] = Run(trunk, stages)
    return runs


def _stand_in(known: str) -> Trunk:
    """Make a trunk that equals another exactly if the known settings of both runs are equal."""
    nothing: dict[str, Any] = dict.fromkeys((field.name for field in fields(Trunk)), 0)
    return Trunk(**nothing | {"data": known, "optimizer": {"name": ""}})


@dataclass(frozen=True)
class _Ranked:
    """The values of a run that its nodes show."""

    place: int
    """Its position in the ranking, from 0."""
    metric: float
    """Its value of the metric that ranks."""
    history: Mapping[str, Mapping[int, float]]


def _add(branches: list[dict[str, Any]], root: Node, runs: Mapping[str, _Ranked], part: str) -> None:
    """Add a subtree. Many stages without a fork are one line, and very deep nodes stand beside their parents.

    Args:
        branches: the list to which its nodes are added.
        root: of the subtree.
        runs: by the uid at which they end.
        part: the metric that nodes show.
    """
    best: dict[str, _Ranked] = {}
    for node in reversed(list(root.walk())):  # children before their parents
        own = [runs[node.uid]] if node.final else []
        best[node.uid] = min(own + [best[child.uid] for child in node.children], key=lambda run: run.place)
    waiting = [(root, branches, 0)]
    while waiting:
        node, siblings, depth = waiting.pop()
        chain = node.chain()
        chain = chain if len(chain) > LONGEST_CHAIN else chain[:1]
        last = chain[-1]
        leader, own = best[node.uid], runs[last.uid] if last.final else None
        reached = {"part": part, "value": leader.history.get(part, {}).get(last.last_epoch), "best": leader.place}
        ended = {"run": own and own.place, "metric": own and own.metric}
        siblings.append(_stretch(chain) | reached | ended)
        below = siblings[-1]["children"] if depth < DEEPEST else siblings
        waiting += [(child, below, depth + 1) for child in reversed(last.children)]


def _stretch(chain: Sequence[Node]) -> dict[str, Any]:
    """Describe one line of the tree: a node, or a chain of many."""
    first, last = chain[0], chain[-1]
    lr = first.lr if len(chain) == 1 else f"{short(first.lr)} to {short(last.lr)} in {len(chain):,} stages"
    return {"uid": last.uid, "epochs": sum(node.epochs for node in chain), "lr": lr, "children": []}
