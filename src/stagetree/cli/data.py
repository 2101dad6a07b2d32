"""`stagetree data`: describe a data set."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from stagetree.config.composition import Job
from stagetree.data import cache, summary
from stagetree.storage.files import write_atomic


def describe_data(job: Job) -> None:
    """Describe a data set, and write a grid of its first training images with their labels.

    Raises:
        InputError: the data cannot be prepared.
    """
    config, console = job.config, Console()
    info = cache.prepare(config.dataset, Path(config.output_dir))
    arrays = cache.load(Path(info.folder), info.digest)
    n_val = cache.val_count(info.n_train, config.dataset.val_size)
    shape = "x".join(map(str, info.image_shape))
    console.print(f"{info.name}  digest {info.digest[:16]}  {shape} (channels x height x width)", highlight=False)
    console.print(f"train {info.n_train - n_val:,}  val {n_val:,}  test {info.n_test:,}", highlight=False)
    means, stds = summary.channel_statistics(arrays)
    for name, values in (("mean", means), ("std", stds)):
        console.print(f"{name:4} {'  '.join(f'{value:.4f}' for value in values)}", highlight=False)
    table = Table("class", "train", "test", box=None, pad_edge=False)
    counts = [np.bincount(part, minlength=len(info.classes)) for part in (arrays.train_labels, arrays.test_labels)]
    for name, train, test in zip(info.classes, *counts, strict=True):
        table.add_row(name, f"{train:,}", f"{test:,}")
    console.print(table, markup=False)
    # the notes of the cache, since the settings may ask for silence
    for note in arrays.info.notes or ("no test image stands in the training set",):
        console.print(note, markup=False, highlight=False)
    path = Path(config.output_dir) / "data" / f"{info.name}.png"
    write_atomic(path, summary.draw_samples(arrays))
    console.print(f"sample images: {path}", highlight=False, soft_wrap=True)
