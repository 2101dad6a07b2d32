"""What is shown of a sweep, from its events: as lines, and on a terminal."""

import io
import os
import pty
import re
import subprocess
import termios

import pytest
import sweeps
from rich.console import Console

from stagetree.cli import progress
from stagetree.cli.progress import ProgressDisplay
from stagetree.storage.events import EpochEnded, Failed, PackBegan, StateReached

NAMES = {"a": "300 lr 0.1", "b": "300 lr 0.2", "c": "300 lr [red]"}
EVENTS = [
    PackBegan(("shared",), 2),
    EpochEnded("shared", {"epoch": 0, "val/acc": 0.99}),
    EpochEnded("shared", {"epoch": 1, "train/acc": 0.5, "val/acc": 0.98}),
    StateReached("shared"),
    PackBegan(
        (
            "a",
            "b",
            "c",
        ),
        1,
    ),
    EpochEnded("a", {"epoch": 2, "train/acc": 0.9, "val/acc": 0.81}),
    EpochEnded("b", {"epoch": 2, "train/acc": 0.8, "val/acc": 0.82}),
    EpochEnded("c", {"epoch": 2, "train/acc": 1.0, "val/acc": 0.80}),
    StateReached("a"),
    Failed("c", "train/loss became nan [in epoch 3]"),
]


@pytest.fixture
def display(monkeypatch):
    def make(terminal=False, **settings):
        shown = ProgressDisplay(epochs=8, names=NAMES, **settings)
        shown.console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
        return shown

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    return make


def test_lines_count_runs_epochs_and_failures(display):
    shown = display()
    with shown:
        for event in EVENTS:
            shown.on_event(event)
        shown.refresh()
    failed, line = shown.console.file.getvalue().splitlines()
    assert failed == "failed 300 lr [red]: train/loss became nan [in epoch 3]"
    assert line.startswith("1/3 runs done, 1 training, 1 failed, 4/8 epochs, ")
    assert line.endswith(" left")


def test_the_leaders_are_runs_by_validation_accuracy_without_the_failed(display):
    shown = display()
    for event in EVENTS:
        shown.on_event(event)
    assert shown._leaders() == [("val/acc", 0.82, 2, "300 lr 0.2"), ("val/acc", 0.81, 2, "300 lr 0.1")]


def test_a_terminal_shows_a_bar_and_the_leaders(display):
    shown = display()
    for event in EVENTS:
        shown.on_event(event)
    console = Console(file=io.StringIO(), width=100)
    console.print(shown._render())
    bar, first, second = console.file.getvalue().splitlines()
    assert "4/8 epochs  1/3 runs done, 1 training, 1 failed" in bar
    assert first.split() == ["leading", "val/acc", "82.00%", "epoch", "2", "300", "lr", "0.2"]
    assert "81.00%" in second


def test_what_waits_to_be_recorded_is_counted_when_training_is_over(display):
    shown = display()
    shown.recording(40)
    assert shown.status() == "0/3 runs done, 40 to record"
    shown.recording(0)
    assert shown.status() == "0/3 runs done"


def test_quiet_tells_of_failures_alone(display):
    shown = display(quiet=True)
    with shown:
        for event in EVENTS:
            shown.on_event(event)
        shown.refresh()
    assert shown.console.file.getvalue() == "failed 300 lr [red]: train/loss became nan [in epoch 3]\n"


def test_who_attaches_later_measures_the_speed_from_then_on(display):
    shown = display()
    for event in EVENTS:
        shown.on_event(event)
    shown.attach()
    assert shown._pace() == ""
    shown.on_event(EpochEnded("b", {"epoch": 3, "train/acc": 0.8}))
    assert " epochs/s, " in shown._pace()


def test_in_a_real_terminal_a_sweep_shows_the_tree_the_bar_and_the_leaders(tmp_path, arrays):
    words = [*sweeps.small(arrays), "seed=0,1", "schedule.stages=[(40,0.1)],[(40,0.1),(3,0.01)]"]
    said = in_terminal(sweeps.command("sweep", *words), tmp_path)
    for text in ("40 epochs at 0.1", "3 epochs at 0.01", "4 to train", "/86 epochs", "leading", "val/acc", "epochs/s"):
        assert text in said, said
    assert said.rstrip().endswith("stagetree ui  opens these runs in MLflow")


def in_terminal(command, folder):
    """What a command writes to a terminal of 120 columns, without escape sequences."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 120))
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, close_fds=True
    ) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                more = os.read(master, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not more:
                break
            written += more
    os.close(master)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode()).replace("\r", "")
