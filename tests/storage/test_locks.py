"""Locks between real processes."""

import os
import platform
import subprocess
import sys

import pytest
from sweeps import small, stagetree, trained

from stagetree.storage.locks import Locks

HOLD = """
import sys
from pathlib import Path
from stagetree.storage.locks import Locks
print(Locks(Path(sys.argv[1])).take("name"), flush=True)
sys.stdin.read()
"""


def holder(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_a_name_has_one_holder_until_that_one_dies(tmp_path):
    path = tmp_path / "claims.lock"
    first, taken = holder(path)
    assert taken == "True"
    second, taken = holder(path)
    assert taken == "False"
    mine = Locks(path)
    assert not mine.take("name")
    assert not mine.is_free("name")
    assert mine.take("another name")
    second.kill()
    second.communicate()
    assert not mine.is_free("name")
    first.kill()  # no chance to give anything back
    first.communicate()
    assert mine.is_free("name")
    assert mine.take("name")
    third, taken = holder(path)
    assert taken == "False"
    third.communicate()


def test_what_this_process_holds_is_not_free_and_can_be_given_back(tmp_path):
    locks = Locks(tmp_path / "claims.lock")
    assert locks.is_free("name")
    assert locks.take("name")
    assert locks.take("name")
    assert locks.holds("name")
    assert not locks.is_free("name")
    assert Locks(tmp_path / "claims.lock").holds("name")
    locks.release("name")
    assert locks.is_free("name")
    assert not locks.holds("name")


def test_looking_takes_nothing_from_another(tmp_path):
    """Two processes that ask whether a name is free do not see each other."""
    locks = Locks(tmp_path / "claims.lock")
    assert locks.is_free("name")
    process, taken = holder(tmp_path / "claims.lock")
    assert taken == "True"
    process.communicate()
    assert os.stat(tmp_path / "claims.lock").st_size == 0


REFUSE = """
import ctypes, errno, struct
# seccomp(2): if the call is fcntl (72) with F_SETLK or F_SETLKW (6, 7), return ENOLCK, as file systems without locks do
steps = [
    (0x20, 0, 0, 0), (0x15, 0, 4, 72), (0x20, 0, 0, 24), (0x15, 1, 0, 6), (0x15, 0, 1, 7),
    (0x06, 0, 0, 0x50000 | errno.ENOLCK), (0x06, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS, which a filter needs
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))) == 0  # PR_SET_SECCOMP
"""


@pytest.mark.slow
@pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="numbers of its kernel")
def test_a_folder_that_refuses_locks_is_refused_before_anything_trains(tmp_path, arrays):
    (tmp_path / "sitecustomize.py").write_text(REFUSE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = stagetree(tmp_path, "sweep", *small(arrays), "seed=0,1", env=environment)
    assert done.returncode == 1
    assert f"output_dir: {tmp_path}/mlruns/claims.lock cannot be locked (No locks available)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not trained(tmp_path)
