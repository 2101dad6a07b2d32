"""A run's learning curves as a picture."""

import io
import math
from collections.abc import Mapping, Sequence


def draw(title: str, history: Sequence[Mapping[str, float]], epochs: Sequence[int]) -> bytes:
    """Draw loss and accuracy over epochs, a line at each stage's end: PNG.

    Args:
        title: above the plot.
        history: a line an epoch; epoch 0 is before training.
        epochs: of each stage.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=90)
    FigureCanvasAgg(figure)
    # Fixed margins: laying the figure out by what is in it would take as long again as drawing it.
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.17, top=0.88, wspace=0.22)
    figure.suptitle(title, fontsize=9)
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        for part in ("train", "val", "test"):
            points = [(line["epoch"], line[f"{part}/{kind}"]) for line in history if f"{part}/{kind}" in line]
            if points and all(math.isfinite(y) for _, y in points):
                axes.plot(*zip(*points, strict=True), marker=".", label=part)
        for end in [sum(epochs[: i + 1]) for i in range(len(epochs) - 1)]:
            axes.axvline(end, color="gray", linestyle=":", linewidth=1)
        axes.set(xlabel="epoch", ylabel="accuracy" if kind == "acc" else kind)
        axes.legend(loc="upper right" if kind == "loss" else "lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
