"""DataFrame -> leaderboard: runs ranked, aggregated over seeds, written as CSV and printed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from pandas import DataFrame, Series
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from stagetree.checkpoint import write_atomic
from stagetree.config import AnyOptimizer
from stagetree.mistakes import InputError, choices
from stagetree.store import ATTRIBUTES, METRICS, PARAMS

_FIGURES = ("val_loss", "val_acc", "test_loss", "test_acc")
_ALWAYS_SHOWN = {"rank", "run_name", "run_id", "n"}
_STATUSES = ("finished", "running", "scheduled", "killed", "failed")
_OPTIMIZER_SETTINGS = tuple(
    dict.fromkeys(name for kind in get_args(get_args(AnyOptimizer)[0]) for name in kind.model_fields if name != "name")
)
# Logged as numbers for MLflow's plots; architecture, lrs and epochs say the same.
_DERIVED = re.compile(r"n_layers|hidden_sizes|epochs_total|(log10_)?lr_\d+|epochs_\d+")


# ---------------------------------------------------------------- rank


def rank(frame: DataFrame, metric: str | None = None) -> DataFrame:
    """Order the runs best first, in the columns of the leaderboard.

    Accuracies rank downwards, losses and seconds upwards. Ties are broken by the other metrics in the order of
    `METRICS`, then by uid, so the same configurations rank alike in every store. Runs that are not finished, or whose
    metric is not finite, have no rank and come last. Params beyond `PARAMS` are shown if they vary.

    Args:
        frame: from `load`.
        metric: one of `METRICS`, or as MLflow spells it, `test/acc`. None: `val_acc` if any finished run has it, else
            `test_acc`. Where only some were validated, the others get no rank rather than another split's figure.

    Raises:
        InputError: there is no such metric, or no finished run has a value of it.
    """
    metric = _choose_metric(frame, metric)
    ranked = (frame["status"] == "finished") & np.isfinite(frame[metric])
    tier = frame["status"].map(_STATUSES.index).add(1).mask(ranked, 0)
    ordered = frame.loc[_best_first(frame, metric, tier, "uid", "run_id")]
    described, others = _split_params(frame[_params(frame)])
    reason = ["reason"] if frame["reason"].notna().any() else []
    columns = ["run_name", "run_id", *described, *_figures(metric), "status", *others, *reason]
    return _numbered(ordered[columns], int(ranked.sum()), metric)


def aggregate(frame: DataFrame, over: str, metric: str | None = None) -> DataFrame:
    """Make one line of the runs that are equal in all params but `over`, ranked by the mean of the metric.

    Each metric has `_mean`, `_std` (ddof=1; empty for one value) and `_n` over the finite values of finished runs. `n`
    counts finished runs, `n_failed` those that failed or were killed; a uid that occurs twice counts once.

    Args:
        frame: from `load`.
        over: a param, such as `seed`.
        metric: as for `rank`.

    Raises:
        InputError: there is no such param, or as `rank`.
    """
    metric = _choose_metric(frame, metric)
    identity = _params(frame)
    if over not in identity:
        raise InputError(f"report.group_by: got {over!r}{choices(over, list(identity))}")
    identity.remove(over)
    finished = frame["status"] == "finished"
    runs = frame.assign(n=finished, n_failed=frame["status"].isin(["failed", "killed"]))
    runs[list(METRICS)] = runs[list(METRICS)].where(np.isfinite(runs[list(METRICS)])).mask(~finished)
    runs = runs.sort_values(["n", "uid"], ascending=[False, True]).drop_duplicates("uid")  # finished ones stay
    runs = runs.set_index(runs.groupby(identity, dropna=False).ngroup())
    line = runs.groupby(level=0)
    first, mean = runs[~runs.index.duplicated()], line[list(METRICS)].mean()
    statistics = {}
    for name in _figures(metric):
        statistics |= {f"{name}_mean": mean[name], f"{name}_std": line[name].std(), f"{name}_n": line[name].count()}
    ranked = mean[metric].notna()
    order = _best_first(mean.assign(uid=first["uid"]), metric, ~ranked, "uid")
    described, others = _split_params(first[identity])
    lines = first[[*described, *others]].assign(**statistics, **line[["n", "n_failed"]].sum())
    return _numbered(lines.loc[order, [*described, *statistics, "n", "n_failed", *others]], int(ranked.sum()), metric)


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


def _figures(metric: str) -> list[str]:
    return list(dict.fromkeys([*_FIGURES, metric, "train_seconds"]))


def _best_first(frame: DataFrame, metric: str, tier: Series, *last: str) -> pd.Index:
    """Order the rows' labels: by tier, then the metric, then the ties."""
    names = dict.fromkeys([metric, *(name for name in METRICS if name != "train_seconds")])
    keys = {name: -frame[name] if name.endswith("_acc") else frame[name] for name in names}
    keys = DataFrame({"tier": tier, **keys, **{name: frame[name] for name in last}})
    return keys.sort_values(list(keys)).index


def _numbered(frame: DataFrame, n_ranked: int, metric: str) -> DataFrame:
    frame = frame.reset_index(drop=True)
    ranks = [*range(1, n_ranked + 1), *[None] * (len(frame) - n_ranked)]
    frame.insert(0, "rank", pd.array(ranks, dtype="Int64"))
    frame.attrs["metric"] = metric  # for `show`
    return frame


# ---------------------------------------------------------------- write


def write_csv(frame: DataFrame, path: Path) -> None:
    """Write a leaderboard as a whole or not at all: UTF-8, lines ended by LF, floats at full precision.

    Text that a spreadsheet would run as a formula gets an apostrophe in front
    (OWASP, https://owasp.org/www-community/attacks/CSV_Injection).

    Raises:
        InputError: the file cannot be written.
    """
    text = {name: frame[name].map(_defuse) for name in frame.select_dtypes(exclude="number")}
    defused = frame.assign(**text).rename(columns=_defuse)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, defused.to_csv(index=False, lineterminator="\n").encode())
    except OSError as error:
        raise InputError(f"report.output: cannot write {path}, got {error.strerror} (give another file)") from error


def _defuse(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    if re.match(r"[\t\r\n\0]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell):
        cell = f"'{cell}"
    return re.sub(r"\r\n?", "\n", cell)  # Python 3.11's csv does not quote a lone CR, which readers take for a new line


# ---------------------------------------------------------------- show


def show(frame: DataFrame, top: int, console: Console, path: Path | None = None) -> None:
    """Print the first lines of a leaderboard, and a last line that says what there is.

    A column appears if it varies. On a terminal those that matter least make way until the table fits; elsewhere, as in
    a file or a pipe, all are there uncut.

    Args:
        frame: from `rank` or `aggregate`.
        top: lines to print.
        console: where to.
        path: of the CSV file; None: there is none.
    """
    if frame.empty:
        where = f", so {path} has only its header" if path else ""
        _print_line(f"no runs yet{where} (train one: stagetree train)", console)
        return
    columns = {name: [_printable(cell) for cell in cells] for name, cells in _format_columns(frame, top).items()}
    widths = {name: max(map(cell_len, (name, *cells))) for name, cells in columns.items()}
    if console.is_terminal:
        widths = _fit(widths, frame.attrs["metric"], console.width)
    table = Table(box=None, pad_edge=False)
    for name, width in widths.items():
        is_text = name in frame and frame[name].dtype == object
        table.add_column(Text(_printable(name)), width=width, no_wrap=True, justify="left" if is_text else "right")
    for row in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*map(Text, row))  # Text: a name in [brackets] is no markup
    options = console.options.update(width=sum(widths.values()) + 2 * len(widths))
    console.print(Segments(console.render(table, options)), crop=False, end="")
    parts = [summary(frame)]
    if top < len(frame):
        parts.append(f"first {top} of {len(frame)} lines above")
    if path:
        parts.append(f"all in {path}")
    _print_line("; ".join(parts), console)


def _format_columns(frame: DataFrame, top: int) -> dict[str, list[str]]:
    """Format the columns that are worth printing; mean and standard deviation become one."""
    columns = {}
    for name in frame:
        metric, _, statistic = name.rpartition("_")
        if metric in METRICS:
            if statistic == "mean" and frame[name].notna().any():
                pairs = zip(frame[name].head(top), frame[f"{metric}_std"].head(top), strict=True)
                columns[metric] = [_format_spread(metric, mean, std) for mean, std in pairs]
        elif name in _ALWAYS_SHOWN or _says_something(frame[name].head(top) if name == "status" else frame[name]):
            columns[name] = [_format(name, value) for value in frame[name].head(top)]
    return columns


def _says_something(column: Series) -> bool:
    return column.notna().any() if column.name in METRICS else column.nunique(dropna=False) > 1


def _format(name: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if name.endswith("_acc"):
        return f"{100 * value:.2f} %"
    if name.endswith("_loss"):
        return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"
    if name == "train_seconds":
        return f"{value:.1f}"
    if name == "n_params":
        return f"{value:,}"
    if name == "run_id":
        return value[:8]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_spread(name: str, mean: float, std: float) -> str:
    if pd.isna(std):
        return _format(name, mean)
    return f"{_format(name, mean).removesuffix(' %')} ± {_format(name, std)}"


def _fit(widths: Mapping[str, int], metric: str, limit: int) -> dict[str, int]:
    """Choose columns by importance until a line is full; what stays is in its order, cut to 40 characters."""
    first = ["rank", metric, "n"]
    if "run_name" in widths:  # says itself what varies
        first += ["run_name", "status", "run_id"]
    else:
        first += [name for name in widths if name not in METRICS]
    chosen, free = {}, limit
    for name in dict.fromkeys([*first, *METRICS[:4], *widths]):
        width = min(widths.get(name, limit), 40)
        if name in widths and width <= free:
            chosen[name] = width
            free -= width + 2
    return {name: chosen[name] for name in widths if name in chosen}


def summary(frame: DataFrame) -> str:
    """`32 runs, 0 failed; ranked by test_acc`.

    Args:
        frame: from `rank` or `aggregate`.
    """
    if "status" in frame:
        n_runs, states = len(frame), frame["status"].value_counts()
        counts = {name: states.get(name, 0) for name in _STATUSES if name != "finished"}
    else:
        n_failed = int(frame["n_failed"].sum())
        n_runs, counts = int(frame["n"].sum()) + n_failed, {"failed": n_failed}
    said = [f"{count} {name}" for name, count in counts.items() if count or name == "failed"]
    return f"{n_runs} run{'s' * (n_runs != 1)}, {', '.join(said)}; ranked by {frame.attrs['metric']}"


def useful_columns(frame: DataFrame) -> tuple[list[str], list[str]]:
    """Name the params that vary and the leaderboard's figures that some run has, as MLflow spells them.

    Args:
        frame: from `load`.
    """
    described, others = _split_params(frame[_params(frame)])
    params = [name for name in (*described, *others) if frame[name].nunique() > 1]
    metrics = [name for name in (*_FIGURES, "train_seconds") if frame[name].notna().any()]
    return params, [re.sub(r"_(?=loss|acc)", "/", name) for name in metrics]


def to_markdown(frame: DataFrame, top: int) -> str:
    """Write the first lines as a table in Markdown, with the columns that `show` would print.

    Args:
        frame: from `rank` or `aggregate`.
        top: lines.
    """
    columns = _format_columns(frame, top)
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    escaped = ([_printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _printable(text: str) -> str:
    """Keep names from steering the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _print_line(line: str, console: Console) -> None:
    console.print(Text(_printable(line)), soft_wrap=True)
