"""Each benchmark runs to its end, as small as it can be made: what it measures here is of no interest."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RUN = {
    "engine.py": (["--repeats", "1"], "784-300-10, SGD, batch 32, one thread"),
    "floors.py": (["--quick", "R16"], "784-300-10, batch 32, SGD"),
    "gpu.py": ([], "medians of 3"),
    "launchers.py": (["--repeats", "1", "basic"], "s a unit"),
    "overheads.py": (["start"], "shell completion"),
    "scale.py": (["--runs", "100", "--seeds", "1"], "makespan h"),
    "sharing.py": (["digits"], "same"),
    "waves.py": (["1"], "without"),
}
"""By script, its smallest arguments and what it then says."""
QUICK = {"engine.py", "floors.py", "gpu.py"}
"""The others launch many commands, which takes minutes: they belong to the full pass."""
BESIDE = {"setting.py", "peers.py", "team.py"}
"""What is no script, what needs the peers' packages, and what needs PostgreSQL."""


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory) -> Path:
    """A folder in which torchvision finds an MNIST of 256 and 64 images."""
    root = tmp_path_factory.mktemp("mnist")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 256), ("t10k", 64)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    return root


def test_every_benchmark_is_run_here_or_said_not_to_be():
    assert {path.name for path in BENCHMARKS.glob("*.py")} == RUN.keys() | BESIDE


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in RUN])
def test_a_benchmark_runs_to_its_end(name, few_digits, tmp_path):
    words, said = RUN[name]
    environment = {**os.environ, "STAGETREE_DATA": str(few_digits), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if name == "gpu.py" and not torch.cuda.is_available():
        assert done.stderr == "torch sees no CUDA device here\n"
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
