"""Programs that tests need and that no Python package brings: from Debian, installed if they are not there."""

import os
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock


def debian(*packages: str) -> None:
    """Install packages; nothing is started by that.

    Raises:
        RuntimeError: this machine has no apt-get, or the tests may not use it.
    """
    with FileLock(Path(tempfile.gettempdir()) / f"stagetree-apt-{os.getuid()}.lock"):
        listed = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Status} ${Package}\n", *packages], capture_output=True, text=True, check=False
        )
        missing = [name for name in packages if f"install ok installed {name}\n" not in listed.stdout]
        if not missing:
            return
        if os.getuid() != 0:
            raise RuntimeError(f"these tests need {' '.join(missing)} (sudo apt-get install {' '.join(missing)})")
        with tempfile.TemporaryDirectory() as scratch:
            os.chmod(scratch, 0o777)  # apt checks signatures as a user of its own
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "TMPDIR": scratch}
            for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
                done = subprocess.run(
                    ["apt-get", "-qq", *command], capture_output=True, text=True, env=quiet, check=False
                )
                if done.returncode:
                    raise RuntimeError(f"apt-get {command[0]}: {done.stdout}{done.stderr}")
