"""Make slow calls in threads that do not hold up the end of the process."""

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Threads:
    """Makes calls in threads of its own, in the order in which they were submitted.

    `concurrent.futures.ThreadPoolExecutor` does so too, but delays the end of the process until its last call has
    returned, which takes minutes if a server is gone.

    Args:
        count: calls that are under way at a time.
    """

    def __init__(self, count: int):
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._count = count
        self._started = 0

    def submit(self, call: Callable[[], Any]) -> Future:
        """Make a call soon. This method may only be called from one thread."""
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._work, daemon=True).start()
        future: Future = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """Drop the calls that were not begun, and end the threads once the others have returned."""
        with contextlib.suppress(queue.Empty):
            while waiting := self._calls.get_nowait():
                waiting[0].cancel()
                waiting[0].set_running_or_notify_cancel()  # without, `wait` would wait for it
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while waiting := self._calls.get():
            future, call = waiting
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
