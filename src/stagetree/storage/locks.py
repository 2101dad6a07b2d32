"""Named locks between processes; the kernel frees them when their holder exits, however it exits.

Each name is one byte of a lock file, locked by `fcntl.lockf`. So there is nothing to clean up, no heartbeat, and no
process number that another process may have inherited. Such locks also hold between machines that share a folder over
NFS.
"""

import errno
import fcntl
import hashlib
import os
from functools import cache
from pathlib import Path

from stagetree.errors import InputError


class Locks:
    """The locks that this process takes, of all those in one file.

    Args:
        path: of the lock file; made if it does not exist.
    """

    def __init__(self, path: Path):
        self._path, self._fd = path, _open(str(path))
        self._held = _HELD.setdefault(self._fd, set())

    def take(self, name: str) -> bool:
        """Lock a name, unless another process holds it. Taking it twice is fine."""
        taken = self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if taken:
            self._held.add(name)
        return taken

    def release(self, name: str) -> None:
        """Unlock a name."""
        self._held.discard(name)
        self._lock(name, fcntl.LOCK_UN)

    def holds(self, name: str) -> bool:
        """Tell whether this process holds a name."""
        return name in self._held

    def is_free(self, name: str) -> bool:
        """Tell whether no process holds a name, this one included."""
        if name in self._held:
            return False
        # shared, so that two processes that ask at once do not see each other
        free = self._lock(name, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if free:
            self._lock(name, fcntl.LOCK_UN)
        return free

    def _lock(self, name: str, kind: int) -> bool:
        offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        try:
            fcntl.lockf(self._fd, kind, 1, offset)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            raise InputError(
                f"output_dir: {self._path} cannot be locked ({error.strerror}); workers find out by locks what others "
                "do (mount the shared folder with them, as NFS 4 does by itself, or give another output_dir)"
            ) from error
        return True


_HELD: dict[int, set[str]] = {}


@cache
def _open(path: str) -> int:
    # Never closed: closing any descriptor of a file frees all locks that the process has on it.
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def output_dir_locks(output_dir: Path) -> Locks:
    """Those of a store: states being trained, runs being recorded, launches that live."""
    # its name in earlier versions, whose processes may be at work in the same folder
    return Locks(output_dir.resolve() / "claims.lock")
