"""Append-only logs of events: the news of a sweep, for those who watch it, record it and launch its units.

Checkpoints decide what was trained, and no event is needed to trust one: whatever MLflow or a lost log lacks is taken
from them. Only the logs tell which nodes train now, which units began and ended, and why a run failed.

Each process appends to a file of its own: lines of a CRC-32 in hex, a space and a JSON object. A last line that a
killed process left unfinished is skipped; a damaged line in the middle is an error.
"""

import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stagetree.errors import InputError
from stagetree.storage.events import Event, UnitEnded, from_json, to_json


class EventLog:
    """The log of one process, open for appending."""

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        # host, pid and time: a relaunched unit must not append to what its dead predecessor left
        path = folder / f"{name}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
        self._file = open(str(path), "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def append(self, *events: Event) -> None:
        """Write events at once, so that a reader sees whole lines.

        Raises:
            OSError: with the path.
        """
        try:
            self._file.write(b"".join(map(_encode, events)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> None:
        self._file.close()


def _encode(event: Event) -> bytes:
    body = json.dumps(to_json(event), separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


class EventReader:
    """Follows all logs of a folder; each call of `read` yields the new events.

    Args:
        folder: of the logs.
        on_damage: called for a damaged file, the rest of which is skipped.
        name: of the logs to follow; None: all of them.
    """

    def __init__(self, folder: Path, on_damage: Callable[[InputError], Any] | None = None, *, name: str | None = None):
        self._folder = folder
        self._pattern = f"{name}-*.jsonl" if name else "*.jsonl"
        self._on_damage = on_damage
        self._offsets: dict[Path, int] = {}
        self._damaged: set[Path] = set()
        self._ended: set[Path] = set()

    def read(self) -> Iterator[Event]:
        """Yield the events appended since the last call, each file's in order.

        Raises:
            InputError: a line that is not the last is damaged, and nobody is told of it instead.
        """
        for path in sorted(self._folder.glob(self._pattern)):
            if path not in self._damaged and path not in self._ended:
                yield from self._read_file(path)

    def _read_file(self, path: Path) -> Iterable[Event]:
        offset = self._offsets.get(path, 0)
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read()
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # still being written, or cut off by a kill
            offset += len(line)
            self._offsets[path] = offset
            crc, _, body = line[:-1].partition(b" ")
            if crc != b"%08x" % zlib.crc32(body):
                error = InputError(
                    f"{path}: damaged at byte {offset - len(line)} "
                    "(the results are in the checkpoints; the same command trains what is missing)"
                )
                if self._on_damage is None:
                    raise error
                self._damaged.add(path)
                self._on_damage(error)
                return
            event = from_json(json.loads(body))
            if isinstance(event, UnitEnded):  # of thousands of units few are at work
                self._ended.add(path)
            if event is not None:
                yield event
