"""Tell which lines of a ranking differ beyond chance, and which settings matter."""

from functools import cache

import numpy as np
from pandas import DataFrame, Series

ALPHA = 0.05
"""Error rate of a whole table: the chance that luck alone makes any line worse, or any setting shown."""
TIED, TOO_FEW = "≈", "?"
_LEVEL = 0.03  # error rate of `_critical`: below ALPHA, since unequal and discrete spreads raise it
_DRAWS = 1_000_000  # lines that `_critical` draws
_PERMUTATIONS = 499


def marks(mean: np.ndarray, std: np.ndarray, n: np.ndarray) -> list[str]:
    """Mark the lines that cannot be told apart from the first, which was chosen by the same repetitions.

    A line is worse if it lies further behind the first, in standard errors, than the last of as many equal lines lies
    behind their best in 97 % of simulated tables. Spreads may differ; a spread below the lower quartile of all counts
    as that quartile, since few repetitions may agree by chance.

    Args:
        mean: of each line, `(lines,)`, the best first.
        std: likewise, with ddof=1; ignored where n is 1.
        n: repetitions, at least 1.

    Returns:
        A mark for each line. `TIED`: it cannot be told apart. `TOO_FEW`: it or the first has less than three
        repetitions, or it lies more than half the critical distance behind. Empty: it is worse. The first line is
        tied if another is.
    """
    several = n >= 2
    if not several[0] or several.sum() < 2:
        return ["", *[TOO_FEW] * (len(n) - 1)]
    variance = np.where(several, std, 0.0)[several] ** 2
    spread = variance[variance > 0]
    floor = max(np.quantile(variance, 0.25), spread.min()) if len(spread) else 0.0
    error = np.full(len(n), np.inf)
    error[several] = np.maximum(variance, floor) / n[several]
    distance = _distance(np.abs(mean - mean[0]), error[0] + error)
    critical = _critical(tuple(n[several].tolist()))
    worse = (distance > critical) & (floor > 0)
    unknown = ~worse & ((np.minimum(n, n[0]) < 3) | (distance > critical / 2))
    found = np.where(worse, "", np.where(unknown, TOO_FEW, TIED))
    found[0] = TIED if (found[1:] == TIED).any() else ""
    return found.tolist()


@cache
def _critical(repetitions: tuple[float, ...]) -> float:
    """Simulate how far the last of equal lines lies behind the best, in standard errors of their difference.

    The larger of two cases counts: all lines spread alike, or only the one with the fewest repetitions spreads.
    """
    rng, n = np.random.default_rng(0), np.array(repetitions)
    shape = (max(2000, _DRAWS // len(n)), len(n))
    mean = rng.normal(size=shape) / np.sqrt(n)
    error = rng.chisquare(n - 1, size=shape) / (n - 1) / n
    best, rows, fewest = mean.argmax(1), np.arange(len(mean)), n.argmin()
    alike = _distance(mean.max(1, keepdims=True) - mean, error[rows, best, None] + error).max(1)
    alone = _distance(np.abs(mean[:, fewest]), error[:, fewest])
    return max(np.quantile(alike, 1 - _LEVEL), np.quantile(alone, 1 - _LEVEL))


def _distance(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference > 0, difference / np.sqrt(variance), 0.0)


def importance(settings: DataFrame, metric: Series) -> Series:
    """Compute the share of the metric's variance in rank that each setting explains by itself, the largest first.

    With ranks, a metric and its logarithm give the same result, and a few diverged runs do not dominate. The share is
    adjusted for the number of values (epsilon squared of the Kruskal-Wallis test, among the runs that have the
    setting). Interactions between settings are left out.

    Args:
        settings: a row for each run, a column for each setting.
        metric: of each run; runs without a finite value are left out.

    Returns:
        A share from 0 to 1 for each setting; NaN if no value occurs twice, or if some setting reaches as much in more
        than 5 % of random permutations of the metric (Westfall and Young's maximum, of standardised shares).
    """
    known = np.isfinite(metric)
    settings, ranks = settings[known], metric[known].rank().to_numpy()[None]
    others = np.random.default_rng(0).permuted(ranks.repeat(_PERMUTATIONS, axis=0), axis=1)
    shuffled = np.concatenate([ranks, others])
    shares = {name: _explained(settings[name], shuffled) for name in settings}
    shares = {name: share for name, share in shares.items() if share is not None and share.std() > 0}
    heights = {name: (share - share.mean()) / share.std() for name, share in shares.items()}
    highest = np.max([*heights.values()], axis=0) if heights else None
    shown = {name: shares[name][0] for name in shares if np.mean(highest >= heights[name][0]) <= ALPHA}
    return Series(shown, index=list(settings), dtype=float).sort_values(ascending=False, kind="stable")


def _explained(setting: Series, ranks: np.ndarray) -> np.ndarray | None:
    """Compute a share for each row of ranks, `(permutations, runs)`; None if no value of the setting occurs twice."""
    codes, values = setting.factorize()
    known = codes >= 0
    n, n_values = int(known.sum()), len(values)
    if n_values < 2 or n == n_values:
        return None
    ranks, member = ranks[:, known], np.eye(n_values)[codes[known]]
    ranks = ranks - ranks.mean(1, keepdims=True)
    total = (ranks**2).sum(1)
    within = total - ((ranks @ member) ** 2 / member.sum(0)).sum(1)
    return np.where(total > 0, 1 - within / (n - n_values) / np.maximum(total, 1e-9) * (n - 1), 0.0)
