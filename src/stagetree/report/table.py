"""Write a leaderboard as a CSV file, as lines in the terminal and as a table in Markdown."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame, Series
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from stagetree.config.metrics import METRICS, Metric, metric_column
from stagetree.errors import InputError
from stagetree.report.ranking import STATUSES
from stagetree.storage.files import write_atomic

_ALWAYS_SHOWN = {"rank", "run_name", "run_id", "n"}


# ---------------------------------------------------------------- write


def write_csv(frame: DataFrame, path: Path) -> None:
    """Write a leaderboard as a whole or not at all: UTF-8, lines ended by LF, floats at full precision.

    Text that a spreadsheet would run as a formula gets an apostrophe in front
    (OWASP, https://owasp.org/www-community/attacks/CSV_Injection).

    Raises:
        InputError: the file cannot be written.
    """
    text = {str(name): frame[name].map(_defuse) for name in frame.select_dtypes(exclude="number")}
    defused = frame.assign(**text).rename(columns=_defuse)
    write_output(path, defused.to_csv(index=False, lineterminator="\n").encode())


def write_output(path: Path, content: bytes) -> None:
    """Write a file of the report as a whole or not at all; make its folder if need be.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
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
    """Print the first lines of a leaderboard, and a last line that sums it up.

    Runs that cannot be compared have tables of their own. A column appears if it varies. On a terminal the least
    important columns are left out until the table fits; in a file or a pipe all are there uncut.

    Args:
        frame: from `rank` or `aggregate`.
        top: lines to print of each table.
        console: to print to.
        path: of the CSV file; None: there is none.
    """
    if frame.empty:
        where = f", so {path} has only its header" if path else ""
        _print_line(f"no runs yet{where} (train one: stagetree train)", console)
        return
    groups = frame.attrs["groups"]
    n_shown = 0
    for name, metric in groups.items():
        part = frame[frame["group"] == name].drop(columns="group") if len(groups) > 1 else frame
        n_shown += min(top, len(part))
        if len(groups) > 1:
            _print_line(f"{name}, by {metric}:", console)
        _show_table(part, top, metric, console)
    parts = [summary(frame)]
    if n_shown < len(frame):
        parts.append(f"first {n_shown} of {len(frame)} lines above")
    if path:
        parts.append(f"all in {path}")
    _print_line("; ".join(parts), console)


def _show_table(frame: DataFrame, top: int, metric: str, console: Console) -> None:
    columns = {name: [_printable(cell) for cell in cells] for name, cells in _format_columns(frame, top).items()}
    widths = {name: max(map(cell_len, (name, *cells))) for name, cells in columns.items()}
    if console.is_terminal:
        widths = _fit(widths, metric, console.width)
    table = Table(box=None, pad_edge=False)
    for name, width in widths.items():
        is_text = name in frame and frame[name].dtype == object
        table.add_column(Text(_printable(name)), width=width, no_wrap=True, justify="left" if is_text else "right")
    for row in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*map(Text, row))  # Text: a name in [brackets] is no markup
    options = console.options.update(width=sum(widths.values()) + 2 * len(widths))
    console.print(Segments(console.render(table, options)), crop=False, end="")


def _format_columns(frame: DataFrame, top: int) -> dict[str, list[str]]:
    """Format the columns that are worth printing; mean and standard deviation become one."""
    columns = {}
    for name in map(str, frame):
        metric, statistic = metric_column(name)
        if metric and statistic:
            if statistic == "mean" and frame[name].notna().any():
                pairs = zip(frame[name].head(top), frame[f"{metric.name}_std"].head(top), strict=True)
                columns[metric.name] = [_format_spread(metric, mean, std) for mean, std in pairs]
        elif name in _ALWAYS_SHOWN or _says_something(frame[name].head(top) if name == "status" else frame[name]):
            columns[name] = [_format(name, value) for value in frame[name].head(top)]
    return columns


def _says_something(column: Series) -> bool:
    return bool(column.notna().any()) if column.name in METRICS else column.nunique(dropna=False) > 1


def _format(name: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if name in METRICS:
        return METRICS[name].write(value)
    if name == "n_params":
        return f"{value:,}"
    if name == "run_id":
        return value[:8]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_spread(metric: Metric, mean: float, std: float) -> str:
    if pd.isna(std):
        return _format(metric.name, mean)
    return f"{metric.write(mean).removesuffix(' %')} ± {metric.write(std)}"


def _fit(widths: Mapping[str, int], metric: str, limit: int) -> dict[str, int]:
    """Choose columns by importance until a line is full, each cut to 40 characters; keep their order."""
    first = ["rank", metric, "n"]
    if "run_name" in widths:  # says itself what varies
        first += ["run_name", "status", "run_id"]
    else:
        first += [name for name in widths if name not in METRICS]
    chosen, free = {}, limit
    chosen_by = [name for name, one in METRICS.items() if one.split in ("val", "test")]
    for name in dict.fromkeys([*first, *chosen_by, *widths]):
        width = min(widths.get(name, limit), 40)
        if name in widths and width <= free:
            chosen[name] = width
            free -= width + 2
    return {name: chosen[name] for name in widths if name in chosen}


def summary(frame: DataFrame) -> str:
    """Sum up a leaderboard, as in `32 runs, 0 failed; ranked by test_acc`.

    Args:
        frame: from `rank` or `aggregate`.
    """
    if "status" in frame:
        n_runs, states = len(frame), frame["status"].value_counts()
        counts = {name: states.get(name, 0) for name in STATUSES if name != "finished"}
    else:
        n_failed = int(frame["n_failed"].sum())
        n_runs, counts = int(frame["n"].sum()) + n_failed, {"failed": n_failed}
    said = [f"{count} {name}" for name, count in counts.items() if count or name == "failed"]
    said = [f"{n_runs} run{'s' * (n_runs != 1)}, {', '.join(said)}"]
    groups = frame.attrs["groups"]
    if len(groups) > 1:
        said.append(f"ranked within {len(groups)} groups, since the data or its division differs")
    else:
        said.append(f"ranked by {frame.attrs['metric']}")
    return "; ".join([*said, *_unranked(frame)])


def _unranked(frame: DataFrame) -> Iterator[str]:
    """Yield a phrase for each group with finished runs that have no rank, as their metric is not finite."""
    finished = frame["status"] == "finished" if "status" in frame else frame["n"] > 0
    for name, metric in frame.attrs["groups"].items():
        part = finished & (frame["group"] == name) if "group" in frame else finished
        n = int((part & frame["rank"].isna()).sum())
        if n:
            yield f"{n} finished without a finite {metric}, so without a rank"


def to_markdown(frame: DataFrame, top: int) -> str:
    """Write the first lines as a table in Markdown, with the columns that `show` would print.

    Args:
        frame: from `rank` or `aggregate`.
        top: lines to write.
    """
    columns = _format_columns(frame, top)
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    escaped = ([_printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _printable(text: str) -> str:
    """Replace control characters, so that names cannot steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _print_line(line: str, console: Console) -> None:
    console.print(Text(_printable(line)), soft_wrap=True)
