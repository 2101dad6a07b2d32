"""A second terminal looks at a sweep that a first one trains."""

import subprocess

import pytest
from sweeps import PATIENCE_S, command, small, wait_until

from stagetree.cli.watch import watch
from stagetree.config.composition import Job
from stagetree.errors import InputError


def test_a_second_terminal_follows_a_sweep_to_its_end(tmp_path, arrays):
    words = [*small(arrays), "seed=0,1,2,3", "schedule.stages=[(60,0.1)]"]
    with subprocess.Popen(command("sweep", *words, "--quiet"), cwd=tmp_path, stdout=subprocess.PIPE) as sweep:
        wait_until(lambda: list(tmp_path.glob("mlruns/sweeps/*/*/sweep.json")))
        done = subprocess.run(command("watch"), cwd=tmp_path, capture_output=True, text=True, check=True)
        said, _ = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 0
    assert said == b"", "quiet"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("sweep ")
    assert lines[-1] == "4/4 runs done; no process trains this sweep now"


def test_there_must_be_something_to_watch(bench):
    with pytest.raises(InputError, match="no sweep was launched in"):
        watch(Job((), bench.config()))
