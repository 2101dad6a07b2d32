"""The order of runs, and of means over seeds."""

import itertools
import math
import statistics
import sys

import pandas as pd
import pytest
from stores import NAN, order, run

from stagetree.errors import InputError
from stagetree.report import ranking

# ---------------------------------------------------------------- rank


def test_accuracies_rank_downwards_and_losses_and_seconds_upwards(load):
    frame = load(
        run("a", metrics={"test/acc": 0.9, "test/loss": 0.1, "train_seconds": 5}),
        run("b", metrics={"test/acc": 0.8, "test/loss": 0.3, "train_seconds": 3}),
        run("c", metrics={"test/acc": 0.7, "test/loss": 0.2, "train_seconds": 4}),
    )
    assert order(ranking.rank(frame, "test_acc")) == [(1, "a"), (2, "b"), (3, "c")]
    assert order(ranking.rank(frame, "test/loss")) == [(1, "a"), (2, "c"), (3, "b")]
    assert order(ranking.rank(frame, "train_seconds")) == [(1, "b"), (2, "c"), (3, "a")]


def test_failed_and_diverged_runs_come_last_without_a_rank(load):
    frame = load(
        run("a", status="failed", metrics={"test/loss": 0.0}, tags={"stagetree.reason": "it broke"}),
        run("b", metrics={"test/loss": NAN}),
        run("c", metrics={"test/loss": sys.float_info.max}),  # infinity, as MLflow stores it
        run("d", status="running", metrics={"test/loss": 0.0}),
        run("e", metrics={"test/loss": 0.5}),
        run("f", status="killed"),
        run("g", metrics={"test/loss": -sys.float_info.max}),
    )
    ranked = ranking.rank(frame, "test_loss")
    assert order(ranked) == [(1, "e"), (None, "g"), (None, "c"), (None, "b"), (None, "d"), (None, "f"), (None, "a")]
    assert ranked.columns[-1] == "reason"


def test_by_default_runs_rank_by_validation_accuracy_and_those_without_it_have_no_rank(load):
    frame = load(
        run("a", metrics={"test/acc": 0.9, "val/acc": 0.7}),
        run("b", metrics={"test/acc": 0.8, "val/acc": 0.8}),
        run("c", metrics={"test/acc": 0.99}),
    )
    assert order(ranking.rank(frame)) == [(1, "b"), (2, "a"), (None, "c")]


def test_without_validation_runs_rank_by_test_accuracy(load):
    frame = load(run("a", metrics={"test/acc": 0.8}), run("b", metrics={"test/acc": 0.9}))
    assert order(ranking.rank(frame)) == [(1, "b"), (2, "a")]
    unfinished = run("c", status="running", metrics={"test/acc": 0.5, "val/acc": 0.5})
    assert order(ranking.rank(load(unfinished))) == [(1, "b"), (2, "a"), (None, "c")]


def test_ties_are_broken_by_other_metrics_then_uid_but_never_by_time_or_run_id(database, load):
    equal = {"val/acc": 0.9, "test/acc": 0.8}
    runs = [
        run("d", metrics=equal | {"train_seconds": 1}),
        run("c", metrics=equal | {"train_seconds": 2}),
        run("b", metrics=equal | {"test/acc": 0.7}),
        run("a", metrics=equal | {"test/acc": 0.9}),
    ]
    for one, new_id in zip(runs, "1234", strict=True):
        one["id"] = new_id * 32
    frame = load(*runs)
    for shuffled in itertools.permutations(range(4)):
        ranked = ranking.rank(frame.iloc[list(shuffled)])
        assert order(ranked) == [(1, "a"), (2, "c"), (3, "d"), (4, "b")]


def test_the_leaderboard_has_its_columns_in_order_and_of_other_params_those_that_vary(load):
    ranked = ranking.rank(
        load(
            run("a", weight_decay=0.0, momentum=0.9, dropout=0.5, activation="relu", lr_0=0.1),
            run("b", weight_decay=0.01, momentum=0.9, dropout=0.1, activation="relu", lr_0=0.2),
        ),
    )
    settings = "dataset architecture n_params optimizer weight_decay lrs epochs batch_size seed"
    metrics = "val_loss val_acc test_loss test_acc train_seconds"
    assert " ".join(ranked) == f"rank run_name run_id {settings} {metrics} status dropout"


def test_a_leaderboard_ranked_by_another_metric_shows_it(load):
    frame = load(run("a", metrics={"train/loss": 0.1}))
    assert "train_loss" in ranking.rank(frame, "train_loss")
    assert "train_loss_mean" in ranking.aggregate(frame, "seed", "train_loss")


def test_a_metric_that_no_run_has_is_refused_with_those_there_are(load):
    frame = load(run("a", metrics={"test/acc": 0.9, "test/loss": 0.1}))
    choices = ", expected one of test_acc, test_loss"
    with pytest.raises(InputError, match=rf"^report.metric: got 'test_ac'{choices}; did you mean test_acc\?$"):
        ranking.rank(frame, "test_ac")
    with pytest.raises(InputError, match=f"^report.metric: no finished run has a value of 'train_acc'{choices}$"):
        ranking.rank(frame, "train_acc")
    with pytest.raises(InputError, match=r"^report.metric: got 'test_ac'"):
        ranking.aggregate(frame, "seed", "test_ac")


def test_any_metric_will_do_where_no_run_is_finished_yet(load):
    frame = load(run("a", status="running"))
    assert order(ranking.rank(frame, "val_acc")) == [(None, "a")]


# ---------------------------------------------------------------- what can be compared


def mixed(load):
    """Three runs on one data set, one of them validated, and one on another data set of the same name."""
    return load(
        run("a", dataset_digest="d1", val_size=0, val_seed=0, metrics={"test/acc": 0.5}),
        run("b", dataset_digest="d1", val_size=0, val_seed=0, seed=1, metrics={"test/acc": 0.6}),
        run("c", dataset_digest="d1", val_size=0.2, val_seed=3, metrics={"test/acc": 0.9, "val/acc": 0.8}),
        run("d", dataset_digest="d2", val_size=0, val_seed=0, status="failed"),
        run("e", dataset_digest="d2", val_size=0, val_seed=0, metrics={"test/acc": 0.99}),
    )


NAMES = {
    "digits d1, no validation set": "test_acc",
    "digits d1, val_size 0.2, val_seed 3": "val_acc",
    "digits d2, no validation set": "test_acc",
}


def test_runs_are_ranked_among_those_that_can_be_compared_and_no_finished_one_loses_its_rank(load):
    ranked = ranking.rank(mixed(load))
    assert order(ranked) == [(1, "b"), (2, "a"), (1, "c"), (1, "e"), (None, "d")]
    first, second, third = NAMES
    assert ranked["group"].tolist() == [first, first, second, third, third]
    assert ranked.attrs["groups"] == NAMES


def test_the_test_set_is_one_for_all_divisions_of_the_training_set(load):
    ranked = ranking.rank(mixed(load), "test_acc")
    assert order(ranked) == [(1, "c"), (2, "b"), (3, "a"), (1, "e"), (None, "d")]
    assert list(ranked.attrs["groups"]) == ["digits d1", "digits d2"]


def test_means_are_ranked_among_those_that_can_be_compared(load):
    frame = mixed(load)
    lines = ranking.aggregate(frame, "seed")
    assert lines["rank"].tolist() == [1, 1, 1]
    assert lines["n"].tolist() == [2, 1, 1]
    assert lines["group"].tolist() == list(NAMES)
    over_splits = ranking.aggregate(frame, "val_seed")
    assert "val_seed 3" not in str(over_splits.attrs["groups"])


def test_runs_that_differ_in_no_data_or_division_are_one_group_without_a_column(load):
    ranked = ranking.rank(load(run("a", dataset_digest="d", val_size=0), run("b", dataset_digest="d", val_size=0)))
    assert "group" not in ranked
    assert len(ranked.attrs["groups"]) == 1


def test_a_seed_of_no_division_divides_nothing(load):
    """Older runs do not record it."""
    ranked = ranking.rank(
        load(run("a", dataset_digest="d", val_size=0), run("b", dataset_digest="d", val_size=0, val_seed=0))
    )
    assert "group" not in ranked


# ---------------------------------------------------------------- aggregate


def test_runs_that_differ_in_seed_alone_become_one_line_of_hand_computed_figures(load):
    frame = load(
        run("a", seed=1, momentum=0.9, metrics={"test/acc": 0.90, "test/loss": 0.3}),
        run("b", seed=2, momentum=0.9, metrics={"test/acc": 0.94, "test/loss": NAN}),
        run("c", seed=3, momentum=0.9, metrics={"test/acc": 0.95, "test/loss": 0.1, "val/loss": sys.float_info.max}),
        run("d", seed=4, momentum=0.9, status="failed", metrics={"test/acc": 0.0}),
        run("e", seed=1, momentum=0.0, metrics={"test/acc": 0.99}),
        run("f", seed=1, momentum=0.5, status="running"),
    )
    lines = ranking.aggregate(frame, "seed")
    assert list(lines["rank"][:2]) == [1, 2]
    assert list(lines["momentum"]) == [0.0, 0.9, 0.5]
    assert list(lines["n"]) == [1, 3, 0]
    assert list(lines["n_failed"]) == [0, 1, 0]
    single, three, nothing = (line for _, line in lines.iterrows())
    assert single["test_acc_mean"] == 0.99
    assert pd.isna(single["test_acc_std"])  # of one value there is none
    # (0.90 + 0.94 + 0.95) / 3 = 0.93, deviations -0.03, 0.01, 0.02, so std = sqrt(0.0014 / 2); pandas sums in floats
    assert three["test_acc_mean"] == pytest.approx(0.93, rel=1e-14)
    assert three["test_acc_std"] == pytest.approx(math.sqrt(0.0007), rel=1e-12)
    assert three["test_loss_mean"] == pytest.approx(0.2, rel=1e-14)
    assert three["test_loss_std"] == pytest.approx(statistics.stdev([0.3, 0.1]), rel=1e-12)
    assert [three["test_acc_n"], three["test_loss_n"], nothing["test_acc_n"]] == [3, 2, 0]
    assert (three["val_loss_n"], pd.isna(three["val_loss_mean"])) == (0, True)
    assert pd.isna(nothing["rank"])
    assert not {"seed", "run_id", "status"} & set(lines)


def test_lines_are_ranked_by_the_mean_of_the_metric_asked_for(load):
    frame = load(
        run("a", seed=1, dropout=0.1, metrics={"test/acc": 0.9, "test/loss": 0.3}),
        run("b", seed=2, dropout=0.1, metrics={"test/acc": 0.7, "test/loss": 0.1}),
        run("c", seed=1, dropout=0.2, metrics={"test/acc": 0.85, "test/loss": 0.25}),
    )
    assert list(ranking.aggregate(frame, "seed")["dropout"]) == [0.2, 0.1]
    assert list(ranking.aggregate(frame, "seed", "test_loss")["dropout"]) == [0.1, 0.2]


def test_schedules_can_be_averaged_over_though_numbers_are_derived_from_them(load):
    frame = load(run("a", lrs="[0.1]", lr_0=0.1, log10_lr_0=-1), run("b", lrs="[0.01]", lr_0=0.01, log10_lr_0=-2))
    assert list(ranking.aggregate(frame, "lrs")["n"]) == [2]


def test_params_that_only_some_runs_have_split_lines_and_drop_none(load):
    frame = load(
        run("a", seed=1, optimizer="sgd", momentum=0.9, metrics={"test/acc": 0.9}),
        run("b", seed=1, optimizer="adam", metrics={"test/acc": 0.8}),
        run("c", seed=2, optimizer="adam", metrics={"test/acc": 0.7}),
    )
    lines = ranking.aggregate(frame, "seed")
    assert list(zip(lines["optimizer"], lines["n"], strict=True)) == [("sgd", 1), ("adam", 2)]


def test_a_failed_run_that_was_finished_later_counts_once(load):
    uid = {"stagetree.uid": "same"}
    frame = load(run("a", status="failed", tags=uid), run("b", metrics={"test/acc": 0.9}, tags=uid))
    lines = ranking.aggregate(frame, "seed")
    assert (list(lines["n"]), list(lines["n_failed"])) == ([1], [0])


def test_grouping_by_no_param_is_refused_with_those_there_are(load):
    with pytest.raises(
        InputError, match=r"^report.group_by: got 'sed', expected one of .*, seed; did you mean seed\?$"
    ):
        ranking.aggregate(load(run("a")), "sed")
