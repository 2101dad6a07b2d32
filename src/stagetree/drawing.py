"""The stage tree as people read it in a terminal: branches that differ in their learning rates alone are one line."""

from collections.abc import Mapping, Sequence
from itertools import chain

from rich.text import Text
from rich.tree import Tree

from stagetree.plan import Node, StageTree

MOST_LRS, MOST_NAMES = 8, 3
"""In one line."""
MOST_LINES = 40


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
