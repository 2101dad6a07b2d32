"""How much a ranking says: which lines cannot be told apart from the first, and how much each setting matters."""

import math

import numpy as np
from pandas import DataFrame, Series

ALPHA = 0.05
"""Of the whole family of comparisons: the chance that any line is called worse for nothing but luck."""


def welch(mean: np.ndarray, std: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Compare each line with the first over repetitions: two-sided p-values of Welch's t-test.

    Args:
        mean: of each line, `(lines,)`.
        std: likewise, with ddof=1.
        n: repetitions, at least 2.
    """
    from scipy.special import stdtr  # late: it takes 0.2 s to import

    error = std**2 / n
    both = error[0] + error
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean - mean[0]) / np.sqrt(both)
        freedom = both**2 / (error[0] ** 2 / (n[0] - 1) + error**2 / (n - 1))
        p = 2 * stdtr(freedom, -np.abs(t))
    return np.where(both > 0, p, mean == mean[0])


def two_proportions(accuracy: np.ndarray, n: int) -> np.ndarray:
    """Compare each accuracy with the first on n pictures: two-sided p-values of the pooled two-proportion z-test.

    It takes the pictures of two runs for different ones. As they are the same, it is cautious.
    """
    pooled = (accuracy + accuracy[0]) / 2
    error = np.sqrt(2 * pooled * (1 - pooled) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(accuracy - accuracy[0]) / error
    p = np.array([math.erfc(value / math.sqrt(2)) for value in z])
    return np.where(error > 0, p, accuracy == accuracy[0])


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65)."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def tied_with_first(p: np.ndarray) -> np.ndarray:
    """Tell which lines cannot be told apart from the first; the first itself is tied if another is.

    Args:
        p: a p-value a line against the first, the first's own included.
    """
    tied = np.concatenate([[False], holm(p[1:]) > ALPHA])
    tied[0] = tied.any()
    return tied


def importance(settings: DataFrame, metric: Series) -> DataFrame:
    """How much of the variance of the metric's ranks each setting is behind, the most important first.

    Ranks, so that a metric and its logarithm say the same, and a few runs that diverged do not rule.

    Args:
        settings: a row a run, a column a setting.
        metric: of each run; runs without a finite value are left out.

    Returns:
        A row a setting, shares from 0 to 1. `alone`: what its values explain by themselves, adjusted for their number
        (epsilon squared of the Kruskal-Wallis test, among the runs that have the setting); NaN if no value occurs
        twice. `total`: what it does alone and together with others, from runs that differ in nothing else (Sobol's
        total-effect index on a grid); NaN if there are none.
    """
    known = np.isfinite(metric)
    settings, metric = settings[known], metric[known]
    shares = {name: [_explained(settings[name], metric), _total(settings, name, metric)] for name in settings}
    found = DataFrame.from_dict(shares, orient="index", columns=["alone", "total"], dtype=float)
    return found.sort_values(["total", "alone"], ascending=False, kind="stable")


def _total(settings: DataFrame, name: str, metric: Series) -> float:
    """The mean variance of ranks within groups that differ in one setting, over their whole variance."""
    ranks = metric.rank()
    others = [other for other in settings if other != name]
    groups = ranks.groupby([settings[other] for other in others] or np.zeros(len(ranks)), dropna=False)
    sizes = groups.size()
    several = sizes[sizes > 1]
    if several.empty:
        return np.nan
    within = np.average(groups.var(ddof=0)[several.index], weights=several)
    total = ranks.var(ddof=0)
    return min(1.0, within / total) if total else 0.0


def _explained(setting: Series, metric: Series) -> float:
    known = setting.notna()
    groups = metric[known].rank().groupby(setting[known])
    n, n_values = int(known.sum()), groups.ngroups
    if n_values < 2 or n == n_values:
        return np.nan
    total = metric[known].rank().var(ddof=1)
    within = (groups.var(ddof=1).fillna(0) * (groups.size() - 1)).sum() / (n - n_values)
    return max(0.0, 1 - within / total) if total else 0.0
