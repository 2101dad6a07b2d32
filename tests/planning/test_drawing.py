"""The stage tree in the terminal: what is drawn is what is trained."""

import io
import re

import pytest
import trunks
from rich.console import Console

from stagetree.planning import drawing
from stagetree.tree.stage_tree import Finished, StageTree


def run(*stages, trunk="a"):
    return trunks.run(*stages, data=trunk)


def lines(tree):
    names = {root.trunk: root.trunk.data for root in tree.roots}
    console = Console(file=io.StringIO(), width=100)
    console.print(drawing.draw(tree, names))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_branches_that_differ_in_their_lr_alone_are_one_line():
    tree = StageTree.build(run((2, a), (1, b)) for a in (0.1, 0.2) for b in (0.01, 0.02, 0.05))
    assert lines(tree) == [
        "a",
        "└── 2 epochs at 0.1, 0.2",
        "    └── 1 epoch at 0.01, 0.02, 0.05  6 runs",
    ]


def test_what_differs_is_drawn_apart():
    tree = StageTree.build([run((2, 0.1), (1, 0.01)), run((3, 0.1)), run((2, 0.2), (1, 0.02))])
    assert lines(tree) == [
        "a",
        "├── 2 epochs at 0.1",
        "│   ├── 1 epoch at 0.01  1 run",
        "│   └── 1 epoch more at 0.1  1 run",
        "└── 2 epochs at 0.2",
        "    └── 1 epoch at 0.02  1 run",
    ]


def test_trunks_that_look_alike_are_one():
    tree = StageTree.build(run((2, 0.1), (1, b), trunk=f"seed {k}") for k in range(5) for b in (0.01, 0.02))
    assert lines(tree) == [
        "seed 0, seed 1 and 3 more",
        "└── 2 epochs at 0.1",
        "    └── 1 epoch at 0.01, 0.02  10 runs",
    ]


def test_what_is_finished_is_left_out():
    first, second = run((2, 0.1), (1, 0.01)), run((2, 0.1), (1, 0.02))
    prefix = StageTree.build([first]).roots[0].uid
    done = Finished(states={prefix, first.uid}, tested={first.uid})
    assert lines(StageTree.build([first, second]).remaining(done)) == ["a", "└── 1 epoch at 0.02  1 run"]
    assert lines(StageTree.build([first]).remaining(Finished(states={first.uid, prefix}))) == [
        "a",
        "└── only the final metrics  1 run",
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_runs_of_all_lines_are_the_runs_of_the_sweep(seeds):
    runs = [
        run(*schedule, trunk=str(seed))
        for seed in range(seeds)
        for schedule in ([(1, 0.1)], [(2, 0.1), (1, 0.2)], [(2, 0.1), (1, 0.3), (4, 0.1)], [(2, 0.2), (1, 0.3)])
    ]
    counts = re.findall(r"(\d+) runs?$", "\n".join(lines(StageTree.build(runs))), re.MULTILINE)
    assert sum(map(int, counts)) == len(runs)


def test_a_wild_tree_is_cut():
    runs = [run((k + 1, 0.1), (1, 0.2), trunk=str(k)) for k in range(100)]
    drawn = lines(StageTree.build(runs))
    assert len(drawn) < 50
    assert re.fullmatch(r"and \d+ more trees", drawn[-1])
