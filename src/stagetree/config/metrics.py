"""The table of metrics: names, directions and formats. Standard library only."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One metric, wherever it appears."""

    name: str
    """Its name in the CSV file, in `report.metric` and in the page's filter, such as `test_acc`."""
    recorded: str
    """Its name in MLflow, such as `test/acc`."""
    label: str
    """Its name for people, such as `Test accuracy`."""
    split: Literal["train", "val", "test", ""]
    """The split it is computed on after each epoch; empty if it has no curve."""
    kind: Literal["percent", "loss", "seconds"]
    """The kind of value, which decides its format."""
    higher_is_better: bool = False
    breaks_ties: bool = True
    """Training time does not, since it depends on the machine."""

    def write(self, value: float) -> str:
        """Format a value for people."""
        if self.kind == "percent":
            return f"{100 * value:.2f} %"
        if self.kind == "seconds":
            return f"{value:.1f}"
        return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


_TABLE = (
    Metric("val_acc", "val/acc", "Validation accuracy", "val", "percent", higher_is_better=True),
    Metric("test_acc", "test/acc", "Test accuracy", "test", "percent", higher_is_better=True),
    Metric("val_loss", "val/loss", "Validation loss", "val", "loss"),
    Metric("test_loss", "test/loss", "Test loss", "test", "loss"),
    Metric("train_acc", "train/acc", "Training accuracy", "train", "percent", higher_is_better=True),
    Metric("train_loss", "train/loss", "Training loss", "train", "loss"),
    Metric("train_seconds", "train_seconds", "Training seconds", "", "seconds", breaks_ties=False),
)
METRICS = {metric.name: metric for metric in _TABLE}
"""Metrics by name, in the order in which they break ties and in which a narrow terminal keeps them."""
RECORDED = {metric.recorded: metric for metric in _TABLE}
"""Metrics by their name in MLflow."""
_COLUMNS = {f"{name}_{kind}": (METRICS[name], kind) for name in METRICS for kind in ("mean", "std", "n")}
_COLUMNS |= {name: (METRICS[name], "") for name in METRICS}


def metric_name(value: Any) -> Any:
    """Return `test_acc` for MLflow's name `test/acc`, and anything else unchanged."""
    return RECORDED[value].name if isinstance(value, str) and value in RECORDED else value


def metric_column(name: str) -> tuple[Metric, str] | tuple[None, str]:
    """Return the metric in a column of a leaderboard, and its statistic: `mean`, `std`, `n`, or empty for the value."""
    return _COLUMNS.get(name, (None, ""))


def leaderboard_metrics(*ranked_by: str) -> list[str]:
    """Name the metrics that a leaderboard has as columns, in their order."""
    return list(dict.fromkeys(["val_loss", "val_acc", "test_loss", "test_acc", *ranked_by, "train_seconds"]))
