"""The statistics of the leaderboard page, against SciPy and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from stagetree.report import statistics as stats

RNG = np.random.default_rng(0)
# Test accuracies of 120 seeds of an MLP with 32 hidden units after 5 epochs on scikit-learn's digits (0.1, SGD).
CORRECT = """
319 323 324 321 319 321 318 323 323 315 313 324 321 319 321 322 319 325 326 320 325 327
324 317 322 321 319 319 318 323 322 319 326 317 321 319 322 327 319 316 325 318 319 322
307 318 312 322 322 323 328 323 315 318 316 327 321 324 317 327 326 324 323 320 317 322
321 320 319 322 318 324 318 321 321 322 326 319 320 318 323 322 323 323 320 325 322 327
317 320 322 316 327 322 322 322 321 323 320 323 316 321 322 318 326 328 326 327 319 323
325 316 325 326 323 316 321 320 321 326
"""
ACCURACIES = np.array(CORRECT.split(), float) / 360


def table(lines, n, kind, n_tables):
    """Tables of equal lines, `(tables, lines, n)`."""
    noise = RNG.normal(size=(n_tables, lines, n))
    if kind == "unequal spreads":
        return noise * np.geomspace(1, 20, lines)[:, None]
    if kind == "one noisy line":
        return noise * np.where(np.arange(lines) == 0, 20, 1)[:, None]
    if kind == "real accuracies":
        return RNG.choice(ACCURACIES, size=noise.shape)
    return noise


def marks(samples):
    """The whole procedure: the best line is chosen, and the others are compared with it."""
    mean = samples.mean(-1)
    order = np.argsort(-mean, kind="stable")
    return np.array(stats.marks(mean[order], samples.std(-1, ddof=1)[order], np.full(len(samples), samples.shape[1])))


@pytest.mark.parametrize("kind", ["equal spreads", "unequal spreads", "one noisy line", "real accuracies"])
@pytest.mark.parametrize(("lines", "n"), [(2, 3), (4, 3), (16, 2), (16, 10), (64, 5)])
def test_of_equal_lines_any_is_called_worse_in_at_most_5_per_cent_of_tables(lines, n, kind):
    """For 300 tables, three standard errors above 5 %; larger simulations gave at most 4 %."""
    wrong = [(marks(samples)[1:] == "").any() for samples in table(lines, n, kind, 300)]
    assert np.mean(wrong) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.parametrize(("lines", "n", "behind"), [(2, 5, 5), (16, 5, 5), (64, 10, 4), (4, 3, 10)])
def test_lines_that_are_worse_are_told_apart(lines, n, behind):
    """A half lies `behind` the other by so many standard deviations between seeds."""
    found = []
    for samples in table(lines, n, "equal spreads", 50):
        samples[lines // 2 :] -= behind
        found.append((marks(samples)[lines // 2 :] == "").mean())
    assert np.mean(found) > 0.9


def test_few_repetitions_are_called_so_and_no_tie():
    far_apart, spread = np.array([0.97, 0.22]), np.array([0.01, 0.2])
    assert stats.marks(far_apart, spread, np.array([2, 2])) == ["", "?"]
    assert stats.marks(far_apart, np.array([0.01, 0.3]), np.array([3, 3])) == ["", "?"]
    assert stats.marks(far_apart, np.array([0.01, 0.01]), np.array([3, 3])) == ["", ""]
    assert stats.marks(np.array([0.97, 0.96]), np.array([0.01, 0.01]), np.array([2, 2])) == ["", "?"]
    assert stats.marks(np.array([0.97, 0.96]), np.array([0.01, 0.01]), np.array([3, 3])) == ["≈", "≈"]


def test_a_line_of_one_run_is_not_compared():
    nan = np.nan
    assert stats.marks(np.array([0.9, 0.8, 0.1]), np.array([nan, 0.01, 0.01]), np.array([1, 5, 5])) == ["", "?", "?"]
    assert stats.marks(np.array([0.9, 0.8, 0.1]), np.array([0.01, nan, 0.01]), np.array([5, 1, 5])) == ["", "?", ""]


def test_without_any_spread_nothing_is_said_of_a_difference():
    assert stats.marks(np.array([0.9, 0.9, 0.8]), np.zeros(3), np.full(3, 3)) == ["≈", "≈", "?"]


def test_repetitions_that_agree_by_chance_make_no_line_certain():
    assert stats.marks(np.array([0.9, 0.88, 0.87]), np.array([0, 0, 0.02]), np.full(3, 3)) == ["≈", "≈", "≈"]


def test_it_mostly_says_what_scipys_games_howell_says():
    """That test asks of all pairs, with one spread where each has its own, and adjusts for unequal ones otherwise."""
    agree, worse = [], []
    for samples in table(6, 5, "equal spreads", 5) + 2 * np.arange(6)[::-1, None]:
        samples = samples[np.argsort(-samples.mean(-1))]
        p = scipy_stats.tukey_hsd(*samples, equal_var=False).pvalue[0, 1:]
        worse += (marks(samples)[1:] == "").tolist()
        agree += ((p < stats.ALPHA) == worse[-5:]).tolist()
    assert np.mean(agree) >= 0.9
    assert 0.2 < np.mean(worse) < 0.9


def test_losses_are_compared_as_accuracies_are():
    mean, std, n = np.array([0.9, 0.85, 0.5]), np.array([0.02, 0.05, 0.03]), np.array([5, 4, 3])
    assert stats.marks(mean, std, n) == stats.marks(-mean, std, n)


def test_importance_follows_from_scipys_kruskal_wallis():
    lr = np.repeat([0.1, 0.01, 0.001], 10)
    metric = pd.Series(RNG.normal(size=30) - 2 * np.log10(lr))
    h = scipy_stats.kruskal(*(metric[lr == value] for value in np.unique(lr))).statistic
    found = stats.importance(pd.DataFrame({"lr": lr}), metric)["lr"]
    assert found == pytest.approx((h - 3 + 1) / (30 - 3))


def test_on_pure_noise_any_setting_is_shown_in_at_most_5_per_cent_of_tables():
    settings = pd.DataFrame({f"of {k}": RNG.integers(0, k, 60) for k in range(2, 10)})
    settings["seed"] = np.arange(60) % 3
    wrong = [stats.importance(settings, pd.Series(RNG.normal(size=60))).notna().any() for _ in range(100)]
    assert np.mean(wrong) <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5


def test_importance_ranks_settings_and_says_nothing_of_chance_or_of_what_occurs_once():
    n = 80
    runs = np.arange(n)
    settings = pd.DataFrame({"noise": RNG.integers(0, 4, n), "weak": runs // 4 % 2, "lr": runs % 4})
    settings = settings.assign(**{"each its own": runs, "same": 1})
    metric = settings["lr"] + 1.5 * settings["weak"] + RNG.normal(scale=0.1, size=n)
    metric[0] = np.inf  # a run that diverged is left out
    found = stats.importance(settings, metric)
    assert list(found.index[:2]) == ["lr", "weak"]
    assert found["lr"] > found["weak"] > 0.1
    assert found[["noise", "each its own", "same"]].isna().all()


def test_a_setting_counts_among_the_runs_that_have_it():
    have = np.arange(60) % 2 == 0
    settings = pd.DataFrame({"momentum": np.where(have, np.arange(60) // 2 % 3, np.nan)})
    metric = pd.Series(np.where(have, settings["momentum"], 100 * RNG.normal(size=60))) + RNG.normal(size=60) * 0.1
    whole, part = stats.importance(settings, metric), stats.importance(settings[have], metric[have])
    assert whole["momentum"] == pytest.approx(part["momentum"], abs=0.02)  # ranks are of all runs


@pytest.mark.parametrize("n", [0, 1, 10])
def test_importance_of_nothing_is_nothing(n):
    found = stats.importance(pd.DataFrame({"lr": np.arange(n) % 2}), pd.Series(np.ones(n)))
    assert found.isna().all()


def test_importance_does_not_depend_on_the_metrics_scale():
    settings = pd.DataFrame({"lr": np.arange(30) % 3})
    metric = settings["lr"] + pd.Series(RNG.uniform(1, 2, 30))
    found = stats.importance(settings, metric)
    assert found.notna().all()
    assert found.equals(stats.importance(settings, np.exp(metric)))
