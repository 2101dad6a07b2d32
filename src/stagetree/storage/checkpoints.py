"""Keep states of training by uid: `<uid>.json` describes a state and holds the digests of its tensor files.

The JSON file is written last, each file aside and then renamed, so a checkpoint is there as a whole or not at all.
Files are not forced to the disk: after a power failure a digest does not match, and the state counts as absent.
"""

import hashlib
import os
from collections.abc import Callable, Container, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.errors import InputError
from stagetree.storage.events import EpochLine
from stagetree.storage.files import file_digest, read_sealed, write_atomic, write_sealed
from stagetree.tree.runs import Trunk
from stagetree.tree.stage_tree import Finished

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

State = dict[str, "Tensor"]
"""Tensors by name: the weights of a network, or the state of its optimizer."""


class StateError(InputError):
    """A state is missing or damaged; it is made anew by training up to it again.

    Args:
        uid: of the state.
        what: the file and its problem.
        cure: advice for the user.
    """

    def __init__(self, uid: str, what: str, cure: str):
        super().__init__(f"{what} ({cure}; its epochs are trained again)")
        self.uid, self.what = uid, what


OnDamage = Callable[[StateError], Any]
"""Called with the error of a damaged state, which counts as absent."""


@dataclass(frozen=True)
class Record:
    """The record of a state, beside its tensors."""

    uid: str
    trunk: Trunk
    """All that decided the numbers but the schedule."""
    parent: str | None
    history: tuple[EpochLine, ...]
    """One line for each epoch since the initial weights."""
    test: Mapping[str, float] | None
    """Final metrics `test/loss` and `test/acc`; `None` for a state at which no run ends."""
    weights_sha256: str = ""
    """Over names, shapes and bytes of the weights; `save` fills it in."""
    partial: bool = False
    """Whether it is kept only so that a killed run can go on: within a stage, or at the end of one of very many. It is
    removed once the nodes that start from it are trained."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file beside the record; `save` fills it in."""


def folder_of(output_dir: Path) -> Path:
    """The folder of the checkpoints in an output folder."""
    return output_dir / "checkpoints"


def weights_digest(weights: "State | Mapping[str, np.ndarray]") -> str:
    """Identify weights by their bits."""
    import numpy as np

    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        array = np.asarray(value)
        digest.update(f"{name}{array.shape}torch.{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(folder: Path, record: Record, weights: State, optimizer: State) -> Record:
    """Write one state. Final metrics that are already recorded for the same weights are kept.

    Args:
        folder: of the checkpoints.
        record: the description of the state, without digests.
        weights: of the network.
        optimizer: its state; empty if it keeps nothing.

    Returns:
        The record that was written.

    Raises:
        OSError: a file cannot be written; an earlier state of this uid is not lost.
    """
    from safetensors.torch import save as serialize

    folder.mkdir(parents=True, exist_ok=True)
    digest, test = weights_digest(weights), record.test
    if test is None:
        before = find(folder, record.uid)
        test = before.test if before is not None and before.weights_sha256 == digest else None
    files = {}
    for suffix, tensors in ((".safetensors", weights), (".optimizer.safetensors", optimizer)):
        if tensors:
            content = serialize(tensors)
            files[record.uid + suffix] = hashlib.sha256(content).hexdigest()
            write_atomic(folder / (record.uid + suffix), content)
    record = replace(record, test=test, weights_sha256=digest, files=files)
    write_sealed(folder / f"{record.uid}.json", vars(record) | {"trunk": record.trunk.json})
    return record


def read_record(folder: Path, uid: str) -> Record | None:
    """Read the record of a checkpoint; `None` if there is none.

    Raises:
        StateError: the file is damaged.
    """
    path = folder / f"{uid}.json"
    try:
        values = read_sealed(path)
        parsed = {"trunk": Trunk.from_json(values["trunk"]), "history": tuple(values["history"])}
        record = Record(**values | parsed)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        record = None
    if record is None or record.uid != uid:
        raise StateError(uid, f"{path}: the checkpoint is damaged", "delete it")
    return record


def find(folder: Path, uid: str, *, since: float = 0.0, on_damage: OnDamage = lambda _: None) -> Record | None:
    """Read the record of a checkpoint; `None` if there is no undamaged one.

    Args:
        folder: of the checkpoints.
        uid: of the state.
        since: records written before count as absent; a file's time in seconds.
        on_damage: called for a damaged record, which counts as absent too.
    """
    try:
        record = read_record(folder, uid)
        old = since and record and (folder / f"{uid}.json").stat().st_mtime < since
        return None if old else record
    except FileNotFoundError:  # removed by another process just now
        return None
    except StateError as error:
        on_damage(error)
        return None


def load(folder: Path, uid: str) -> tuple[Record, State, State]:
    """Read a state: record, weights, optimizer state.

    Raises:
        StateError: it is missing or damaged.
    """
    from safetensors.torch import load as deserialize

    record = _existing(folder, uid)
    weights = _read_tensors(folder, record, ".safetensors", deserialize)
    return record, weights, _read_tensors(folder, record, ".optimizer.safetensors", deserialize)


def load_weights(folder: Path, uid: str) -> tuple[Record, dict[str, "np.ndarray"]]:
    """Read a state's record and weights, without torch.

    Raises:
        StateError: it is missing or damaged.
    """
    from safetensors.numpy import load as deserialize

    record = _existing(folder, uid)
    return record, _read_tensors(folder, record, ".safetensors", deserialize)


def _existing(folder: Path, uid: str) -> Record:
    record = read_record(folder, uid)
    if record is None:
        raise StateError(uid, f"{folder / uid}.json: the checkpoint is missing", "run its sweep again")
    return record


def _read_tensors(folder: Path, record: Record, suffix: str, deserialize: Callable[[bytes], dict]) -> dict:
    """Verify and read one of a state's files; return an empty mapping if the state has none of this kind."""
    from safetensors import SafetensorError

    uid, path = record.uid, folder / (record.uid + suffix)
    if path.name not in record.files:
        return {}
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != record.files[path.name]:
        raise StateError(uid, f"{path}: the checkpoint is damaged", f"delete {uid}.json")
    try:
        return deserialize(content)
    except SafetensorError as error:
        raise StateError(uid, f"{path}: the checkpoint holds no tensors, {error}", f"delete {uid}.json") from None


def damage(folder: Path, record: Record) -> StateError | None:
    """Compare a state's files with the digests in its record; return an error for the first that differs."""
    for name, digest in record.files.items():
        path = folder / name
        try:
            found = file_digest(path)
        except FileNotFoundError:
            return StateError(record.uid, f"{path}: the checkpoint is missing", "run its sweep again")
        if found != digest:
            return StateError(record.uid, f"{path}: the checkpoint is damaged", "run its sweep again")
    return None


def remove(folder: Path, uid: str) -> None:
    """Delete a state, its record first."""
    for suffix in (".json", ".safetensors", ".optimizer.safetensors"):
        (folder / (uid + suffix)).unlink(missing_ok=True)


class _States(Set):
    """The uids of the states in a folder that pass a test, each looked up when it is asked for."""

    def __init__(self, folder: Path, passes: Callable[[str], bool]):
        self._folder, self._passes = folder, passes

    def __contains__(self, uid: object) -> bool:
        return self._passes(str(uid))

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in self._folder.glob("*.json") if path.stem in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def finished(
    folder: Path, *, since: float = 0.0, without: Container[str] = (), on_damage: OnDamage = lambda _: None
) -> Finished:
    """Tell which states exist, whole, and which have final metrics; each is read once, when it is asked for.

    Args:
        folder: of the checkpoints.
        since: as for `find`.
        without: uids that count as absent.
        on_damage: as for `find`.
    """

    @cache
    def look(uid: str) -> Record | None:
        record = None if uid in without else find(folder, uid, since=since, on_damage=on_damage)
        error = record and damage(folder, record)
        if error:
            on_damage(error)
        return None if error else record

    def exists(uid: str) -> bool:
        # a long stage has a state for few of its epochs
        return os.path.exists(f"{folder}/{uid}.json") and look(uid) is not None

    def is_tested(uid: str) -> bool:
        record = look(uid) if exists(uid) else None
        return record is not None and record.test is not None

    return Finished(_States(folder, exists), _States(folder, is_tested))
