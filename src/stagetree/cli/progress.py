"""Show the progress of a sweep from its events: live on a terminal, plain lines elsewhere."""

import heapq
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from stagetree.storage.events import (
    EpochEnded,
    Event,
    Failed,
    Note,
    PackBegan,
    StateDamaged,
    StateReached,
    Waiting,
)

if TYPE_CHECKING:
    from stagetree.planning.planner import Plan

LINE_EVERY_S = 10.0
LEADERS = 3


class ProgressDisplay:
    """Counts epochs and runs, and shows the leading runs; use as a context manager.

    Args:
        epochs: the number of epochs to train.
        names: the names of the runs to train, by the uid of their final state.
        quiet: print nothing but failures and warnings.
    """

    def __init__(self, *, epochs: int, names: Mapping[str, str], quiet: bool = False):
        self.console = Console(stderr=True)
        self._names, self._epochs, self._quiet = names, epochs, quiet
        self._done = self._failed = self._backlog = 0
        self._runs: set[str] = set()
        self._training: set[str] = set()
        self._metrics: dict[str, tuple[str, float, int]] = {}
        self._printed = time.monotonic()
        self.attach()
        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("epochs  {task.description}"), console=self.console
        )
        self._task = self._bar.add_task("", total=epochs)
        shown = self.console.is_terminal and not quiet
        # `refresh` alone draws it: a thread would read values while `on_event` changes them
        live = Live(get_renderable=self._render, console=self.console, transient=True, auto_refresh=False)
        self._live = live if shown else None

    @classmethod
    def of_plan(cls, plan: "Plan") -> "ProgressDisplay":
        """Make the display for the training that a plan leaves to do."""
        waiting = {node.uid for node in plan.tree.walk()}
        names = {entry.uid: entry.name for entry in plan.entries if entry.uid in waiting}
        return cls(epochs=plan.tree.epochs, names=names, quiet=plan.config.quiet)

    def attach(self) -> None:
        """Measure the speed from here on, since the events read so far are older."""
        self._began, self._before = time.monotonic(), self._done

    def __enter__(self) -> "ProgressDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def on_event(self, event: Event) -> None:
        """Count one event of the sweep's logs, or print it."""
        match event:
            case PackBegan(uids):
                self._training |= set(uids)
            case EpochEnded(uid, line) if event.epoch > 0:
                self._done += 1
                part = "val/acc" if "val/acc" in line else "train/acc"
                if uid in self._names:
                    self._metrics[uid] = (part, line[part], event.epoch)
            case StateReached(uid):
                self._training.discard(uid)
                self._runs |= {uid} & self._names.keys()
            case Failed(uid, reason):
                self._training.discard(uid)
                self._metrics.pop(uid, None)
                self._failed += 1
                name = self._names.get(uid, "a shared prefix")
                self.console.print(f"[red]failed[/red] {escape(name)}: {escape(reason)}", highlight=False)
            case StateDamaged(reason):
                self.note(f"{reason}; its epochs are trained again")
            case Note(text):
                self.note(text)
            case Waiting(uids):
                self.note(f"another process trains {len(uids)} of these states; they are taken over when done")

    def note(self, text: str) -> None:
        """Print a warning that is not a failure."""
        self.console.print(text, style="yellow", markup=False, highlight=False)

    def recording(self, backlog: int) -> None:
        """Show the number of runs that wait to be written to MLflow after training."""
        self._backlog = backlog
        self.refresh()

    def refresh(self) -> None:
        """Update the display; on a terminal at once, elsewhere with a line every `LINE_EVERY_S` seconds."""
        now = time.monotonic()
        if self._live:
            self._live.refresh()
        elif not self._quiet and now - self._printed >= LINE_EVERY_S:
            self._printed = now
            self.console.print(f"{self.status()}, {self._done}/{self._epochs} epochs{self._pace()}", highlight=False)

    def _render(self) -> Group:
        self._bar.update(self._task, completed=self._done, description=self.status() + self._pace())
        table = Table.grid(padding=(0, 2))
        for part, value, epoch, name in self._leaders():
            table.add_row("leading", f"{part} {value:.2%}", f"epoch {epoch}", escape(name), style="dim")
        return Group(self._bar, table)

    def _leaders(self) -> list[tuple[str, float, int, str]]:
        """The best so far, by validation accuracy if there is one: the test set is not for choosing."""
        best = heapq.nlargest(LEADERS, self._metrics.items(), key=lambda item: item[1][1])
        return [(*metrics, self._names[uid]) for uid, metrics in best]

    def status(self) -> str:
        """Describe how many runs are done, training or failed."""
        words = [f"{len(self._runs)}/{len(self._names)} runs done"]
        words += [f"{len(self._training)} training"] if self._training else []
        words += [f"{self._failed} failed"] if self._failed else []
        words += [f"{self._backlog} to record"] if self._backlog else []
        return ", ".join(words)

    def _pace(self) -> str:
        """Describe the speed and the time left, or return nothing before the first epoch ends."""
        seen, spent = self._done - self._before, time.monotonic() - self._began
        if not seen:
            return ""
        left = timedelta(seconds=round((self._epochs - self._done) * spent / seen))
        return f", {seen / spent:.2f} epochs/s, {left} left"
