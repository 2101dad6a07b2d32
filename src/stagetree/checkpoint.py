"""States of training on disk, by uid: `<uid>.json` says what it is and vouches for `<uid>.safetensors` beside it.

The JSON file is written last, each file aside and then renamed, so a checkpoint is there as a whole or not at all.
Files are not forced to the disk: after a power failure a digest does not match, and the state counts as absent.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stagetree.config import InputError
from stagetree.plan import Finished, canonical_json

if TYPE_CHECKING:
    from stagetree.model import State


@dataclass(frozen=True)
class Record:
    """What a checkpoint says about its state."""

    uid: str
    trunk: str
    """Canonical JSON of all that decided the numbers but the schedule."""
    parent: str | None
    history: tuple[Mapping[str, float], ...]
    """A line an epoch from the initial weights on: `epoch` (0: before training) and its metrics."""
    test: Mapping[str, float] | None
    """Final figures `test/loss` and `test/acc`; `None` for a state at which no run ends."""
    weights_sha256: str
    """Over names, shapes and bytes of the weights."""
    partial: bool = False
    """Kept within a stage only so that a killed run can go on; it goes when its stage is done."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Digest of each file beside the record."""


def folder_of(output_dir: Path) -> Path:
    """Where the checkpoints of a store lie."""
    return output_dir / "checkpoints"


def weights_digest(weights: "State") -> str:
    """Identify weights by their bits."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def save(
    folder: Path,
    uid: str,
    weights: "State",
    optimizer: "State",
    *,
    trunk: str,
    parent: str | None,
    history: tuple[Mapping[str, float], ...],
    test: Mapping[str, float] | None,
    partial: bool = False,
) -> Record:
    """Write one state and return its record."""
    from safetensors.torch import save as serialize

    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for suffix, tensors in ((".safetensors", weights), (".optimizer.safetensors", optimizer)):
        if tensors:
            content = serialize(tensors)
            files[uid + suffix] = hashlib.sha256(content).hexdigest()
            write_atomic(folder / (uid + suffix), content)
    record = Record(uid, trunk, parent, history, test, weights_digest(weights), partial, files)
    body = canonical_json(vars(record))
    write_atomic(folder / f"{uid}.json", f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n".encode())
    return record


def read_record(folder: Path, uid: str) -> Record | None:
    """Read what a checkpoint says; `None` if there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / f"{uid}.json"
    try:
        digest, body = path.read_bytes().split(b"\n", 1)
    except FileNotFoundError:
        return None
    except ValueError:
        digest, body = b"", b""
    body = body.removesuffix(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise InputError(f"{path}: the checkpoint is damaged (delete it; its epochs are trained again)")
    values = json.loads(body)
    return Record(**{**values, "history": tuple(values["history"])})


def load(folder: Path, uid: str) -> tuple[Record, "State", "State"]:
    """Read a state: record, weights, optimizer state.

    Raises:
        InputError: it is missing or damaged.
    """
    from safetensors.torch import load as deserialize

    record = read_record(folder, uid)
    if record is None:
        raise InputError(f"{folder / uid}.json: the checkpoint is missing (start the sweep again; it is trained anew)")
    states = []
    for suffix in (".safetensors", ".optimizer.safetensors"):
        path = folder / (uid + suffix)
        if path.name not in record.files:
            states.append({})
            continue
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != record.files[path.name]:
            raise InputError(f"{path}: the checkpoint is damaged (delete {uid}.json; its epochs are trained again)")
        states.append(deserialize(content))
    return record, states[0], states[1]


def remove_partial(folder: Path, uid: str) -> None:
    """Delete a state that was kept within a stage, its record first; any other stays."""
    record = read_record(folder, uid)
    if record is None or not record.partial:
        return
    for suffix in (".json", ".safetensors", ".optimizer.safetensors"):
        (folder / (uid + suffix)).unlink(missing_ok=True)


def finished(folder: Path) -> Finished:
    """List the states that exist and those with final figures."""
    tested, states = set(), set()
    for path in folder.glob("*.json"):
        record = read_record(folder, path.stem)
        if record is not None:
            states.add(record.uid)
            if record.test is not None:
                tested.add(record.uid)
    return Finished(frozenset(states), frozenset(tested))


def write_atomic(path: Path, content: bytes) -> None:
    """Write aside and rename, so that readers see the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
