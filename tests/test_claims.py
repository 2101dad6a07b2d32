"""Claims between real processes."""

import os
import subprocess
import sys

from stagetree.claims import Claims

HOLD = """
import sys
from pathlib import Path
from stagetree.claims import Claims
print(Claims(Path(sys.argv[1])).take("name"), flush=True)
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
    mine = Claims(path)
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
    claims = Claims(tmp_path / "claims.lock")
    assert claims.is_free("name")
    assert claims.take("name")
    assert claims.take("name")
    assert claims.holds("name")
    assert not claims.is_free("name")
    assert Claims(tmp_path / "claims.lock").holds("name")
    claims.release("name")
    assert claims.is_free("name")
    assert not claims.holds("name")


def test_looking_takes_nothing_from_another(tmp_path):
    """Two processes that ask whether a name is free do not see each other."""
    claims = Claims(tmp_path / "claims.lock")
    assert claims.is_free("name")
    process, taken = holder(tmp_path / "claims.lock")
    assert taken == "True"
    process.communicate()
    assert os.stat(tmp_path / "claims.lock").st_size == 0
