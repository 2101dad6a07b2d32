"""Statistics of a data set, and the grid of its first images."""

import io

import numpy as np
import pytest
from PIL import Image

from stagetree.data import cache, summary


def test_statistics_are_those_of_each_channel():
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    info = cache.DataInfo("", "", "x", (3, 4, 4), ("a",), 30, 30, 255.0)
    rows = x.transpose(0, 3, 1, 2).reshape(30, -1)
    means, stds = summary.channel_statistics(cache.Arrays(info, rows, x, rows, x))
    assert means == pytest.approx((x / 255).mean((0, 1, 2)))
    assert stds == pytest.approx((x / 255).std((0, 1, 2)))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (1, 1, 16), (1, 200, 100)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_first_training_images_stand_in_a_grid_below_their_labels(shape, dtype):
    """The k-th of 10 images is all of one shade; where fewer images are than places, the rest stays white."""
    shades = np.arange(10) * 20
    x = np.tile(shades[:, None], int(np.prod(shape))).astype(dtype)
    x[:, 0] = 255 * (dtype is np.float32)  # floats are stretched to their range
    info = cache.DataInfo("", "", "x", shape, ("short", "a very long name of a class"), 10, 0, 255.0)
    drawn = summary.draw_samples(cache.Arrays(info, x, np.arange(10) % 2, x, x))
    with Image.open(io.BytesIO(drawn)) as image:
        grid = np.asarray(image.convert("L")).astype(int)
    cell, step = summary.CELL, summary.CELL + summary.GAP
    for place in range(summary.COLUMNS * summary.ROWS):
        left, top = summary.GAP + place % 8 * step, summary.GAP + place // 8 * (step + summary.LABEL)
        label = grid[top : top + summary.LABEL, left : left + cell]
        shown = grid[top + summary.LABEL : top + summary.LABEL + cell, left : left + cell]
        assert (label < 128).any() == (place < 10)
        assert (grid[:, left - summary.GAP : left] == 255).all(), "a long name is cut"
        if place >= 10:
            assert (shown == 255).all()
        elif dtype is np.uint8:
            assert abs(shown[cell // 2, cell // 2] - shades[place]) <= 1
