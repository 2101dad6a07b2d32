"""Write files as a whole or not at all, and JSON below its own digest."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagetree.tree.runs import canonical_json


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON below its own SHA-256."""
    body = canonical_json(values)
    write_atomic(path, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n".encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of `write_sealed`.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError: the file is missing.
    """
    digest, _, body = path.read_bytes().partition(b"\n")
    body = body.removesuffix(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{path}: damaged")
    return json.loads(body)


def write_atomic(path: Path, content: bytes) -> None:
    """Write aside and rename, so that readers see the old file or the new one.

    Raises:
        OSError: the file cannot be written; it is as it was before.
    """
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, older_than_s: float = 3600.0) -> None:
    """Delete the files that killed processes wrote aside and never renamed."""
    for path in folder.glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # its writer lives after all, and was quicker
            if time.time() - path.stat().st_mtime < older_than_s:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
