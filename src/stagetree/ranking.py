"""DataFrame -> leaderboard: runs in the order of a metric, one by one or as means over seeds."""

import re
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from stagetree.config import AnyOptimizer
from stagetree.mistakes import InputError, choices
from stagetree.store import ATTRIBUTES, METRICS, PARAMS

STATUSES = ("finished", "running", "scheduled", "killed", "failed")
"""Of runs, in the order in which they are listed."""
OUTSIDE_TRUNK = ("seed", "lrs", "epochs")
"""Params that `stagetree.trunk` does not cover."""
_FIGURES = ("val_loss", "val_acc", "test_loss", "test_acc")
_OPTIMIZER_SETTINGS = tuple(
    dict.fromkeys(name for kind in get_args(get_args(AnyOptimizer)[0]) for name in kind.model_fields if name != "name")
)
# Logged as numbers for MLflow's plots; architecture, lrs and epochs say the same.
_DERIVED = re.compile(r"n_layers|hidden_sizes|epochs_total|(log10_)?lr_\d+|epochs_\d+")


def rank(frame: DataFrame, metric: str | None = None) -> DataFrame:
    """Order the runs best first, in the columns of the leaderboard.

    Accuracies rank downwards, losses and seconds upwards. Ties are broken by the other metrics in the order of
    `METRICS`, then by uid, so the same configurations rank alike in every store. Runs that are not finished, or whose
    metric is not finite, have no rank and come last. Params beyond `PARAMS` are shown if they vary.

    Args:
        frame: from `load`.
        metric: one of `METRICS`, or as MLflow spells it, `test/acc`. None: `val_acc` if any finished run has it, else
            `test_acc`. Where only some were validated, the others get no rank rather than another split's figure.

    Raises:
        InputError: there is no such metric, or no finished run has a value of it.
    """
    metric = _choose_metric(frame, metric)
    ranked = (frame["status"] == "finished") & np.isfinite(frame[metric])
    tier = frame["status"].map(STATUSES.index).add(1).mask(ranked, 0)
    ordered = frame.loc[_best_first(frame, metric, tier, "uid", "run_id")]
    described, others = _split_params(frame[_params(frame)])
    reason = ["reason"] if frame["reason"].notna().any() else []
    columns = ["run_name", "run_id", *described, *_figures(metric), "status", *others, *reason]
    return _numbered(ordered[columns], int(ranked.sum()), metric)


def aggregate(frame: DataFrame, over: str, metric: str | None = None) -> DataFrame:
    """Make one line of the runs that are equal in all that decides their numbers but `over`, ranked by the mean.

    Over seeds or schedules that is the recorded trunk, whichever params there are; over another setting, and for runs
    that were recorded without it, all params but that one.

    Each metric has `_mean`, `_std` (ddof=1; empty for one value) and `_n` over the finite values of finished runs. `n`
    counts finished runs, `n_failed` those that failed or were killed; a uid that occurs twice counts once.

    Args:
        frame: from `load`.
        over: a param, such as `seed`.
        metric: as for `rank`.

    Raises:
        InputError: there is no such param, or as `rank`.
    """
    metric = _choose_metric(frame, metric)
    identity = _params(frame)
    if over not in identity:
        raise InputError(f"report.group_by: got {over!r}{choices(over, list(identity))}")
    identity.remove(over)
    finished = frame["status"] == "finished"
    runs = frame.assign(n=finished, n_failed=frame["status"].isin(["failed", "killed"]))
    runs[list(METRICS)] = runs[list(METRICS)].where(np.isfinite(runs[list(METRICS)])).mask(~finished)
    runs = runs.sort_values(["n", "uid"], ascending=[False, True]).drop_duplicates("uid")  # finished ones stay
    runs = runs.set_index(_lines(runs, identity, over))
    line = runs.groupby(level=0)
    first, mean = runs[~runs.index.duplicated()], line[list(METRICS)].mean()
    statistics = {}
    for name in _figures(metric):
        statistics |= {f"{name}_mean": mean[name], f"{name}_std": line[name].std(), f"{name}_n": line[name].count()}
    ranked = mean[metric].notna()
    order = _best_first(mean.assign(uid=first["uid"]), metric, ~ranked, "uid")
    described, others = _split_params(first[identity])
    lines = first[[*described, *others]].assign(**statistics, **line[["n", "n_failed"]].sum())
    return _numbered(lines.loc[order, [*described, *statistics, "n", "n_failed", *others]], int(ranked.sum()), metric)


def _lines(runs: DataFrame, params: Sequence[str], over: str) -> Series:
    """Number the runs by what they are, but for one param."""
    known = runs["trunk"].notna() & (over in OUTSIDE_TRUNK)
    outside = [name for name in OUTSIDE_TRUNK if name != over]
    others = [name for name in params if name not in outside]
    keys = runs[outside].assign(trunk=runs["trunk"].where(known, None))
    keys = keys.join(runs[others].astype(object).mask(known))
    return keys.groupby(list(keys), dropna=False).ngroup()


def _choose_metric(frame: DataFrame, metric: str | None) -> str:
    finished = frame[frame["status"] == "finished"]
    if metric is None:
        return "val_acc" if finished["val_acc"].notna().any() else "test_acc"
    name = metric.replace("/", "_")
    known = [known for known in METRICS if finished.empty or finished[known].notna().any()]
    if name in METRICS and name not in known:
        raise InputError(f"report.metric: no finished run has a value of {name!r}{choices(name, list(known))}")
    if name not in known:
        raise InputError(f"report.metric: got {metric!r}{choices(name, list(known))}")
    return name


def _params(frame: DataFrame) -> list[str]:
    return [name for name in frame if name not in (*ATTRIBUTES, *METRICS) and not _DERIVED.fullmatch(name)]


def _split_params(params: DataFrame) -> tuple[list[str], list[str]]:
    """Name the params of the leaderboard: `PARAMS` with the optimizer settings that vary, and others that vary."""
    varying = [name for name in params if params[name].nunique() > 1]
    settings = [name for name in _OPTIMIZER_SETTINGS if name in varying]
    after_optimizer = PARAMS.index("optimizer") + 1
    described = [*PARAMS[:after_optimizer], *settings, *PARAMS[after_optimizer:]]
    return [name for name in described if name in params], [name for name in varying if name not in described]


def _figures(metric: str) -> list[str]:
    return list(dict.fromkeys([*_FIGURES, metric, "train_seconds"]))


def _best_first(frame: DataFrame, metric: str, tier: Series, *last: str) -> pd.Index:
    """Order the rows' labels: by tier, then the metric, then the ties."""
    names = dict.fromkeys([metric, *(name for name in METRICS if name != "train_seconds")])
    keys = {name: -frame[name] if name.endswith("_acc") else frame[name] for name in names}
    keys = DataFrame({"tier": tier, **keys, **{name: frame[name] for name in last}})
    return keys.sort_values(list(keys)).index


def _numbered(frame: DataFrame, n_ranked: int, metric: str) -> DataFrame:
    frame = frame.reset_index(drop=True)
    ranks = [*range(1, n_ranked + 1), *[None] * (len(frame) - n_ranked)]
    frame.insert(0, "rank", pd.array(ranks, dtype="Int64"))
    frame.attrs["metric"] = metric  # for `show`
    return frame


def useful_columns(frame: DataFrame) -> tuple[list[str], list[str]]:
    """Name the params that vary and the leaderboard's figures that some run has, as MLflow spells them.

    Args:
        frame: from `load`.
    """
    described, others = _split_params(frame[_params(frame)])
    params = [name for name in (*described, *others) if frame[name].nunique() > 1]
    metrics = [name for name in (*_FIGURES, "train_seconds") if frame[name].notna().any()]
    return params, [re.sub(r"_(?=loss|acc)", "/", name) for name in metrics]
