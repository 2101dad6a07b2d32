"""`stagetree predict` and `stagetree export`: use the network of a finished run."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame, Series
from rich.console import Console

from stagetree.config.composition import Job
from stagetree.data.cache import DataInfo
from stagetree.data.images import read_image
from stagetree.errors import InputError, choices, printable
from stagetree.models.export import export
from stagetree.models.inference import Network
from stagetree.report import ranking, selection
from stagetree.tracking import store
from stagetree.tracking.networks import load_network

LIKELY = 3
"""The number of classes to print for an image."""


def predict(job: Job, run: str = "best", images: Sequence[str] = ()) -> None:
    """Print the most probable classes of each image by a finished run; name the run on stderr.

    Args:
        job: its overrides select the runs to search.
        run: `best`, a run's name, or the beginning of its id (at least 4 characters).
        images: the paths of image files.

    Raises:
        InputError: there is no such run, it is not finished, or an image cannot be read.
    """
    if not images:
        raise InputError("predict: no image was given (stagetree predict RUN image.png ...)")
    chosen = _choose(job, run, "predict")
    network = load_network(Path(job.config.output_dir), chosen["uid"], job.config.store_uri, chosen["run_id"])
    classified, console = classify(network, images), Console()
    print(f"by {_describe(chosen)}", file=sys.stderr)
    for path, probabilities in zip(images, classified, strict=True):
        said = "  ".join(f"{name} {share:.1%}" for name, share in probabilities)
        console.print(f"{printable(path)}: {said}", markup=False, highlight=False, soft_wrap=True)


def _choose(job: Job, name: str, command: str) -> Series:
    """Find the run with this name among those that the command's overrides select."""
    frame = store.load(job.config.store_uri, job.config.tracking.experiment)
    return find_run(selection.select(frame, job.config, job.overrides), name, job.config.report.metric, command)


def _describe(run: Series) -> str:
    accuracy = "val_acc" if pd.notna(run["val_acc"]) else "test_acc"
    return printable(f"run {run['run_id'][:8]} ({run['dataset']}, {run['run_name']}, {accuracy} {run[accuracy]:.2%})")


def find_run(frame: DataFrame, name: str, metric: str | None = None, command: str = "predict") -> Series:
    """Find a finished run by `best`, by its name, or by at least 4 characters that its id begins with.

    Args:
        frame: the runs, from `store.load`.
        name: `best`, the name of the run, or the beginning of its id.
        metric: the metric that decides which run is best, as for `ranking.rank`.
        command: the command's name, for messages.

    Raises:
        InputError: none or several match, the run is not finished, or there is a best run in each of several groups
            that cannot be compared.
    """
    if name == "best" and not (frame["status"] == "finished").any():
        raise InputError(f"{command}: no run is finished, so none is best (train one: stagetree train)")
    if name == "best":
        ranked = ranking.rank(frame[frame["status"] == "finished"], metric).dropna(subset="rank")
        first = ranked.drop_duplicates("group") if "group" in ranked else ranked.head(1)
        if len(first) > 1:
            among = "; ".join(
                f"{run_id[:8]} of {group}" for run_id, group in zip(first["run_id"], first["group"], strict=True)
            )
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


def classify(network: Network, paths: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Find for each image the most probable classes with their probabilities, the likeliest first.

    Raises:
        InputError: an image cannot be read, or the network was trained on arrays that no image file holds.
    """
    probabilities = network.probabilities(np.stack([_read(Path(path), network.info) for path in paths]))
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELY]
    return [
        [(network.info.classes[index], float(shares[index])) for index in indices]
        for shares, indices in zip(probabilities, top, strict=True)
    ]


def _read(path: Path, info: DataInfo) -> np.ndarray:
    channels, height, width = info.image_shape
    if info.scale == 1.0 or channels not in (1, 3):
        raise InputError(f"predict: it was trained on arrays of {info.image_shape} that no image file holds")
    # a row of features is not an image, so there is no way to resize an image to it
    size = {"height": height, "width": width, "resize": height > 1}
    return read_image(path, grayscale=channels == 1, **size).reshape(-1)


def export_run(job: Job, run: str = "best", folder: str = "model") -> None:
    """Export a finished run as plain files, and print their names.

    Args:
        job: its overrides select the runs to search.
        run: as for `predict`.
        folder: the folder to make; it must be missing or empty.

    Raises:
        InputError: there is no such run, it is not finished, its files are gone, or the folder is not empty.
    """
    chosen, path = _choose(job, run, "export"), Path(folder)
    known = chosen[chosen.notna()].drop(["status"])
    about = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in known.items()}
    output_dir, uid = Path(job.config.output_dir), chosen["uid"]
    export(load_network(output_dir, uid, job.config.store_uri, chosen["run_id"]), path, about)
    print(_describe(chosen))
    print(f"{path}: {', '.join(sorted(file.name for file in path.iterdir()))} (cd {path} && python example.py)")
