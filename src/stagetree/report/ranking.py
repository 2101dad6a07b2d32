"""Rank runs by a metric, one by one or as means over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from stagetree.config.metrics import METRICS, leaderboard_metrics, metric_name
from stagetree.config.params import COLUMNS, OPTIMIZER_SETTINGS, param
from stagetree.errors import InputError, choices
from stagetree.tracking.store import param_columns

STATUSES = ("finished", "running", "scheduled", "killed", "failed")
"""The statuses of runs, in the order in which they are listed."""


def rank(frame: DataFrame, metric: str | None = None) -> DataFrame:
    """Order the runs best first, in the columns of the leaderboard.

    Accuracies rank downwards, losses and seconds upwards. Ties are broken by the other metrics in the order of
    `METRICS`, then by uid, so the same configurations rank alike in every store. Runs that are not finished, or whose
    metric is not finite, have no rank and come last. Params beyond `COLUMNS` are shown if they vary.

    Runs are ranked among those that can be compared: they have the same data and, except for metrics of the test set,
    the same division into training and validation. If there are several such groups, the one with most finished runs
    comes first, the column `group` has their names, and `attrs["groups"]` the metric of each.

    Args:
        frame: from `load`.
        metric: one of `METRICS`, or as MLflow spells it, `test/acc`. None: in each group `val_acc` if any finished run
            has it, else `test_acc`.

    Raises:
        InputError: there is no such metric, or no finished run has a value of it.
    """
    groups = _groups(frame, metric)
    order = _in_order(frame, groups, frame["status"].map(STATUSES.index))
    described, others = _split_params(frame[_params(frame)])
    reason = ["reason"] if frame["reason"].notna().any() else []
    metrics = leaderboard_metrics(*groups.metrics.values())
    columns = ["run_name", "run_id", *described, *metrics, "status", *others, *reason]
    return _numbered(frame.loc[order.index, columns], order, groups)


def aggregate(frame: DataFrame, over: str, metric: str | None = None) -> DataFrame:
    """Make one line of all runs that differ in nothing but `over`, and rank the lines by the mean.

    For seeds and schedules, runs with the same recorded trunk go together, whichever params there are. For any other
    setting, and for runs recorded without a trunk, all params but that one must be equal.

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
    values = runs[list(METRICS)]
    runs[list(METRICS)] = values.where(np.isfinite(values)).mask(~finished)
    runs = runs.sort_values(["n", "uid"], ascending=[False, True]).drop_duplicates("uid")  # finished ones stay
    numbers = _lines(runs, identity, over)
    line = runs.set_index(numbers).groupby(level=0)
    first = runs[~numbers.duplicated()]
    groups = Groups(groups.names[first.index].set_axis(numbers[first.index]), groups.metrics)
    first = first.set_index(numbers[first.index])
    mean = line[list(METRICS)].mean()
    statistics = {}
    for name in leaderboard_metrics(*groups.metrics.values()):
        statistics |= {f"{name}_mean": mean[name], f"{name}_std": line[name].std(), f"{name}_n": line[name].count()}
    order = _in_order(first.assign(**{name: mean[name] for name in METRICS}), groups, Series(0, index=first.index))
    described, others = _split_params(first[identity])
    lines = first[[*described, *others]].assign(**statistics, n=line["n"].sum(), n_failed=line["n_failed"].sum())
    columns = [*described, *statistics, "n", "n_failed", *others]
    return _numbered(lines.loc[order.index, columns], order, groups)


@dataclass(frozen=True)
class Groups:
    """Groups of runs that can be compared."""

    names: Series
    """The name of each run's group; empty if there is only one."""
    metrics: Mapping[str, str]
    """The metric that ranks each group, in the order of the groups."""

    def parts(self) -> Iterator[tuple[pd.Index, str]]:
        """Yield the rows of each group, and its metric."""
        for name, metric in self.metrics.items():
            yield self.names.index[self.names == name], metric


def _groups(frame: DataFrame, metric: str | None, over: str = "") -> Groups:
    """Divide the runs into groups that can be compared, leaving the setting `over` aside."""
    chosen = metric and _choose_metric(frame, metric)
    split = [] if chosen and METRICS[chosen].split == "test" else ["val_size", "val_seed"]
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
    """Number the runs so that those which differ only in one param get the same number."""
    known = runs["trunk"].notna() & (not param(over).in_trunk)
    outside = [name for name in params if not param(name).in_trunk]
    others = [name for name in params if param(name).in_trunk]
    if not param(over).of_schedule:
        outside.append("stages")
    keys = runs[outside].assign(trunk=runs["trunk"].where(known, None))
    keys = keys.join(runs[others].astype(object).mask(known))
    return keys.groupby(list(keys), dropna=False).ngroup()


def _choose_metric(frame: DataFrame, metric: str | None) -> str:
    finished = frame[frame["status"] == "finished"]
    if metric is None:
        return "val_acc" if finished["val_acc"].notna().any() else "test_acc"
    name = metric_name(metric)
    known = [known for known in METRICS if finished.empty or finished[known].notna().any()]
    if name in METRICS and name not in known:
        raise InputError(f"report.metric: no finished run has a value of {name!r}{choices(name, known)}")
    if name not in known:
        raise InputError(f"report.metric: got {metric!r}{choices(name, known)}")
    return name


def _params(frame: DataFrame) -> list[str]:
    return [name for name in param_columns(frame) if not param(name).derived]


def _split_params(params: DataFrame) -> tuple[list[str], list[str]]:
    """Name the params of the leaderboard: `COLUMNS` with the optimizer settings that vary, and others that vary."""
    varying = [name for name in map(str, params) if params[name].nunique() > 1]
    settings = [name for name in OPTIMIZER_SETTINGS if name in varying]
    after_optimizer = COLUMNS.index("optimizer") + 1
    described = [*COLUMNS[:after_optimizer], *settings, *COLUMNS[after_optimizer:]]
    return [name for name in described if name in params], [name for name in varying if name not in described]


def _in_order(frame: DataFrame, groups: Groups, tiers: Series) -> Series:
    """Order the rows group by group: by tier, then the metric, the ties and the ids.

    Args:
        frame: with the metrics, `uid` and `run_id`.
        groups: of its rows.
        tiers: of each row, from 0; a row of tier 0 has a rank if its metric is finite, and else follows those rows.

    Returns:
        The rank of each row or none, Int64, by the rows' labels in their order.
    """
    parts = []
    for rows, metric in groups.parts():
        part, ranked = frame.loc[rows], (tiers[rows] == 0) & np.isfinite(frame.loc[rows, metric])
        names = dict.fromkeys([metric, *(name for name, one in METRICS.items() if one.breaks_ties)])
        values = {name: -part[name] if METRICS[name].higher_is_better else part[name] for name in names}
        keys = DataFrame({"tier": tiers[rows].add(1).mask(ranked, 0), **values, **part[["uid", "run_id"]]})
        order, n_ranked = keys.sort_values(keys.columns.astype(str).tolist()).index, int(ranked.sum())
        parts.append(Series([*range(1, n_ranked + 1), *[None] * (len(order) - n_ranked)], order, dtype="Int64"))
    return pd.concat(parts)


def _numbered(frame: DataFrame, ranks: Series, groups: Groups) -> DataFrame:
    names = groups.names[frame.index].tolist()
    frame = frame.reset_index(drop=True)
    frame.insert(0, "rank", ranks.array)
    if len(groups.metrics) > 1:
        frame.insert(1, "group", names)
    frame.attrs |= {"metric": next(iter(groups.metrics.values())), "groups": dict(groups.metrics)}  # for `show`
    return frame


def in_first_group(frame: DataFrame) -> Series:
    """Tell which lines of a leaderboard can be compared with the first."""
    return frame["group"] == frame["group"].iloc[0] if "group" in frame else Series(True, index=frame.index)


def useful_columns(frame: DataFrame) -> tuple[list[str], list[str]]:
    """Name the params that vary, and the leaderboard's metrics that any run has, as MLflow spells them.

    Args:
        frame: from `load`.
    """
    described, others = _split_params(frame[_params(frame)])
    params = [name for name in (*described, *others) if frame[name].nunique() > 1]
    return params, [METRICS[name].recorded for name in leaderboard_metrics() if frame[name].notna().any()]
