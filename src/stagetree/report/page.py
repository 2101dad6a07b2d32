"""Write `leaderboard.html`: one file that shows a ranking and its reasons, offline, in any browser.

This module gathers the numbers; the scripts in `assets` draw them with Plotly.
"""

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from stagetree.config.metrics import METRICS, Metric, metric_column
from stagetree.config.params import param
from stagetree.data import cache, images
from stagetree.errors import InputError
from stagetree.models.inference import Misclassified, Network, confusion
from stagetree.report import history, ranking, statistics, table
from stagetree.tracking import store
from stagetree.tracking.networks import load_network

MOST_CURVES, MOST_CURVES_OF_SERVER = 1000, 50
"""Number of runs whose learning curves are read, the best first; from a server each takes requests."""
MOST_IMAGES = 24
"""Number of misclassified images shown."""
MOST_EXACT = 2**53
"""The largest whole number that JavaScript can tell from the next."""
SCRIPTS = ("common", "table", "plots", "tree", "start")
"""The scripts of `assets`, in their order."""


@dataclass(frozen=True)
class PageInputs:
    """The inputs of a page."""

    frame: DataFrame
    """From `store.load`."""
    uri: str
    """URI of the store, which holds the learning curves."""
    output_dir: Path
    """The output folder; its checkpoints and prepared data give the best run's misclassified images."""
    metric: str | None = None
    """As for `ranking.rank`."""
    command: str = ""
    """As typed; empty: the page is of all runs of the experiment."""


def write_page(inputs: PageInputs, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the file cannot be written, or as `ranking.rank`.
    """
    folder = resources.files("stagetree.report") / "assets"
    page = (folder / "leaderboard.html").read_text("utf-8")
    parts = {
        "/*style*/": (folder / "leaderboard.css").read_text("utf-8"),
        "/*plotly*/": (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8"),
        "/*script*/": "\n".join((folder / f"{name}.js").read_text("utf-8") for name in SCRIPTS),
        "/*data*/": _as_json(gather(inputs)),
    }
    for mark, text in parts.items():
        before, _, after = page.partition(mark)
        page = before + text + after
    table.write_output(path, page.encode())


def _as_json(values: Any) -> str:
    """Write JSON that may stand inside a script element; NaN and infinity become null."""
    text = json.dumps(_finite(values), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def gather(inputs: PageInputs) -> dict[str, Any]:
    """Collect all that the page shows as plain values; the function of each part describes it.

    Raises:
        InputError: as `ranking.rank`.
    """
    frame = inputs.frame.drop_duplicates("run_id")
    ranked = ranking.rank(frame, inputs.metric)
    metric = ranked.attrs["metric"]
    known = frame.set_index("run_id").loc[ranked["run_id"]]
    most = MOST_CURVES if store.is_sql(inputs.uri) else MOST_CURVES_OF_SERVER
    shown = ranked["run_id"].head(most).tolist()
    histories = store.load_histories(inputs.uri, shown) if shown else {}
    best = _load_best(ranked, known, inputs)
    comparable = known[ranking.in_first_group(ranked).to_numpy()].reindex(known.index)
    return {
        "metric": metric,
        "metrics": {name: _described(one) for name, one in METRICS.items()},
        "command": inputs.command,
        "summary": table.summary(ranked),
        "runs": _table(ranked, [""] * len(ranked)),
        "seeds": _over_seeds(frame, inputs.metric),
        "settings": _settings(comparable, metric),
        "curves": history.curves(known, histories),
        "tree": history.tree(known, histories, metric),
        "best": _misclassified(known["run_name"].iloc[0], best),
        "commands": known["command"].where(known["command"].notna(), None).tolist(),
    }


# ---------------------------------------------------------------- tables


def _described(metric: Metric) -> dict[str, Any]:
    return {"label": metric.label, "kind": metric.kind, "higher": metric.higher_is_better}


def _table(frame: DataFrame, marks: list[str]) -> dict[str, Any]:
    """Order the columns, metrics before settings and the ranking metric first, and add the mark of each row.

    Columns whose rows are all equal are not shown.

    Args:
        frame: from `ranking.rank` or `ranking.aggregate`.
        marks: from `statistics.marks`; single runs have none, since one run says nothing about the luck of its seed.
    """
    numbers = [name for name in map(str, frame) if metric_column(name)[0] or name in ("n", "n_failed")]
    numbers.sort(key=lambda name: metric_column(name)[0] is not METRICS[frame.attrs["metric"]])
    first = [name for name in ("rank", "run_name") if name in frame]
    first += ["status"] if "status" in frame and frame["status"].nunique() > 1 else []
    columns = [
        _column(frame[name], shown=name in (*first, *numbers) or (name != "run_id" and _varies(frame[name])))
        for name in dict.fromkeys([*first, *numbers, *frame])
        if name in first or frame[name].notna().any()
    ]
    return {"columns": columns, "marks": marks}


def _varies(column: Series) -> bool:
    return column.nunique(dropna=False) > 1


def _column(column: Series, *, shown: bool) -> dict[str, Any]:
    """Describe a column: its name, its label, the kind of its values, whether it is shown, and the values.

    The kind is a metric's kind, `number` or `text`.
    """
    name = str(column.name)
    metric, statistic = metric_column(name)
    said = {"label": name, "kind": "number" if _is_numeric(column) else "text", "higher": False}
    if metric:
        label = f"{metric.label}, {statistic}" if statistic else metric.label
        said = _described(metric) | {"label": label} | ({"kind": "number"} if statistic == "n" else {})
    return {"name": name, **said, "shown": shown, "values": _plain(column)}


def _is_numeric(column: Series) -> bool:
    """Tell whether JavaScript's numbers, which are floats, hold a column's values: seeds go up to 2**63 - 1."""
    if not pd.api.types.is_numeric_dtype(column):
        return False
    return not (pd.api.types.is_integer_dtype(column) and (column > MOST_EXACT).any())


def _plain(column: Series) -> list[Any]:
    values = column.astype(object).where(column.notna(), None).tolist()
    if pd.api.types.is_numeric_dtype(column) and not _is_numeric(column):
        return [value if value is None else str(value) for value in values]
    if pd.api.types.is_float_dtype(column):
        return [value if value is None else float(f"{value:.8g}") for value in values]
    return values


def _over_seeds(frame: DataFrame, metric: str | None) -> dict[str, Any] | None:
    """Make the table of means over seeds, if seeds vary."""
    finished = frame[frame["status"] == "finished"]
    if finished["seed"].nunique() < 2:
        return None
    lines = ranking.aggregate(frame, "seed", metric)
    metric, marks = lines.attrs["metric"], np.full(len(lines), "", dtype=object)
    compared = np.flatnonzero(lines["rank"].notna() & ranking.in_first_group(lines))
    mean, std, n = (lines[f"{metric}_{name}"].to_numpy(dtype=float)[compared] for name in ("mean", "std", "n"))
    if len(compared) > 1:
        marks[compared] = statistics.marks(mean, std, n)
    return _table(lines, marks.tolist())


# ---------------------------------------------------------------- settings


def _settings(known: DataFrame, metric: str) -> list[dict[str, Any]]:
    """List each swept setting with its importance and a value for each run, the most important first, seeds last.

    Args:
        known: a row for each run; rows that cannot be compared with the first are empty.
        metric: the one that ranks.
    """
    swept = [name for name in store.param_columns(known) if param(name).plotted and known[name].nunique() > 1]
    finished = known["status"] == "finished"
    importance = statistics.importance(known.loc[finished, swept], known.loc[finished, metric])
    importance = importance.sort_index(key=lambda names: names == "seed", kind="stable")
    return [
        {
            "name": name,
            "importance": float(f"{share:.4f}"),
            "numeric": _is_numeric(known[name]),
            "values": _plain(known[name]),
        }
        for name, share in importance.items()
    ]


# ---------------------------------------------------------------- the best run


def _load_best(ranked: DataFrame, known: DataFrame, inputs: PageInputs) -> Network | str:
    """Load the first run's network, or say why there is none."""
    if ranked["rank"].isna().all():
        return "No run is ranked yet."
    try:
        return load_network(inputs.output_dir, known["uid"].iloc[0], inputs.uri, known.index[0])
    except InputError as error:
        return str(error)


def _misclassified(name: str, network: Network | str) -> dict[str, Any]:
    """Compute a run's confusion matrix on the test set, and draw its most confident misclassified images."""
    if isinstance(network, str):
        return {"missing": network}
    try:
        arrays = cache.load(Path(network.info.folder), network.info.digest)
    except InputError as error:
        return {"missing": str(error)}
    matrix, misclassified = confusion(network, arrays.test_images, arrays.test_labels, MOST_IMAGES)
    drawn = [_drawn(one, arrays) for one in misclassified]
    return {"run": name, "classes": list(network.info.classes), "matrix": matrix.tolist(), "misclassified": drawn}


def _drawn(one: Misclassified, arrays: cache.Arrays) -> dict[str, Any]:
    png = base64.b64encode(draw_png(arrays.test_images[one.index], arrays.info)).decode()
    return asdict(one) | {"confidence": round(one.confidence, 4), "png": f"data:image/png;base64,{png}"}


def draw_png(pixels: np.ndarray, info: cache.DataInfo) -> bytes:
    """Draw one image of a data set at its own size as PNG; float pixels are stretched to their range."""
    buffer = io.BytesIO()
    images.draw(pixels, info.image_shape).save(buffer, format="png")
    return buffer.getvalue()
