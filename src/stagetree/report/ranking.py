"""DataFrame -> leaderboard: runs in the order of a metric, one by one or as means over seeds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from stagetree.config.schema import AnyOptimizer
from stagetree.errors import InputError, choices
from stagetree.tracking.store import ATTRIBUTES, METRICS, PARAMS

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

    Runs are ranked within what can be compared: the same data and, but for metrics of the test set, the same division
    into training and validation. If there are several such groups, that with most finished runs comes first, the column
    `group` has their names, and `attrs["groups"]` the metric of each.

    Args:
        frame: from `load`.
        metric: one of `METRICS`, or as MLflow spells it, `test/acc`. None: of each group `val_acc` if any finished run
            has it, else `test_acc`.

    Raises:
        InputError: there is no such metric, or no finished run has a value of it.
    """
    groups = _groups(frame, metric)
    order, ranks = [], []
    for rows, by in groups.parts():
        part = frame.loc[rows]
        ranked = (part["status"] == "finished") & np.isfinite(part[by])
        tier = part["status"].map(STATUSES.index).add(1).mask(ranked, 0)
        order += list(_best_first(part, by, tier, "uid", "run_id"))
        ranks += _ranks(ranked)
    described, others = _split_params(frame[_params(frame)])
    reason = ["reason"] if frame["reason"].notna().any() else []
    columns = ["run_name", "run_id", *described, *_figures(*groups.metrics.values()), "status", *others, *reason]
    return _numbered(frame.loc[order, columns], ranks, groups)


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
    identity = _params(frame)
    if over not in identity:
        raise InputError(f"report.group_by: got {over!r}{choices(over, list(identity))}")
    identity.remove(over)
    groups = _groups(frame, metric, over)
    finished = frame["status"] == "finished"
    runs = frame.assign(n=finished, n_failed=frame["status"].isin(["failed", "killed"]))
    runs[list(METRICS)] = runs[list(METRICS)].where(np.isfinite(runs[list(METRICS)])).mask(~finished)
    runs = runs.sort_values(["n", "uid"], ascending=[False, True]).drop_duplicates("uid")  # finished ones stay
    numbers = _lines(runs, identity, over)
    runs = runs.set_index(numbers)
    line = runs.groupby(level=0)
    is_first = ~numbers.duplicated().to_numpy()
    first, first_rows, mean = runs[is_first], numbers.index[is_first], line[list(METRICS)].mean()
    statistics = {}
    for name in _figures(*groups.metrics.values()):
        statistics |= {f"{name}_mean": mean[name], f"{name}_std": line[name].std(), f"{name}_n": line[name].count()}
    order, ranks = [], []
    groups = Groups(groups.names.loc[first_rows].set_axis(first.index), groups.metrics)
    for rows, by in groups.parts():
        part = mean.loc[rows]
        ranked = part[by].notna()
        order += list(_best_first(part.assign(uid=first["uid"]), by, ~ranked, "uid"))
        ranks += _ranks(ranked)
    described, others = _split_params(first[identity])
    lines = first[[*described, *others]].assign(**statistics, **line[["n", "n_failed"]].sum())
    return _numbered(lines.loc[order, [*described, *statistics, "n", "n_failed", *others]], ranks, groups)


@dataclass(frozen=True)
class Groups:
    """Which runs can be compared."""

    names: Series
    """Of each run's group; empty if there is one group only."""
    metrics: Mapping[str, str]
    """That each group is ranked by, in the order of the groups."""

    def parts(self) -> Iterator[tuple[pd.Index, str]]:
        """Yield the rows of each group, and its metric."""
        for name, metric in self.metrics.items():
            yield self.names.index[self.names == name], metric


def _groups(frame: DataFrame, metric: str | None, over: str = "") -> Groups:
    """Divide the runs into those that can be compared, by all that decides it but `over`."""
    chosen = metric and _choose_metric(frame, metric)
    split = [] if chosen in ("test_acc", "test_loss") else ["val_size", "val_seed"]
    parts = {name: frame[name].astype(object) for name in split if name in frame and name != over}
    if len(parts) == 2:
        parts["val_seed"] = parts["val_seed"].mask(frame["val_size"] == 0, 0)
    data = frame["dataset"] if "dataset_digest" not in frame else frame["dataset_digest"].fillna(frame["dataset"])
    number = frame.assign(data=data, **parts).groupby(["data", *parts], dropna=False).ngroup()
    if number.nunique() < 2:
        return Groups(Series("", index=frame.index), {"": _choose_metric(frame, metric)})
    first = frame[~number.duplicated()]
    words = [first["dataset"].fillna("?")] if data.nunique() > 1 else []
    if parts and any(first[name].nunique(dropna=False) > 1 for name in parts):
        words.append(first.apply(_said_of_split, axis=1, names=list(parts)))
    labels = dict(zip(number[first.index], map(", ".join, zip(*words, strict=True)), strict=True))
    names = number.map(labels)
    n_finished = (frame["status"] == "finished").groupby(names).sum()
    ordered = sorted(labels.values(), key=lambda name: (-n_finished[name], name))
    return Groups(names, {name: chosen or _choose_metric(frame[names == name], None) for name in ordered})


def _said_of_split(run: Series, names: Sequence[str]) -> str:
    if "val_size" in names and run["val_size"] == 0:
        return "no validation set"
    values = {name: "not recorded" if pd.isna(run[name]) else str(run[name]).removesuffix(".0") for name in names}
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _lines(runs: DataFrame, params: Sequence[str], over: str) -> Series:
    """Number the runs by what they are, but for one param."""
    known = runs["trunk"].notna() & (over in OUTSIDE_TRUNK)
    outside = [name for name in OUTSIDE_TRUNK if name != over]
    outside += ["stages"] * (over not in ("lrs", "epochs"))  # of long schedules, whose lists are cut
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


def _figures(*metrics: str) -> list[str]:
    return list(dict.fromkeys([*_FIGURES, *metrics, "train_seconds"]))


def _best_first(frame: DataFrame, metric: str, tier: Series, *last: str) -> pd.Index:
    """Order the rows' labels: by tier, then the metric, then the ties."""
    names = dict.fromkeys([metric, *(name for name in METRICS if name != "train_seconds")])
    keys = {name: -frame[name] if name.endswith("_acc") else frame[name] for name in names}
    keys = DataFrame({"tier": tier, **keys, **{name: frame[name] for name in last}})
    return keys.sort_values(list(keys)).index


def _ranks(ranked: Series) -> list[int | None]:
    n_ranked = int(ranked.sum())
    return [*range(1, n_ranked + 1), *[None] * (len(ranked) - n_ranked)]


def _numbered(frame: DataFrame, ranks: Sequence[int | None], groups: Groups) -> DataFrame:
    names = groups.names[frame.index].tolist()
    frame = frame.reset_index(drop=True)
    frame.insert(0, "rank", pd.array(ranks, dtype="Int64"))
    if len(groups.metrics) > 1:
        frame.insert(1, "group", names)
    frame.attrs |= {"metric": next(iter(groups.metrics.values())), "groups": dict(groups.metrics)}  # for `show`
    return frame


def in_first_group(frame: DataFrame) -> Series:
    """Tell which lines of a leaderboard can be compared with the first."""
    return frame["group"] == frame["group"].iloc[0] if "group" in frame else Series(True, index=frame.index)


def useful_columns(frame: DataFrame) -> tuple[list[str], list[str]]:
    """Name the params that vary and the leaderboard's figures that some run has, as MLflow spells them.

    Args:
        frame: from `load`.
    """
    described, others = _split_params(frame[_params(frame)])
    params = [name for name in (*described, *others) if frame[name].nunique() > 1]
    metrics = [name for name in (*_FIGURES, "train_seconds") if frame[name].notna().any()]
    return params, [re.sub(r"_(?=loss|acc)", "/", name) for name in metrics]
