"""The table of metrics: names, directions and formats. Standard library only."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One metric, wherever it appears."""

    name: str
    """In the CSV file, in `report.metric` and in the page's filter: `test_acc`."""
    recorded: str
    """In MLflow: `test/acc`."""
    label: str
    """As people read it: `Test accuracy`."""
    split: Literal["train", "val", "test", ""]
    """Whose images it is computed on, epoch by epoch; empty: it is no curve."""
    kind: Literal["percent", "loss", "seconds"]
    """How a value is written."""
    higher_is_better: bool = False
    breaks_ties: bool = True
    """Time does not: no two machines share it."""

    def write(self, value: float) -> str:
        """Write a value as people read it."""
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
"""By name, in the order in which they break ties and in which a narrow terminal keeps them."""
RECORDED = {metric.recorded: metric for metric in _TABLE}
"""By the name that MLflow has."""
_COLUMNS = {f"{name}_{kind}": (METRICS[name], kind) for name in METRICS for kind in ("mean", "std", "n")}
_COLUMNS |= {name: (METRICS[name], "") for name in METRICS}


def metric_name(value: Any) -> Any:
    """`test_acc` for `test/acc`, as MLflow has it; anything else as it is."""
    return RECORDED[value].name if isinstance(value, str) and value in RECORDED else value


def metric_column(name: str) -> tuple[Metric, str] | tuple[None, str]:
    """Tell which metric a column of a leaderboard holds, and which statistic: `mean`, `std` or `n`; empty: none."""
    return _COLUMNS.get(name, (None, ""))


def leaderboard_metrics(*ranked_by: str) -> list[str]:
    """Name the metrics that a leaderboard has as columns, in their order."""
    return list(dict.fromkeys(["val_loss", "val_acc", "test_loss", "test_acc", *ranked_by, "train_seconds"]))
