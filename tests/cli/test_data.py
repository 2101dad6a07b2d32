"""`stagetree data`: what people see of a data set."""

import numpy as np
from PIL import Image

from stagetree.cli.data import describe_data
from stagetree.config.composition import Job


def test_a_data_set_is_described(bench, arrays, capsys):
    describe_data(Job((), bench.config()))
    text = capsys.readouterr().out
    assert "train 160  val 40  test 50" in text
    with np.load(arrays) as given:
        pixels, counts = given["train_x"] / 255, np.bincount(given["train_y"])
    assert f"mean {pixels.mean():.4f}" in text
    assert f"std  {pixels.std():.4f}" in text
    assert f"{counts[2]} " in next(line for line in text.splitlines() if line.startswith("2 "))
    path = bench.output_dir / "data" / "npz.png"
    assert text.endswith(f"sample images: {path}\n")
    with Image.open(path) as grid:
        assert grid.format == "PNG"
