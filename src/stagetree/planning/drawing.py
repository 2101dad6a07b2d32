"""Draw a plan in a terminal: branches that differ in their learning rates alone are one line."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from stagetree.planning.summary import PlanSummary
from stagetree.tree.notation import short
from stagetree.tree.runs import Trunk
from stagetree.tree.stage_tree import LONGEST_CHAIN, Node, StageTree

MOST_LRS, MOST_NAMES = 8, 3
"""The most learning rates and names in one line."""
MOST_LINES, DEEPEST = 40, 30


def show(plan: PlanSummary, tree: StageTree, names: Mapping[Trunk, str], console: Console) -> None:
    """Print a plan's counts, the tree that is left to train, and its estimated cost.

    Args:
        plan: its counts.
        tree: left to train.
        names: of each run without its schedule, by trunk.
        console: to print to.
    """
    to_train = len(plan.runs) - plan.finished
    saved = 1 - plan.epochs_distinct / plan.epochs_asked
    lines = [
        f"sweep {plan.sweep}: {plan.points} points, {plan.duplicates} duplicates, "
        f"{plan.finished} finished, {to_train} to train",
        f"epochs: {plan.epochs_asked} asked for, {plan.epochs_distinct} after sharing prefixes "
        f"({saved:.0%} saved), {plan.epochs_to_train} to train",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    if not tree.roots:
        return
    console.print(draw(tree, names), highlight=False)
    waiting = sum(bool(unit.after) for unit in plan.units)
    line = f"units: {len(plan.units)} for {plan.workers} worker{'s' * (plan.workers > 1)}"
    line += f" ({waiting} wait for others)" if waiting else ""
    if plan.largest_pack is not None:
        line += f", packs of up to {plan.largest_pack}"
    line += f"; {format_size(plan.estimated_bytes)} on disk"
    if plan.estimated_seconds is not None:
        line += f"; {format_duration(plan.estimated_seconds)}, by what this machine was measured to train"
    console.print(line, highlight=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Write a time as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def format_size(n_bytes: float) -> str:
    """Write a size as `3 MB` or `1.2 GB`."""
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def draw(tree: StageTree, names: Mapping[Trunk, str]) -> Tree:
    """Draw what is to be trained; trunks that look alike are one branch.

    Args:
        tree: left to train.
        names: of each run without its schedule, by trunk.
    """
    trunks: dict[Trunk, list[Node]] = {}
    for root in tree.roots:
        trunks.setdefault(root.trunk, []).append(root)
    forms = _forms(tree)
    alike: dict[tuple, list[Trunk]] = {}
    for trunk, roots in trunks.items():
        alike.setdefault(tuple(sorted(forms[id(root)][0] for root in roots)), []).append(trunk)
    drawn = Tree("", hide_root=True, guide_style="dim")
    left = MOST_LINES
    for members in alike.values():
        if left <= 0:
            drawn.add(Text(f"and {len(alike) - len(drawn.children)} more trees", style="dim"))
            break
        branch = drawn.add(Text(_listed([names[trunk] for trunk in members], MOST_NAMES)))
        left -= 1 + _add(branch, [trunks[trunk] for trunk in members], forms)
    return drawn


Forms = Mapping[int, tuple[int, int]]
"""For each node, by its `id`, a number for the form of its subtree, and one for the form without its own lr."""


def _add(drawn: Tree, places: Sequence[Sequence[Node]], forms: Forms) -> int:
    """Add a line for each group of siblings that differ only in lr, and return the number of lines.

    Args:
        drawn: the branch of the drawing.
        places: the siblings, once for each of several places of the tree that look alike.
        forms: of all nodes.
    """
    lines = 0
    waiting = [(drawn, places, 1)]
    while waiting:
        branch, same, depth = waiting.pop()
        if depth > DEEPEST:
            branch.add(Text("and more below", style="dim"))
            continue
        groups: dict[int, list[Node]] = {}
        for node in same[0]:
            groups.setdefault(forms[id(node)][1], []).append(node)
        for members in groups.values():
            chains = [node.chain() for node in members]
            chains = chains if len(chains[0]) > LONGEST_CHAIN else [chain[:1] for chain in chains]
            ends = [chain[-1] for chain in chains]
            below = branch.add(_line(chains, len(members) * len(same)))
            lines += 1
            if ends[0].children:
                waiting.append((below, [node.children for node in ends] * len(same), depth + 1))
    return lines


def _line(chains: Sequence[Sequence[Node]], count: int) -> Text:
    """Write the line of chains that differ only in their first learning rate and stand at `count` places."""
    first, last = chains[0][0], chains[0][-1]
    epochs = sum(node.epochs for node in chains[0])
    more = "" if first.starts_stage else " more"
    stages = f" in {len(chains[0]):,} stages" if first is not last else ""
    lrs = _listed([short(chain[0].lr) for chain in chains], MOST_LRS) + (f" to {short(last.lr)}" if stages else "")
    words = f"{epochs} epoch{'s' * (epochs != 1)}{more}{stages} at {lrs}"
    text = Text(words if epochs else "only the final metrics")
    if last.final:
        text.append(f"  {count} run{'s' * (count != 1)}", style="green")
    return text


def _forms(tree: StageTree) -> Forms:
    """Number the forms of all subtrees: those that look alike have equal numbers."""
    numbers: dict[tuple, int] = {}
    forms: dict[int, tuple[int, int]] = {}
    for node in reversed(list(tree.walk())):  # children before their parents
        below = tuple(sorted(forms[id(child)][0] for child in node.children))
        parts = (node.epochs, node.starts_stage, node.final, below)
        own, without_lr = (numbers.setdefault(form, len(numbers)) for form in ((*parts, node.lr), parts))
        forms[id(node)] = own, without_lr
    return forms


def _listed(values: Sequence[str], most: int) -> str:
    """Write `a, b, c`, or the first of them and how many there are."""
    if len(values) <= most:
        return ", ".join(values)
    return f"{', '.join(values[: most - 1])} and {len(values) - most + 1} more"
