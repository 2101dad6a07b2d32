"""End a sweep in good order: signals reach the workers, and no worker outlives the launching process.

A file named `stop` in the launch's folder asks its workers to keep their states and return: that works with every
launcher. A launching process that dies says nothing, but holds its lock no longer.
"""

import _thread
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stagetree.errors import Stopped
from stagetree.storage.locks import Locks

LOOK_EVERY_S = 0.1
PATIENCE_S = 0.9
"""Seconds from the first signal until workers that have not returned are killed; all ends within two seconds."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The launching process got a signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def stop_asked(folder: Path) -> bool:
    """Return whether a launch is asked to end."""
    return (folder / "stop").exists()


def is_launching(folder: Path, locks: Locks) -> bool:
    """Whether the launching process of a launch lives."""
    return not locks.is_free(_lock_name(folder))


def _lock_name(folder: Path) -> str:
    return f"launch {folder.name} {folder.parent.name}"


@contextlib.contextmanager
def hold_unit(folder: Path, unit_id: str, locks: Locks) -> Iterator[None]:
    """Hold a lock while a unit is trained: on a cluster, its launching process may be gone by then."""
    locks.take(_unit_lock(folder, unit_id))
    try:
        yield
    finally:
        locks.release(_unit_lock(folder, unit_id))


def is_unit_held(folder: Path, unit_id: str, locks: Locks) -> bool:
    """Whether a worker trains a unit."""
    return not locks.is_free(_unit_lock(folder, unit_id))


def _unit_lock(folder: Path, unit_id: str) -> str:
    return f"unit {unit_id} of {_lock_name(folder)}"


# ---------------------------------------------------------------- the launching process

_launching = False


class LaunchingProcess:
    """Handles signals and holds the launch's lock while the launching process trains; use as a context manager.

    The first SIGINT, SIGTERM or SIGHUP asks the workers to save their states and return; the second, or the end of
    `PATIENCE_S`, raises `Interrupted` in the main thread, upon which launchers kill their workers.

    Args:
        folder: of the launch.
        locks: of the store.
        on_signal: called at the first signal.
    """

    def __init__(self, folder: Path, locks: Locks, on_signal: Callable[[], None]):
        self.folder, self.locks, self._tell = folder, locks, on_signal
        self.signal: int | None = None
        self._timer: threading.Timer | None = None
        self._before = {}

    def __enter__(self) -> "LaunchingProcess":
        global _launching
        _launching = True
        self.locks.take(_lock_name(self.folder))
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        global _launching
        _launching = False
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.locks.release(_lock_name(self.folder))

    def _on_signal(self, number: int, _) -> None:
        if self.signal is not None:
            raise Interrupted(self.signal)
        self.signal = number
        # not print, since the signal may have interrupted one
        os.write(2, b"stopping: states are kept (once more: at once)\n")
        with contextlib.suppress(OSError):  # on a full disk they are killed instead
            (self.folder / "stop").touch()
        self._tell()
        self._timer = threading.Timer(PATIENCE_S, _thread.interrupt_main, [number])
        self._timer.daemon = True
        self._timer.start()


# ---------------------------------------------------------------- workers


class StopWatcher:
    """Tells a worker when to stop: asked by the file, by SIGTERM, or by the end of its launching process.

    Args:
        folder: of the launch.
        locks: of the store.
        launcher: host of the launching process; locks are asked on the same host alone, since not every shared
            folder passes locks on. Empty: there is none to watch.
    """

    def __init__(self, folder: Path, locks: Locks, launcher: str):
        self._folder, self._locks = folder, locks
        self._watches_launcher = launcher == socket.gethostname() and not _launching
        self._active = False
        self._signal: int | None = None
        self.reason = ""

    def check(self) -> None:
        """Raise `Stopped` if it is time to stop."""
        if self.reason:
            raise Stopped(self.reason)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Watch while a unit trains; afterwards, end this process when the launching process ends."""
        global _current, _thread_that_looks
        self._active = True
        _current = self
        if (
            _thread_that_looks is None or not _thread_that_looks.is_alive()
        ):  # a forked process lacks its parent's threads
            _thread_that_looks = threading.Thread(target=_keep_looking, name="stopping", daemon=True)
            _thread_that_looks.start()
        handlers = _to_replace()
        for number in handlers:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            self._active = False
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._signal is not None:
                _pass_on(self._signal)  # states are saved, so the signal may take effect now

    def _on_signal(self, number: int, _) -> None:
        self._signal, self.reason = number, signal.Signals(number).name

    def look(self) -> None:
        """Find out whether it is time to stop."""
        if stop_asked(self._folder):
            self.reason = "asked to stop"
        elif self._watches_launcher and self._locks.is_free(_lock_name(self._folder)):
            self.reason = "the launching process is gone"
            if not self._active:
                os._exit(1)  # nobody waits for this worker any more


def _to_replace() -> dict[int, Any]:
    """The signals upon which a worker keeps its states, with their handlers.

    These are SIGTERM and SIGHUP where they would end the process, and SIGUSR1 and SIGUSR2 where an engine such as
    submitit handles them as the announcement of a preemption. An engine that handles SIGTERM keeps its handler.
    """
    if _launching or threading.current_thread() is not threading.main_thread():
        return {}
    ending: dict[int, Any] = {
        n: signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL
    }
    announcing = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2) if callable(signal.getsignal(n))}
    return {**ending, **announcing}


def _pass_on(number: int) -> None:
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)
    else:
        os.kill(os.getpid(), number)


_current: StopWatcher | None = None
_thread_that_looks: threading.Thread | None = None


def _keep_looking() -> None:
    while True:
        time.sleep(LOOK_EVERY_S)
        if _current is not None:
            _current.look()


def ignore_ctrl_c() -> None:
    """In a worker, ignore SIGINT: a terminal sends it to all processes, and the launching one stops the others."""
    if not _launching and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
