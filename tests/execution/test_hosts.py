"""One store, several hosts: processes with a host name, process numbers and a temporary folder of their own each."""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from sweeps import PATIENCE_S

from stagetree.data import cache
from stagetree.execution.engine import run_unit
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import EpochEnded, UnitBegan, UnitEnded, Waiting
from stagetree.storage.unit_files import UnitSettings, write_unit
from stagetree.tree.stage_tree import StageTree
from stagetree.tree.units import cut_units, predecessors

WORKER = """
import json, os, socket, sys, tempfile
from pathlib import Path
if os.environ["NAMESPACES"]:
    socket.sethostname(sys.argv[1])
else:
    socket.gethostname = lambda: sys.argv[1]
from stagetree.execution.engine import run_next
folder, units = Path(sys.argv[2]), json.loads(sys.argv[3])
while (result := run_next(folder, units)) is not None:
    assert not result.error, result
print(json.dumps([socket.gethostname(), os.getpid(), tempfile.gettempdir()]))
"""
PREPARE = """
import json, os, socket, sys
from pathlib import Path
if os.environ["NAMESPACES"]:
    socket.sethostname(sys.argv[1])
else:
    socket.gethostname = lambda: sys.argv[1]
from stagetree.data import cache
from stagetree.config.validation import check
info = cache.prepare(check(json.loads(sys.argv[2])).dataset, Path(sys.argv[3]))
arrays = cache.load(Path(info.folder), info.digest)
print(json.dumps([info.digest, int(arrays.train_images.sum())]))
"""
NAMESPACES = ["unshare", "--uts", "--pid", "--mount-proc", "--fork"]
"""The kernel's own, where it allows them: what these processes see of names and numbers is what machines see."""


@functools.cache
def namespaces() -> list[str]:
    own = NAMESPACES if os.getuid() == 0 else [*NAMESPACES, "--map-root-user"]
    allowed = subprocess.run([*own, "true"], capture_output=True, check=False).returncode == 0
    return own if allowed else []


def hosts(count: int, tmp_path: Path, script: str, *words: str) -> list[list]:
    """Run a script on each of some hosts, all at once, and return what each prints."""
    processes = []
    for number in range(count):
        scratch = tmp_path / f"tmp{number}"
        scratch.mkdir()
        command = [*namespaces(), sys.executable, "-c", script, f"host{number}", *words]
        environment = {**os.environ, "TMPDIR": str(scratch), "NAMESPACES": "yes" * bool(namespaces())}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(one) for one in said]


def test_hosts_that_share_a_folder_train_each_epoch_once_to_the_same_bits(bench, other, tmp_path):
    runs = [
        bench.run(schedule__stages=[[20, 0.05], [10, lr]], seed=seed, optimizer__name="adam")
        for lr, seed in product((0.01, 0.02, 0.03), (0, 1))
    ]
    tree = StageTree.build(runs)
    units = cut_units(tree, 6, {node.pack_key: 1.0 for node in tree.walk()})
    ids = [f"{number:04d}" for number in range(len(units))]
    after = [[ids[other] for other in sorted(those)] for those in predecessors(units)]
    assert any(after)
    folder = bench.output_dir / "sweeps/sweep/launch"
    info = cache.prepare(bench.config().dataset, bench.output_dir)
    settings = UnitSettings(
        output_dir=str(bench.output_dir), data={info.digest: info.folder}, pack_size=64, checkpoint_every_s=0
    )
    for unit_id, unit, those in zip(ids, units, after, strict=True):
        write_unit(folder, unit_id, unit, settings, those)

    said = hosts(3, tmp_path, WORKER, str(folder), json.dumps(dict(zip(ids, after, strict=True))))
    assert sorted(host for host, _, _ in said) == ["host0", "host1", "host2"]
    assert not namespaces() or {pid for _, pid, _ in said} == {1}, "all have the same number"

    events = list(EventReader(folder / "events").read())
    assert len({event.host for event in events if isinstance(event, UnitBegan)}) > 1
    assert not [event for event in events if isinstance(event, Waiting)], "for the trunk, before and not in a unit"
    assert {event.unit for event in events if isinstance(event, UnitEnded)} == set(ids)
    trained = Counter((e.uid, e.epoch) for e in events if isinstance(e, EpochEnded) and e.epoch > 0)
    assert set(trained.values()) == {1}
    assert len(trained) == tree.epochs
    other.train(*runs)
    assert [bench.bits(run) for run in runs] == [other.bits(run) for run in runs]


def test_hosts_that_prepare_the_same_data_at_once_find_one_whole_copy(bench, tmp_path):
    config = bench.config().model_dump(mode="json")
    said = hosts(3, tmp_path, PREPARE, json.dumps(config), str(bench.output_dir))
    assert said == [said[0]] * 3
    assert len([path for path in (bench.output_dir / "data").iterdir() if path.is_dir()]) == 1
    assert not list((bench.output_dir / "data").glob(".*")), "nothing is left aside"


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    result = run_unit(tmp_path / "mlruns/sweeps/a/b", "0000")
    assert result.unseen
    assert "does not see" in result.error
    assert "give an output_dir that all machines share" in result.error
    assert not (tmp_path / "mlruns").exists(), "and makes none of its own"


@pytest.mark.parametrize("missing", ["units", "0000.json"])
def test_a_unit_that_is_gone_from_a_folder_that_is_there_is_no_matter_of_sharing(tmp_path, missing):
    if missing == "0000.json":
        (tmp_path / "units").mkdir()
    assert run_unit(tmp_path, "0000").unseen == (missing == "units")
