"""The table of metrics says the same as the schema, the store and the leaderboard."""

from typing import get_args

import pytest

from stagetree.config import metrics, schema
from stagetree.config.metrics import METRICS


def test_a_leaderboard_can_be_ranked_by_every_metric_of_the_table_and_by_no_other():
    assert get_args(schema.MetricName) == tuple(METRICS)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_metric_is_found_by_each_of_its_names(metric):
    assert metrics.metric_name(metric.recorded) == metrics.metric_name(metric.name) == metric.name
    assert metrics.metric_column(metric.name) == (metric, "")
    for statistic in ("mean", "std", "n"):
        assert metrics.metric_column(f"{metric.name}_{statistic}") == (metric, statistic)
    assert metric.recorded == (f"{metric.split}/{metric.name.split('_')[1]}" if metric.split else metric.name)


@pytest.mark.parametrize("name", ["lr", "n", "n_failed", "my_acc", "test_acc_median", None, ["test/acc"]])
def test_what_is_no_metric_stays_what_it_is(name):
    assert metrics.metric_name(name) is name
    if isinstance(name, str):
        assert metrics.metric_column(name) == (None, "")


def test_values_are_written_as_people_read_them():
    assert METRICS["test_acc"].write(0.97216) == "97.22 %"
    assert METRICS["val_loss"].write(9999.99994) == "9999.9999"
    assert METRICS["val_loss"].write(10000.0) == "1.000e+04"
    assert METRICS["train_seconds"].write(12.34) == "12.3"


def test_a_metric_that_ranks_is_a_column_of_the_leaderboard_once():
    always = ["val_loss", "val_acc", "test_loss", "test_acc", "train_seconds"]
    assert metrics.leaderboard_metrics("test_acc") == always
    assert metrics.leaderboard_metrics("train_acc", "train_acc") == [*always[:4], "train_acc", "train_seconds"]
