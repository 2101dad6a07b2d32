"""Calls in the background: their order, their errors, and their end."""

import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from stagetree.tracking.threads import Threads


def test_one_thread_makes_calls_in_their_order():
    seen = []
    threads = Threads(1)
    calls = [threads.submit(lambda number=number: seen.append(number)) for number in range(100)]
    calls[-1].result()
    assert seen == list(range(100))


def test_so_many_calls_are_under_way_at_a_time():
    together = threading.Barrier(4)
    threads = Threads(4)
    for call in [threads.submit(together.wait) for _ in range(4)]:
        call.result(60)


def test_what_a_call_raises_is_its_own():
    threads = Threads(1)
    failed, fine = threads.submit(lambda: 1 / 0), threads.submit(lambda: 7)
    assert fine.result() == 7
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_calls_that_were_not_begun_can_be_dropped():
    begun, go_on = threading.Event(), threading.Event()
    threads = Threads(1)

    def hold():
        begun.set()
        go_on.wait()

    first, second = threads.submit(hold), threads.submit(hold)
    begun.wait()
    threads.stop()
    go_on.set()
    assert wait([first, second], 60).not_done == set()
    assert second.cancelled()


def test_the_end_of_the_process_waits_for_none():
    code = "from stagetree.tracking.threads import Threads; import time; Threads(2).submit(lambda: time.sleep(1000))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
