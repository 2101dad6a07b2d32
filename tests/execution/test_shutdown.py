"""Signals to real processes: what the launching process makes of them, and its workers."""

import signal
import socket
import subprocess
import sys
import time

import pytest
from sweeps import PATIENCE_S

from stagetree.execution import shutdown
from stagetree.storage.locks import output_dir_locks

COMMON = """
import signal, sys, time
from pathlib import Path
from stagetree.errors import Stopped
from stagetree.execution.shutdown import Interrupted, LaunchingProcess, StopWatcher
from stagetree.execution.shutdown import ignore_ctrl_c, hold_unit
from stagetree.storage.locks import output_dir_locks
folder = Path(sys.argv[1])
locks = output_dir_locks(folder)
def say(*words):
    print(*words, flush=True)
"""
LAUNCHER = """
try:
    with LaunchingProcess(folder, locks, lambda: say("told")) as launching:
        say("ready")
        while not (folder / "workers have returned").exists():
            time.sleep(0.01)
    say("returned after", signal.Signals(launching.signal).name)
except Interrupted as interrupted:
    say("interrupted", interrupted, interrupted.exit_code)
say("handler", signal.getsignal(signal.SIGTERM).name)
"""
WORKER = """
watch = StopWatcher(folder, locks, sys.argv[2])
try:
    with watch.active():
        say("ready")
        try:
            while True:
                watch.check()
                time.sleep(0.01)
        finally:
            say("states kept")
except Stopped as stopped:
    say("stopped:", stopped)
"""
IDLE_WORKER = """
with StopWatcher(folder, locks, sys.argv[2]).active():
    pass
say("ready")
time.sleep(600)
"""


def signals_as_usual():
    """A suite that runs in the background, or under nohup, has some ignored, and its children inherit that."""
    for number in shutdown.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path):
    """Start a script in the folder of a launch, wait until it is ready, and end it with the test."""
    processes = []

    def started(script, launcher=""):
        command = [sys.executable, "-c", COMMON + script, str(tmp_path), launcher]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, preexec_fn=signals_as_usual, **pipes))
        assert processes[-1].stdout.readline() == "ready\n", processes[-1].stderr.read()
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def end(process):
    """What a process said until its end, and its exit status."""
    said, _ = process.communicate(timeout=PATIENCE_S)
    return said.splitlines(), process.returncode


# ---------------------------------------------------------------- the launching process


@pytest.mark.parametrize("number", shutdown.SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_asks_workers_to_return_and_the_second_ends_all_at_once(start, tmp_path, number):
    process = start(LAUNCHER)
    assert not shutdown.stop_asked(tmp_path)
    process.send_signal(number)
    assert process.stdout.readline() == "told\n"
    assert shutdown.stop_asked(tmp_path)
    process.send_signal(number)
    assert end(process) == ([f"interrupted {number.name} {128 + number}", "handler SIG_DFL"], 0)


def test_workers_that_do_not_return_are_ended_soon(start):
    process = start(LAUNCHER)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert end(process)[0] == ["told", "interrupted SIGTERM 143", "handler SIG_DFL"]
    assert time.monotonic() - began >= shutdown.PATIENCE_S * 0.9  # the signal took a moment


def test_workers_that_return_end_a_sweep_in_good_order(start, tmp_path):
    process = start(LAUNCHER)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "workers have returned").touch()
    assert end(process)[0] == ["told", "returned after SIGTERM", "handler SIG_DFL"]


def test_nohup_is_respected(start, tmp_path):
    process = start("signal.signal(signal.SIGHUP, signal.SIG_IGN)" + LAUNCHER)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "workers have returned").touch()
    assert end(process)[0] == ["told", "returned after SIGTERM", "handler SIG_DFL"]


def test_a_launch_is_known_to_live_until_it_is_killed(start, tmp_path):
    locks = output_dir_locks(tmp_path)
    assert not shutdown.is_launching(tmp_path, locks)
    process = start(LAUNCHER)
    assert shutdown.is_launching(tmp_path, locks)
    process.kill()
    process.wait()
    assert not shutdown.is_launching(tmp_path, locks)


# ---------------------------------------------------------------- workers


def test_a_worker_returns_when_it_is_asked_to(start, tmp_path):
    process = start(WORKER)
    (tmp_path / "stop").touch()
    assert end(process) == (["states kept", "stopped: asked to stop"], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_a_worker_once_its_states_are_kept(start, number):
    process = start(WORKER)
    process.send_signal(number)
    assert end(process) == (["states kept"], -number)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=lambda number: number.name)
def test_an_announced_preemption_reaches_the_engine_once_states_are_kept(start, number):
    """Engines such as submitit have a handler for it, which submits the job again."""
    process = start(f"signal.signal({number}, lambda *_: say('submitted again'))" + WORKER)
    process.send_signal(number)
    assert end(process) == (["states kept", "submitted again", f"stopped: {number.name}"], 0)


def test_an_engine_that_handles_sigterm_itself_goes_on_doing_so(start, tmp_path):
    process = start("signal.signal(signal.SIGTERM, lambda *_: say('handled'))" + WORKER)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "handled\n"
    (tmp_path / "stop").touch()
    assert end(process) == (["states kept", "stopped: asked to stop"], 0)


def test_a_worker_ends_with_its_launching_process(start):
    launcher = start(LAUNCHER)
    here, elsewhere, outliving = (start(WORKER, host) for host in (socket.gethostname(), "elsewhere", ""))
    idle = start(IDLE_WORKER, socket.gethostname())
    launcher.kill()
    launcher.wait()
    assert end(here) == (["states kept", "stopped: the launching process is gone"], 0)
    assert end(idle) == ([], 1)
    time.sleep(3 * shutdown.LOOK_EVERY_S)
    assert (elsewhere.poll(), outliving.poll()) == (None, None)


def test_ctrl_c_is_left_to_the_launching_process(start, tmp_path):
    process = start("ignore_ctrl_c()" + WORKER)
    process.send_signal(signal.SIGINT)
    (tmp_path / "stop").touch()
    assert end(process) == (["states kept", "stopped: asked to stop"], 0)
    launcher = start(LAUNCHER.replace('say("ready")', 'ignore_ctrl_c(); say("ready")'))
    launcher.send_signal(signal.SIGINT)
    assert launcher.stdout.readline() == "told\n"


def test_a_unit_is_trained_until_its_worker_is_killed(start, tmp_path):
    locks = output_dir_locks(tmp_path)
    process = start("with hold_unit(folder, '0007', locks): say('ready'); time.sleep(600)")
    assert shutdown.is_unit_held(tmp_path, "0007", locks)
    assert not shutdown.is_unit_held(tmp_path, "0008", locks)
    process.kill()
    process.wait()
    assert not shutdown.is_unit_held(tmp_path, "0007", locks)
