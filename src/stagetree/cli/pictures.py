"""Looking at pictures: what a data set holds, what a run makes of one, and giving a trained model away."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame, Series
from rich.console import Console
from rich.table import Table

from stagetree.config.composition import Job
from stagetree.data import cache, readers, sampling
from stagetree.data.cache import Arrays, DataInfo
from stagetree.errors import InputError, choices, printable
from stagetree.models.export import export
from stagetree.models.inference import Network
from stagetree.report import ranking, selection
from stagetree.storage.files import write_atomic
from stagetree.tracking import store
from stagetree.tracking.networks import load_network

SHOWN = 40
"""Sample pictures in the grid."""
LIKELY = 3
"""Classes named for a picture."""


# ---------------------------------------------------------------- data


def describe_data(job: Job) -> None:
    """Print what a data set holds, and write a grid of its first training pictures with their labels.

    Raises:
        InputError: it cannot be prepared.
    """
    config, console = job.config, Console()
    info = cache.prepare(config.dataset, Path(config.output_dir))
    arrays = cache.load(Path(info.folder), info.digest)
    n_train, n_val = map(len, sampling.split(info.n_train, config.dataset.val_size, config.dataset.val_seed))
    shape = "x".join(map(str, info.image_shape))
    console.print(f"{info.name}  digest {info.digest[:16]}  {shape} (channels x height x width)", highlight=False)
    console.print(f"train {n_train:,}  val {n_val:,}  test {info.n_test:,}", highlight=False)
    means, stds = channel_statistics(arrays)
    for name, values in (("mean", means), ("std", stds)):
        console.print(f"{name:4} {'  '.join(f'{value:.4f}' for value in values)}", highlight=False)
    table = Table("class", "train", "test", box=None, pad_edge=False)
    counts = [np.bincount(part, minlength=len(info.classes)) for part in (arrays.train_labels, arrays.test_labels)]
    for name, train, test in zip(info.classes, *counts, strict=True):
        table.add_row(name, f"{train:,}", f"{test:,}")
    console.print(table, markup=False)
    for note in cache.find(info.digest, Path(config.output_dir)).notes or (
        "no test picture stands in the training set",
    ):
        console.print(note, markup=False, highlight=False)
    path = Path(config.output_dir) / "data" / f"{info.name}.png"
    write_atomic(path, draw_samples(arrays))
    console.print(f"sample pictures: {path}", highlight=False, soft_wrap=True)


def channel_statistics(arrays: Arrays) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all training pixels, divided by the scale."""
    info = arrays.info
    sums = np.zeros((2, info.image_shape[0]))
    for first in range(0, info.n_train, 10_000):  # as float64 the whole set may not fit into memory
        rows = arrays.train_images[first : first + 10_000] / info.scale
        pixels = rows.reshape(len(rows), info.image_shape[0], -1)
        sums += pixels.sum((0, 2)), np.square(pixels).sum((0, 2))
    means, squares = sums / (info.n_train * info.in_features / info.image_shape[0])
    return means.tolist(), np.sqrt(squares - means**2).tolist()


def draw_samples(arrays: Arrays) -> bytes:
    """Draw the first training pictures, labels above them: PNG."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    info = arrays.info
    figure = Figure(figsize=(10, 7), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, row, label in zip(
        figure.subplots(5, SHOWN // 5).flat, arrays.train_images[:SHOWN], arrays.train_labels, strict=False
    ):
        picture = row.reshape(info.image_shape).transpose(1, 2, 0) / info.scale
        axes.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture.clip(0, 1), cmap="gray")
        axes.set_title(info.classes[label], fontsize=9)
    for axes in figure.axes:
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ---------------------------------------------------------------- predict


def predict(job: Job, run: str = "best", images: Sequence[str] = ()) -> None:
    """Print the most probable classes of each picture, by a finished run, which stderr names.

    Args:
        job: its overrides select the runs that are looked at.
        run: `best`, a run's name, or the beginning of its id (at least 4 characters).
        images: paths of image files.

    Raises:
        InputError: no such run, it is not finished, or a picture cannot be read.
    """
    if not images:
        raise InputError("predict: no image was given (stagetree predict RUN image.png ...)")
    chosen = _chosen(job, run, "predict")
    network = load_network(Path(job.config.output_dir), chosen["uid"], job.config.store_uri, chosen["run_id"])
    classified, console = classify(network, images), Console()
    print(f"by {_described(chosen)}", file=sys.stderr)
    for path, probabilities in zip(images, classified, strict=True):
        said = "  ".join(f"{name} {share:.1%}" for name, share in probabilities)
        console.print(f"{printable(path)}: {said}", markup=False, highlight=False, soft_wrap=True)


def _chosen(job: Job, name: str, command: str) -> Series:
    frame = store.load(job.config.store_uri, job.config.tracking.experiment)
    return find_run(selection.select(frame, job.config, job.overrides), name, job.config.report.metric, command)


def _described(run: Series) -> str:
    accuracy = "val_acc" if pd.notna(run["val_acc"]) else "test_acc"
    return printable(f"run {run['run_id'][:8]} ({run['dataset']}, {run['run_name']}, {accuracy} {run[accuracy]:.2%})")


def find_run(frame: DataFrame, name: str, metric: str | None = None, command: str = "predict") -> Series:
    """Find a finished run by `best`, by its name, or by at least 4 characters that its id begins with.

    Args:
        frame: from `store.load`.
        name: of the run.
        metric: for `best`, as for `ranking.rank`.
        command: that asks.

    Raises:
        InputError: none or several fit, it is not finished, or the best is of several groups that cannot be compared.
    """
    if name == "best" and not (frame["status"] == "finished").any():
        raise InputError(f"{command}: no run is finished, so none is best (train one: stagetree train)")
    if name == "best":
        ranked = ranking.rank(frame[frame["status"] == "finished"], metric).dropna(subset="rank")
        first = ranked.drop_duplicates("group") if "group" in ranked else ranked.head(1)
        if len(first) > 1:
            among = "; ".join(f"{row.run_id[:8]} of {row.group}" for row in first.itertuples())
            raise InputError(
                f"{command}: best of which? Runs cannot be compared, since the data or its division differs: {among} "
                "(choose with dataset=NAME, dataset.val_size=VALUE and the like, or give one of these ids)"
            )
        found = frame[frame["run_id"].isin(first["run_id"])]
    else:
        by_id = frame["run_id"].str.startswith(name) & (len(name) >= 4)
        found = frame[by_id | (frame["run_name"] == name)]
    if found.empty:
        known = [*frame["run_name"].dropna().head(20), "best"]
        raise InputError(f"{command}: there is no run {name!r}{choices(name, known)}")
    if len(found) > 1:
        ids = ", ".join(found["run_id"].str[:8])
        raise InputError(f"{command}: {name!r} fits {len(found)} runs, with the ids {ids} (give one of these)")
    run = found.iloc[0]
    if run["status"] != "finished":
        raise InputError(f"{command}: {name!r} is {run['status']}, expected a finished run (launch its sweep again)")
    return run


def classify(network: Network, pictures: Sequence[str]) -> list[list[tuple[str, float]]]:
    """For each picture the most probable classes with their probabilities."""
    probabilities = network.probabilities(np.stack([_read(Path(path), network.info) for path in pictures]))
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELY]
    return [
        [(network.info.classes[index], float(shares[index])) for index in indices]
        for shares, indices in zip(probabilities, top, strict=True)
    ]


def _read(path: Path, info: DataInfo) -> np.ndarray:
    channels, height, width = info.image_shape
    if info.scale == 1.0 or channels not in (1, 3):
        raise InputError(f"predict: it was trained on arrays of {info.image_shape} that no picture file holds")
    # a row of features is no image: nothing says how a larger one would be cut into it
    size = {"height": height, "width": width, "resize": height > 1}
    return readers.read_picture(path, grayscale=channels == 1, **size).reshape(-1)


# ---------------------------------------------------------------- export


def export_run(job: Job, run: str = "best", folder: str = "model") -> None:
    """Write a finished run as plain files, and print what they are.

    Args:
        job: its overrides select the runs that are looked at.
        run: as for `predict`.
        folder: that is made; it must not hold anything yet.

    Raises:
        InputError: no such run, it is not finished, its files are gone, or the folder holds something.
    """
    chosen, path = _chosen(job, run, "export"), Path(folder)
    known = chosen[chosen.notna()].drop(["status"])
    about = {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}
    output_dir, uid = Path(job.config.output_dir), chosen["uid"]
    export(load_network(output_dir, uid, job.config.store_uri, chosen["run_id"]), path, about)
    print(_described(chosen))
    print(f"{path}: {', '.join(sorted(file.name for file in path.iterdir()))} (cd {path} && python example.py)")
