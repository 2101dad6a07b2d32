"""Summarise a data set: statistics of its pixels and a grid of its first images."""

import io

import numpy as np

from stagetree.data import images
from stagetree.data.cache import Arrays

COLUMNS, ROWS = 8, 5
"""The size of the grid."""
CELL, GAP, LABEL = 96, 12, 18
"""In pixels: width and height of a cell, the gap between cells, and the height of a label."""


def channel_statistics(arrays: Arrays) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel over all training pixels, divided by the scale."""
    info = arrays.info
    sums = np.zeros((2, info.image_shape[0]))
    for first in range(0, info.n_train, 10_000):  # the whole set as float64 may not fit into memory
        rows = arrays.train_images[first : first + 10_000] / info.scale
        pixels = rows.reshape(len(rows), info.image_shape[0], -1)
        sums += pixels.sum((0, 2)), np.square(pixels).sum((0, 2))
    means, squares = sums / (info.n_train * info.in_features / info.image_shape[0])
    return means.tolist(), np.sqrt(squares - means**2).tolist()


def draw_samples(arrays: Arrays) -> bytes:
    """Draw the first training images with their labels as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    info, font = arrays.info, ImageFont.load_default(13)
    width, height = CELL + GAP, LABEL + CELL + GAP
    grid = Image.new("RGB", (COLUMNS * width + GAP, ROWS * height + GAP), "white")
    pen = ImageDraw.Draw(grid)
    rows = arrays.train_images[: COLUMNS * ROWS]
    for place, (row, label) in enumerate(zip(rows, arrays.train_labels, strict=False)):
        left, top = GAP + place % COLUMNS * width, GAP + place // COLUMNS * height
        name = info.classes[label][:50]  # more never fit
        while pen.textlength(name, font) > CELL:
            name = name.removesuffix("…")[:-1] + "…"
        pen.text((left + CELL / 2, top + LABEL / 2), name, "black", font, anchor="mm")
        image = images.draw(row, info.image_shape)
        share = CELL / max(image.size)
        size = [max(1, round(side * share)) for side in image.size]
        # each pixel stays visible when enlarged
        image = image.resize(size, Image.Resampling.NEAREST if share > 1 else Image.Resampling.LANCZOS)
        grid.paste(image, (left + (CELL - size[0]) // 2, top + LABEL + (CELL - size[1]) // 2))
    buffer = io.BytesIO()
    grid.save(buffer, format="png")
    return buffer.getvalue()
