"""What a person sees while a sweep trains, from its events alone: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Counts epochs and runs; use as a context manager.

    Args:
        epochs: to train.
        names: of the runs to train, by the uid of their final state.
    """

    def __init__(self, *, epochs: int, names: Mapping[str, str]):
        self.console = Console(stderr=True)
        self._names = names
        self._epochs = epochs
        self._done = self._failed = 0
        self._runs: set[str] = set()
        self._started = self._printed = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
                   TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self._task = self._bar.add_task(self._status(), total=epochs)

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the sweep's logs."""
        if event["kind"] == "epoch" and event["epoch"] > 0:
            self._done += 1
        elif event["kind"] == "done":
            self._runs |= {event["uid"]} & self._names.keys()
        elif event["kind"] == "failed":
            self._failed += 1
            name = self._names.get(event["uid"], "a shared prefix")
            self.console.print(f"[red]failed[/red] {escape(name)}: {escape(event['reason'])}", highlight=False)
        elif event["kind"] == "damaged":
            self.note(f"{event['reason']}; its epochs are trained again")
        elif event["kind"] == "waiting":
            self.note(f"another process trains {len(event['uids'])} of these states; they are taken over when done")

    def note(self, text: str) -> None:
        """Print what is worth knowing and no failure."""
        self.console.print(text, style="yellow", markup=False, highlight=False)

    def refresh(self) -> None:
        """Show what is new; on a terminal at once, elsewhere a line now and then."""
        self._bar.update(self._task, completed=self._done, description=self._status())
        now = time.monotonic()
        if not self.console.is_terminal and now - self._printed >= LINE_EVERY_S:
            self._printed = now
            rate = self._done / (now - self._started)
            line = f"{self._status()}  {self._done}/{self._epochs} epochs  {rate:.2f} epochs/s"
            self.console.print(line, highlight=False)

    def _status(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{len(self._runs)}/{len(self._names)} runs done{failed}"
