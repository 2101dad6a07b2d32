"""Follows a sweep's event logs while it trains, for MLflow and for the person who waits."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stagetree.redact import redact
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import Event

if TYPE_CHECKING:
    from stagetree.tracking.tracker import Tracker

POLL_S = 0.5
DRAIN_S = 0.05
AT_ONCE = 4
"""Number of runs written to a server at a time, since each takes ten requests that wait for answers. MLflow's server
refuses requests when its 15 database connections a process run out, which many sweeps at once may cause."""
HURRY_S = 0.3
"""Time for MLflow when everything must end at once; the next start writes the rest."""


class Listener(Protocol):
    """Shows a person the progress of a sweep; a context manager around the training."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: Any) -> None: ...

    def on_event(self, event: Event) -> None:
        """Take one event of the sweep's logs."""

    def note(self, text: str) -> None:
        """Show a remark that reports no failure."""

    def recording(self, backlog: int) -> None:
        """Show the number of writes that MLflow still waits for after training."""

    def refresh(self) -> None:
        """Show the news since the last call."""


class EventFollower:
    """A thread that reads events as they come; use as a context manager around the training.

    Training goes on while tracking is down: whatever could not be written is written at the end, or by the next start
    of the same sweep.

    Args:
        events: folder of the logs.
        listener: receives every event.
        open_tracker: connects to MLflow, to write so many runs at a time. It is called in the thread, as importing
            MLflow takes seconds.
    """

    def __init__(self, events: Path, listener: Listener, open_tracker: Callable[[int], "Tracker"]):
        self._events = events
        self._listener = listener
        self._open_tracker = open_tracker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._tracker: Tracker | None = None
        self._deadline = math.inf
        self.tracking_error: Exception | None = None
        """The error that keeps MLflow's records incomplete, if there is one when all is over."""

    def hurry(self) -> None:
        """End soon, even if some writes are left."""
        self._deadline = time.monotonic() + HURRY_S
        self._stop.set()

    @property
    def _hurries(self) -> bool:
        return self._deadline < math.inf

    def __enter__(self) -> "EventFollower":
        self._listener.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join(max(0.0, self._deadline - time.monotonic()) + 0.05 if self._hurries else None)
        self._listener.__exit__()

    def _follow(self) -> None:
        reader = EventReader(self._events, on_damage=lambda error: self._listener.note(str(error)))
        try:
            self._tracker = self._open_tracker(AT_ONCE)
        except Exception as error:
            self.tracking_error = error
        while True:
            ending = self._stop.is_set()  # asked before reading, so that the last events are seen
            for event in reader.read():
                if self._hurries:
                    break
                self._listener.on_event(event)
                self._track(lambda tracker, event=event: tracker.on_event(event))
            self._listener.refresh()
            self._track(lambda tracker: tracker.flush())
            if ending:
                break
            self._stop.wait(POLL_S)
        self._finish()

    def _track(self, write: Callable[["Tracker"], None]) -> None:
        """Write to MLflow, unless it failed before."""
        tracker = self._tracker
        if self.tracking_error is None and tracker is not None:
            self._try(lambda: write(tracker))

    def _try(self, call: Callable[[], None]) -> None:
        """Call what may fail since MLflow does, and say so."""
        try:
            call()
        except Exception as error:
            self.tracking_error = error
            self._listener.note(
                f"tracking failed: {in_a_line(error)}\n(training goes on; what is missing is written at the end)"
            )

    def _finish(self) -> None:
        """Write the rest; after an outage write everything again from the logs, which doubles nothing."""
        if self._hurries:
            self._track(lambda tracker: tracker.stop(self._deadline))
            return
        self._drain()
        if self.tracking_error is not None:
            self.tracking_error = None
            self._try(self._reconnect)
        self._track(lambda tracker: tracker.catch_up())
        self._drain()
        self._track(lambda tracker: tracker.close())

    def _drain(self) -> None:
        """Wait for the writes that are on their way to MLflow."""
        while True:
            self._track(lambda tracker: tracker.flush())
            if self.tracking_error is not None or self._tracker is None:
                break
            self._listener.recording(self._tracker.backlog)
            if not self._tracker.backlog:
                break
            time.sleep(DRAIN_S)

    def _reconnect(self) -> None:
        if self._tracker is not None:
            self._tracker.abandon()
        self._tracker = self._open_tracker(1)  # patiently
        for event in EventReader(self._events, on_damage=lambda _: None).read():
            self._tracker.on_event(event)


def in_a_line(error: Exception) -> str:
    """Shorten a store's error to a line, without the SQL statement and its values that SQLAlchemy adds."""
    before, sql, _ = str(error).partition("[SQL:")
    lines = before.strip().splitlines() or [type(error).__name__]
    return redact(lines[-1] if sql else lines[0])
