"""Draw a run's learning curves as SVG.

Written as SVG by hand: with matplotlib this one drawing took 64 ms a run, half of all that tracking costs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 360, 210  # of one plot, in pixels
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 34, 36  # margins around its axes
MOST_DOTS = 100  # of a curve, and ends of stages; more would touch
COLOURS = {"train": "#1f77b4", "val": "#ff7f0e", "test": "#2ca02c"}


def draw(title: str, history: Sequence[Mapping[str, float]], epochs: Sequence[int]) -> str:
    """Draw loss and accuracy over epochs as SVG, with a line at each stage's end.

    Args:
        title: above the plot.
        history: a line for each epoch; epoch 0 is before training.
        epochs: of each stage.
    """
    ends = list(accumulate(epochs))[:-1] if len(epochs) <= MOST_DOTS else []
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" width="{2 * WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH}" y="16" text-anchor="middle" font-size="12">{escape(title)}</text>',
    ]
    for place, (kind, name) in enumerate((("loss", "loss"), ("acc", "accuracy"))):
        curves = {
            part: [(line["epoch"], line[f"{part}/{kind}"]) for line in history if f"{part}/{kind}" in line]
            for part in COLOURS
        }
        curves = {part: points for part, points in curves.items() if points and _finite(points)}
        parts += [f'<g transform="translate({place * WIDTH})">', *_plot(name, curves, ends, sum(epochs)), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _finite(points: Iterable[tuple[float, float]]) -> bool:
    return all(math.isfinite(y) for _, y in points)


def _plot(
    name: str, curves: Mapping[str, Sequence[tuple[float, float]]], ends: Sequence[int], last: int
) -> Iterator[str]:
    """Yield the axes with their ticks, the stages' ends, and a line and a legend for each curve."""
    ys = [y for points in curves.values() for _, y in points] or [0.0, 1.0]
    ticks = _ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]
    first = min((points[0][0] for points in curves.values()), default=0)

    def x_of(x: float) -> float:
        return LEFT + (x - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    for tick in ticks:
        y = y_of(tick)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in _ticks(first, last, whole=True):
        if first <= tick <= last:
            yield f'<text x="{x_of(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">epoch</text>'
    yield f'<text x="{LEFT}" y="{TOP - 6}">{name}</text>'
    for end in ends:
        yield f'<path d="M{x_of(end):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="gray" stroke-dasharray="2 3"/>'
    for place, (part, points) in enumerate(curves.items()):
        way = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        marked = points if len(points) <= MOST_DOTS else []
        dots = "".join(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2"/>' for x, y in marked)
        yield f'<polyline points="{way}" fill="none" stroke="{COLOURS[part]}" stroke-width="1.5"/>'
        yield f'<g fill="{COLOURS[part]}">{dots}<text x="{WIDTH - 100 + 32 * place}" y="{TOP - 6}">{part}</text></g>'


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Choose about five round numbers that enclose a range."""
    rough = (high - low or abs(high) or 1.0) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
