"""Learning curves and the stage tree of recorded runs, as the leaderboard page shows them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from stagetree.tracking import store
from stagetree.tracking.curves import MOST_DOTS
from stagetree.tree.notation import short
from stagetree.tree.runs import Run, Stage, Stages, Trunk, canonical_json
from stagetree.tree.stage_tree import LONGEST_CHAIN, Node, StageTree

DEEPEST = 100
"""Levels of the tree on the page."""

# Said by other settings: the sizes by the architecture, the lists of a schedule by its stages.
REPEATED = re.compile(r"hidden_sizes|n_params|n_layers|epochs_total|log10_lr_\d+|lrs|epochs|dataset_digest")
_OF_SCHEDULE = re.compile(r"lrs|epochs|epochs_total|(log10_)?lr_\d+|epochs_\d+")

Histories = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By run's id, by metric, by epoch."""


def curves(known: DataFrame, histories: Histories) -> list[dict[str, Any]]:
    """For each run, in the order of the ranking, its curves as `[epochs, values]` by metric, and where stages end."""
    return [
        {
            "ends": _ends(_stages(known.loc[run_id])),
            "metrics": {
                key: [
                    list(points),
                    [float(f"{value:.6g}") for value in points.values()],
                ]
                for key, points in curves.items()
                if re.fullmatch(r"(train|val|test)/(loss|acc)", key)
            },
        }
        for run_id, curves in histories.items()
    ]


def _stages(row: Series) -> Stages:
    """A run's schedule; empty if the record of it is cut or missing."""
    try:
        if isinstance(row["stages"], str):
            return tuple(Stage(int(epochs), lr) for epochs, lr in json.loads(row["stages"]))
        return tuple(map(Stage, map(int, json.loads(row["epochs"])), json.loads(row["lrs"])))
    except (ValueError, TypeError):
        return ()


def _ends(stages: Stages) -> list[int]:
    return list(accumulate(stage.epochs for stage in stages)) if len(stages) <= MOST_DOTS else []


def tree(known: DataFrame, histories: Histories, metric: str) -> list[dict[str, Any]]:
    """The stage tree of the runs, each node with the accuracy that was reached at its end."""
    trunk_columns = [
        name for name in known
        if name not in (*store.ATTRIBUTES, *store.METRICS) and not _OF_SCHEDULE.fullmatch(name)
    ]  # fmt: skip
    varying = [name for name in trunk_columns if known[name].nunique() > 1 and not REPEATED.fullmatch(name)]
    part = "val/acc" if any("val/acc" in curves for curves in histories.values()) else "train/acc"
    runs: dict[str, tuple[int, str]] = {}
    labels, built = {}, []
    for place, run_id in enumerate(histories):
        row = known.loc[run_id]
        told = ["trunk", "seed"] if row["trunk"] else trunk_columns
        trunk = canonical_json({name: str(row[name]) for name in told})
        stages = _stages(row)
        if not stages:
            continue
        run = Run(_stand_in(trunk), stages)
        labels.setdefault(
            trunk, ", ".join(f"{name} {row[name]}" for name in varying if pd.notna(row[name])) or "all runs"
        )
        runs.setdefault(run.uid, (place, run_id))
        built.append(run)
    trunks: dict[str, dict[str, Any]] = {}
    for top in StageTree.build(built).roots:
        trunk = trunks.setdefault(top.trunk.data, {"label": labels[top.trunk.data], "children": []})
        _add(trunk["children"], top, lambda chain, best: _node(chain, best, runs, known, histories, part, metric), runs)
    return sorted(trunks.values(), key=lambda trunk: min(node["best"] for node in trunk["children"]))


def _stand_in(text: str) -> Trunk:
    """A trunk that stands for what is known of a run."""
    nothing = dict.fromkeys((field.name for field in fields(Trunk)), 0)
    return Trunk(**nothing | {"data": text, "optimizer": {"name": ""}})


def _add(
    branches: list[dict[str, Any]], root: Node, write: Callable[[list[Node], tuple[int, str]], dict[str, Any]],
    runs: Mapping[str, tuple[int, str]],
) -> None:  # fmt: skip
    """Add a subtree. Many stages without a fork are one line, and what lies very deep stands beside its parent."""
    best: dict[str, tuple[int, str]] = {}
    for node in reversed(list(root.walk())):  # children before their parents
        own = [runs[node.uid]] if node.final else []
        best[node.uid] = min(own + [best[child.uid] for child in node.children])
    waiting = [(root, branches, 0)]
    while waiting:
        node, siblings, depth = waiting.pop()
        chain = node.chain()
        chain = chain if len(chain) > LONGEST_CHAIN else chain[:1]
        siblings.append(write(chain, best[node.uid]))
        below = siblings[-1]["children"] if depth < DEEPEST else siblings
        waiting += [(child, below, depth + 1) for child in reversed(chain[-1].children)]


def _node(
    chain: Sequence[Node], best: tuple[int, str], runs: Mapping[str, tuple[int, str]], known: DataFrame,
    histories: Histories, part: str, metric: str,
) -> dict[str, Any]:  # fmt: skip
    first, last = chain[0], chain[-1]
    place, run_id = best
    value = histories[run_id].get(part, {}).get(last.last_epoch)
    final = runs[last.uid] if last.final else None
    many = f"{short(first.lr)} to {short(last.lr)} in {len(chain):,} stages"
    return {
        "epochs": sum(node.epochs for node in chain), "lr": first.lr if len(chain) == 1 else many, "part": part,
        "value": value, "best": place, "children": [],
        "run": final and final[0], "metric": final and float(known.loc[final[1], metric]),
    }  # fmt: skip
