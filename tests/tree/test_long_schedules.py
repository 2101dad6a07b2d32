"""Schedules of thousands of stages: short for people, whole in the record, without recursion anywhere."""

import io
import json
import time

import pytest
import trunks
from rich.console import Console
from stores import run

from stagetree.planning import drawing
from stagetree.report import history
from stagetree.tracking import connection
from stagetree.tree.notation import WRITTEN_OUT, brief, short
from stagetree.tree.runs import canonical_json
from stagetree.tree.stage_tree import StageTree

N = 10_000
STAGES = [[1, 1 / (k + 2)] for k in range(N)]


def recorded(name, stages, **changes):
    """As runs are recorded now."""
    epochs, lrs = zip(*stages, strict=True)
    tags = connection.in_pieces("stagetree.stages", canonical_json(stages)) if len(stages) > WRITTEN_OUT else {}
    return run(name, lrs=brief(lrs), epochs=brief(epochs), tags=tags, metrics={"test/acc": 0.5}, **changes)


def test_a_long_list_is_short_for_people_and_another_for_other_values():
    lists = [
        [0.1] * N,
        [0.1] * (N - 1),
        [*[0.1] * 5_000, 0.2, *[0.1] * 4_999],
        [*[0.1] * 5_000, 0.1 + 1e-16, *[0.1] * 4_999],
    ]
    texts = [brief(values) for values in lists]
    assert len(set(texts)) == 4
    assert max(map(len, texts)) < 100
    assert brief([1, 2]) == [1, 2]
    assert [short(value) for value in (0.1, 1e-5, 20, 0.1234567, 0.1 + 1e-16)] == [
        "0.1", "1e-05", "20", "0.1234567", repr(0.1 + 1e-16),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "length", [0, 1, connection.LONGEST_TAG, connection.LONGEST_TAG + 1, 12 * connection.LONGEST_TAG]
)
def test_a_text_of_any_length_is_whole_in_tags(length):
    text = "é" * length
    tags = connection.in_pieces("a.command", text)
    assert max(map(len, tags.values())) <= connection.LONGEST_TAG
    assert connection.joined(tags, "a.command") == text
    assert connection.joined(tags, "another") is None


def test_long_schedules_are_read_as_they_are_and_were_recorded(load):
    """Earlier versions wrote lists out, which MLflow cut at 6,000 characters."""
    old = run("old", lrs=[lr for _, lr in STAGES[:100]], epochs=[1] * 100, metrics={"test/acc": 0.4})
    cut = run("cut", lrs=str([lr for _, lr in STAGES])[:6000], epochs=str([1] * N)[:6000], metrics={"test/acc": 0.3})
    frame = load(recorded("new", STAGES), recorded("same", STAGES[:100]), old, cut, recorded("few", STAGES[:3]))
    known = frame.set_index("run_name")
    assert json.loads(known.loc["new", "stages"]) == STAGES
    assert (
        known.loc["old", ["lrs", "epochs", "stages"]].tolist()
        == known.loc["same", ["lrs", "epochs", "stages"]].tolist()
    )
    assert known["stages"].isna().tolist() == [name == "cut" for name in known.index]
    assert known["lrs"].str.len().drop("cut").max() < 150
    known = frame.set_index("run_id")
    none = {run_id: {} for run_id in known.index}
    started = time.monotonic()
    (trunk,) = history.tree(known, none, "test_acc")
    assert sum(len(json.dumps(part)) for part in trunk["children"]) < 5_000
    assert time.monotonic() - started < 10  # half a second on a quiet machine
    assert len(history.curves(known, none)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("ends", [(N,), range(1, 2_000), (10, 5_000, N)], ids=["one", "each stage ends a run", "three"])
def test_a_long_tree_is_drawn_in_a_screen(ends):
    tree = StageTree.build(trunks.run(*STAGES[:end]) for end in ends)
    console = Console(file=io.StringIO(), width=200)
    console.print(drawing.draw(tree, {trunks.trunk(): "t"}))
    assert len(console.file.getvalue().splitlines()) < 50
