"""Learning curves as SVG: read back with an XML parser."""

import math
from xml.etree import ElementTree

import pytest

from stagetree.tracking.curves import draw

SVG = "{http://www.w3.org/2000/svg}"


def points(root, which):
    line = root.findall(f".//{SVG}polyline")[which]
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_a_line_for_each_part_and_one_at_each_stage_end():
    history = [{"epoch": 0, "val/loss": 2.3, "val/acc": 0.1}]
    history += [{"epoch": e, f"{p}/loss": 2 / e, f"{p}/acc": e / 9} for e in (1, 2, 3, 4) for p in ("train", "val")]
    root = ElementTree.fromstring(draw("a < b & c", history, [2, 1, 1]))
    assert root.findall(f".//{SVG}text")[0].text == "a < b & c"
    assert len(root.findall(f".//{SVG}polyline")) == 4
    assert sum("stroke-dasharray" in path.attrib for path in root.iter(f"{SVG}path")) == 2 * 2
    loss, accuracy = points(root, 1), points(root, 3)
    assert [x for x, _ in loss] == sorted(x for x, _ in loss)
    assert loss[0][1] < loss[-1][1], "a falling loss must go down the picture"
    assert accuracy[0][1] > accuracy[-1][1]
    assert all(0 <= x <= 360 and 0 <= y <= 210 for line in range(4) for x, y in points(root, line))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_curve_that_diverged_is_left_out(value):
    history = [{"epoch": e, "train/loss": value if e == 2 else 1.0, "train/acc": 0.5} for e in (1, 2)]
    root = ElementTree.fromstring(draw("diverged", history, [2]))
    assert len(root.findall(f".//{SVG}polyline")) == 1


def test_one_epoch_and_no_epoch_are_drawn():
    for history in ([], [{"epoch": 1, "train/loss": 0.0, "train/acc": 1.0}]):
        root = ElementTree.fromstring(draw("short", history, [1]))
        assert {text.text for text in root.iter(f"{SVG}text")} >= {"loss", "accuracy", "epoch"}


def test_a_long_curve_has_no_dots():
    history = [{"epoch": e, "train/loss": 1 / e, "train/acc": 0.5} for e in range(1, 1001)]
    assert "<circle" not in draw("long", history, [1000])
    assert "<circle" in draw("short", history[:50], [50])
