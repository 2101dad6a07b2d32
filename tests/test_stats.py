"""The statistics of the leaderboard page, against SciPy and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from stagetree import stats

RNG = np.random.default_rng(0)


def test_welch_is_scipys():
    samples = [RNG.normal(mean, spread, n) for mean, spread, n in [(0, 1, 3), (0.5, 2, 5), (3, 0.1, 2), (0, 1, 30)]]
    mean, std = np.array([s.mean() for s in samples]), np.array([s.std(ddof=1) for s in samples])
    found = stats.welch(mean, std, np.array([len(s) for s in samples]))
    expected = [scipy_stats.ttest_ind(samples[0], s, equal_var=False).pvalue for s in samples]
    assert found == pytest.approx(expected, rel=1e-10)


def test_welch_without_spread_tells_only_equal_means_alike():
    zero, two = np.zeros(3), np.full(3, 2.0)
    assert stats.welch(np.array([0.9, 0.9, 0.8]), zero, two).tolist() == [1.0, 1.0, 0.0]


def test_two_proportions_is_scipys_chi_square_of_the_four_counts():
    n, right = 500, np.array([450, 449, 430, 400, 0])
    found = stats.two_proportions(right / n, n)
    tables = [[[right[0], n - right[0]], [k, n - k]] for k in right]
    expected = [scipy_stats.chi2_contingency(table, correction=False).pvalue for table in tables]
    assert found == pytest.approx(expected, rel=1e-9)


def test_proportions_without_error_differ_only_if_they_differ():
    assert stats.two_proportions(np.array([1.0, 1.0]), 50).tolist() == [1.0, 1.0]
    assert stats.two_proportions(np.array([0.0, 1.0]), 50)[1] < 1e-20


def test_holm_by_hand():
    assert stats.holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm(np.array([0.6, 0.5])) == pytest.approx([1.0, 1.0])


def test_the_first_is_tied_only_with_company():
    assert stats.tied_with_first(np.array([1.0, 0.5, 0.001])).tolist() == [True, True, False]
    assert stats.tied_with_first(np.array([1.0, 0.001])).tolist() == [False, False]
    assert stats.tied_with_first(np.array([1.0])).tolist() == [False]


def test_luck_is_called_a_difference_no_more_often_than_promised():
    """Ten equal lines of five seeds: in at most 5 % of sweeps is any of them called worse than the best-looking."""
    errors = 0
    for _ in range(2000):
        samples = RNG.normal(size=(10, 5))
        p = stats.welch(samples.mean(1), samples.std(1, ddof=1), np.full(10, 5))
        errors += not stats.tied_with_first(p).all()
    assert errors / 2000 < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_importance_follows_from_scipys_kruskal_wallis():
    lr = np.repeat([0.1, 0.01, 0.001], 10)
    metric = pd.Series(RNG.normal(size=30) - 2 * np.log10(lr))
    h = scipy_stats.kruskal(*(metric[lr == value] for value in np.unique(lr))).statistic
    found = stats.importance(pd.DataFrame({"lr": lr}), metric).loc["lr", "alone"]
    assert found == pytest.approx((h - 3 + 1) / (30 - 3))


def test_total_importance_of_a_grid_by_hand():
    """Ranks 1 to 4 of two settings: `b` matters only where `a` is 1."""
    settings = pd.DataFrame({"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})
    found = stats.importance(settings, pd.Series([0.1, 0.1, 0.5, 0.9]))
    total_variance = np.var([1.5, 1.5, 3, 4])
    assert found.loc["a", "total"] == pytest.approx(np.mean([np.var([1.5, 3]), np.var([1.5, 4])]) / total_variance)
    assert found.loc["b", "total"] == pytest.approx(np.mean([0, np.var([3, 4])]) / total_variance)
    assert list(found.index) == ["a", "b"]


def test_what_two_settings_do_only_together_is_in_the_total():
    settings = pd.DataFrame({"a": [0, 0, 1, 1] * 5, "b": [0, 1, 0, 1] * 5, "seed": np.repeat(range(5), 4)})
    found = stats.importance(settings, (settings["a"] ^ settings["b"]) + 0.001 * settings["seed"])
    assert (found.loc[["a", "b"], "alone"] < 0.01).all()
    assert (found.loc[["a", "b"], "total"] > 0.7).all()
    assert found.loc["seed", "total"] < 0.3


def test_importance_ranks_settings_and_says_nothing_of_what_occurs_once():
    n = 40
    settings = pd.DataFrame({
        "noise": RNG.integers(0, 4, n), "lr": np.arange(n) % 4, "each its own": np.arange(n),
        "of some": [1.0, 2.0, None, None] * (n // 4),
    })  # fmt: skip
    metric = settings["lr"] + RNG.normal(scale=0.1, size=n)
    metric[0] = np.inf  # a run that diverged is left out
    found = stats.importance(settings, metric)
    assert found.loc["lr", "alone"] > 0.8
    assert found.loc["noise", "alone"] < 0.2
    assert np.isnan(found.loc["each its own", "alone"])
    assert np.isnan(found.loc["lr", "total"])  # no two runs differ in it alone
    have = settings["of some"].notna() & np.isfinite(metric)
    assert (
        found.loc["of some", "alone"]
        == stats.importance(settings[have][["of some"]], metric[have]).loc["of some", "alone"]
    )


def test_importance_does_not_depend_on_the_metrics_scale():
    settings = pd.DataFrame({"lr": np.arange(30) % 3})
    metric = pd.Series(RNG.uniform(1, 2, 30))
    assert stats.importance(settings, metric).equals(stats.importance(settings, np.exp(metric)))
