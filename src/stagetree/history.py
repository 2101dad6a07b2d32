"""Learning curves and the stage tree of recorded runs, as the leaderboard page shows them."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame

from stagetree import store
from stagetree.tree import Node, Run, Stage, StageTree, canonical_json

# Said by other settings: the sizes by the architecture, the lists of a schedule by its stages.
REPEATED = re.compile(r"hidden_sizes|n_params|n_layers|epochs_total|log10_lr_\d+|lrs|epochs|dataset_digest")
_OF_SCHEDULE = re.compile(r"lrs|epochs|epochs_total|(log10_)?lr_\d+|epochs_\d+")

Histories = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By run's id, by metric, by epoch."""


def curves(known: DataFrame, histories: Histories) -> list[dict[str, Any]]:
    """For each run, in the order of the ranking, its curves as `[epochs, values]` by metric, and where stages end."""
    return [
        {
            "ends": np.cumsum(_numbers(known.loc[run_id, "epochs"])).astype(int).tolist(),
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


def _numbers(text: str | None) -> list[float]:
    return json.loads(text) if text else []


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
        stages = tuple(map(Stage, map(int, _numbers(row["epochs"])), _numbers(row["lrs"])))
        if not stages:
            continue
        run = Run(trunk, "", stages)
        labels.setdefault(
            trunk, ", ".join(f"{name} {row[name]}" for name in varying if pd.notna(row[name])) or "all runs"
        )
        runs.setdefault(run.uid, (place, run_id))
        built.append(run)
    nodes: dict[str, dict[str, Any]] = {}
    trunks: dict[str, dict[str, Any]] = {}
    for top in StageTree.build(built).roots:
        for node in top.walk():
            nodes[node.uid] = _node(node, runs, known, histories, part, metric)
            if node.parent is not None:
                nodes[node.parent]["children"].append(nodes[node.uid])
        trunk = trunks.setdefault(top.trunk, {"label": labels[top.trunk], "children": []})
        trunk["children"].append(nodes[top.uid])
    return sorted(trunks.values(), key=lambda trunk: min(node["best"] for node in trunk["children"]))


def _node(
    node: Node, runs: Mapping[str, tuple[int, str]], known: DataFrame, histories: Histories, part: str, metric: str
) -> dict[str, Any]:
    below = [runs[one.uid] for one in node.walk() if one.final]
    best, run_id = min(below)
    epoch = sum(stage.epochs for stage in node.stages)
    value = histories[run_id].get(part, {}).get(epoch)
    final = runs[node.uid] if node.final else None
    return {
        "epochs": node.epochs, "lr": node.lr, "part": part, "value": value, "best": best, "children": [],
        "run": final and final[0], "metric": final and float(known.loc[final[1], metric]),
    }  # fmt: skip
