"""A plan as people read it in a terminal: branches that differ in their learning rates alone are one line."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from stagetree.tree import Node, StageTree

MOST_LRS, MOST_NAMES = 8, 3
"""In one line."""
MOST_LINES = 40


def show(plan: Mapping[str, Any], tree: StageTree, names: Mapping[str, str], console: Console) -> None:
    """Print counts, the tree of what is left, and what training it takes.

    Args:
        plan: `Plan.summary`.
        tree: of what is left to train.
        names: of each run without its schedule, by trunk.
        console: where to.
    """
    to_train = len(plan["runs"]) - plan["finished"]
    saved = 1 - plan["epochs_distinct"] / plan["epochs_asked"]
    lines = [
        f"sweep {plan['sweep']}: {plan['points']} points, {plan['duplicates']} duplicates, "
        f"{plan['finished']} finished, {to_train} to train",
        f"epochs: {plan['epochs_asked']} asked for, {plan['epochs_distinct']} after sharing prefixes "
        f"({saved:.0%} saved), {plan['epochs_to_train']} to train",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    if not tree.roots:
        return
    console.print(draw(tree, names), highlight=False)
    waiting = sum(bool(unit["after"]) for unit in plan["units"])
    line = f"units: {len(plan['units'])} for {plan['workers']} worker{'s' * (plan['workers'] > 1)}"
    line += f" ({waiting} wait for others)" if waiting else ""
    if plan["largest_pack"] is not None:
        line += f", packs of up to {plan['largest_pack']}"
    line += f"; {size(plan['estimated_bytes'])} on disk"
    if plan["estimated_seconds"] is not None:
        line += f"; {duration(plan['estimated_seconds'])}, by what this machine was measured to train"
    console.print(line, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """`3 MB` or `1.2 GB`."""
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def draw(tree: StageTree, names: Mapping[str, str]) -> Tree:
    """Draw what is to be trained.

    Args:
        tree: of what is left to train.
        names: of each run without its schedule, by trunk.
    """
    trunks: dict[str, list[Node]] = {}
    for root in tree.roots:
        trunks.setdefault(root.trunk, []).append(root)
    alike: dict[tuple, list[str]] = {}
    for trunk, roots in trunks.items():
        alike.setdefault(tuple(sorted(_form(root, lr=True) for root in roots)), []).append(trunk)
    drawn = Tree("", hide_root=True, guide_style="dim")
    left = MOST_LINES
    for members in alike.values():
        if left <= 0:
            drawn.add(Text(f"and {len(alike) - len(drawn.children)} more trees", style="dim"))
            break
        branch = drawn.add(Text(_listed([names[trunk] for trunk in members], MOST_NAMES)))
        left -= 1 + _add(branch, [trunks[trunk] for trunk in members])
    return drawn


def _add(branch: Tree, same: Sequence[Sequence[Node]]) -> int:
    """Add a line for each group of siblings that differ in nothing but lr, and return how many lines were added.

    Args:
        branch: of the drawing.
        same: the siblings, once for each of several places of the tree that look alike.
    """
    siblings = same[0]
    groups: dict[tuple, list[Node]] = {}
    for node in siblings:
        groups.setdefault(_form(node, lr=False), []).append(node)
    lines = 0
    for members in groups.values():
        first = members[0]
        count = len(members) * len(same)
        more = "" if first.starts_stage else " more"
        lrs = _listed([f"{node.lr:g}" for node in members], MOST_LRS)
        words = f"{first.epochs} epoch{'s' * (first.epochs != 1)}{more} at {lrs}"
        text = Text(words if first.epochs else "only the final figures")
        if first.final:
            text.append(f"  {count} run{'s' * (count != 1)}", style="green")
        below = branch.add(text)
        lines += 1
        if first.children:
            lines += _add(below, list(chain([node.children for node in members] * len(same))))
    return lines


def _form(node: Node, *, lr: bool) -> tuple:
    """What a subtree looks like; with its own learning rate or without."""
    children = tuple(sorted(_form(child, lr=True) for child in node.children))
    return (node.epochs, node.starts_stage, node.final, node.lr if lr else 0.0, children)


def _listed(values: Sequence[str], most: int) -> str:
    """`a, b, c`, or the first of them and how many there are."""
    if len(values) <= most:
        return ", ".join(values)
    return f"{', '.join(values[: most - 1])} and {len(values) - most + 1} more"
