"""Keep data sets as four arrays on disk that all workers map, identified by their content."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stagetree.config.schema import AnyDataset
from stagetree.data import readers
from stagetree.data.readers import RawArrays
from stagetree.errors import InputError
from stagetree.storage.files import read_sealed, write_sealed
from stagetree.tree.runs import canonical_json

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class DataInfo:
    """A prepared data set, without its arrays.

    Only the digest decides numbers. Sources with the same content may differ in image shape and class names: the index
    of the cache has those of each source, and `data.json` beside the arrays has those of the source prepared last.
    """

    folder: str
    digest: str
    """The sha256 of the types, shapes and bytes of the arrays, which does not depend on where they are stored."""
    name: str
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    classes: tuple[str, ...]
    n_train: int
    n_test: int
    scale: float
    """The divisor of the pixels: 255 for bytes, 1 for the user's own floats."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""
    float_range: tuple[float, float] | None = None
    """The lowest and the highest of the user's own floats; `None` for bytes."""

    @property
    def in_features(self) -> int:
        """The number of values of an image, over all channels."""
        channels, height, width = self.image_shape
        return channels * height * width


@dataclass(frozen=True)
class Arrays:
    """A data set mapped into memory: images `(n, in_features)`, channel by channel, and int64 labels `(n,)`."""

    info: DataInfo
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


# ---------------------------------------------------------------- prepare, load


def prepare(dataset: AnyDataset, output_dir: Path) -> DataInfo:
    """Bring a data set into the cache, unless its source is unchanged, and check it.

    It runs once, in the launching process; several processes may do so at a time.

    Raises:
        InputError: the source is unusable, or the settings do not fit this data.
    """
    cache = output_dir / "data"
    # these settings do not decide the arrays, only their use
    ignored = {"mean", "std", "val_size", "val_seed", "duplicates"}
    source = dataset.model_dump(mode="json", exclude=ignored) | {"root": str(Path(dataset.root).resolve())}
    index = cache / f"{hashlib.sha256(canonical_json(source).encode()).hexdigest()[:16]}.json"
    fingerprint = readers.fingerprint(dataset)
    info = _from_index(index, fingerprint)
    if info is None:
        raw, fingerprint = _read_settled(dataset, fingerprint)
        _check(raw, dataset)
        info = _store(raw, dataset.name, cache)
        write_sealed(index, {"fingerprint": fingerprint, "info": asdict(info)})
    _describe(info)
    _check_settings(dataset, info)
    return replace(info, notes=(() if dataset.duplicates == "ignore" else info.notes) + _range_notes(dataset, info))


def _read_settled(dataset: AnyDataset, fingerprint: str) -> tuple[RawArrays, str]:
    """Read a source, make sure that it did not change meanwhile, and return its fingerprint too."""
    for _ in range(3):  # the first one may complete an earlier download
        before, raw, fingerprint = fingerprint, readers.read(dataset), readers.fingerprint(dataset)
        if before in (fingerprint, ""):
            return raw, fingerprint
    raise InputError(f"{dataset.root}: the data changes while it is read (run this again when it is complete)")


def _from_index(index: Path, fingerprint: str) -> DataInfo | None:
    """Look up a source in the cache; `None` if it has changed since, or the cache is damaged."""
    try:
        entry = read_sealed(index)
        folder = index.parent / Path(entry["info"]["folder"]).name  # it must be inside the cache
        info = _to_info(entry["info"], folder) if entry["fingerprint"] == fingerprint else None
    except Exception:
        return None  # the source is read again
    return info if info and _open(info) else None


def _store(raw: RawArrays, name: str, cache: Path) -> DataInfo:
    """Write arrays into the cache, unless another source or another process has put them there."""
    arrays = {key: np.ascontiguousarray(getattr(raw, key)) for key in ARRAYS}
    flat = {key: array.reshape(len(array), -1) if array.ndim > 1 else array for key, array in arrays.items()}
    digest = _digest(flat)
    channels, height, width = map(int, arrays["train_images"].shape[1:])
    info = DataInfo(
        folder=str(cache / digest[:16]),
        digest=digest,
        name=name,
        image_shape=(channels, height, width),
        classes=raw.classes,
        n_train=len(flat["train_labels"]),
        n_test=len(flat["test_labels"]),
        scale=255.0 if flat["train_images"].dtype == np.uint8 else 1.0,
        notes=_notes(name, flat),
        float_range=_float_range(flat),
    )
    if _open(info):
        return info
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=cache, prefix=".new-"))
    try:
        for key, array in flat.items():
            np.save(aside / f"{key}.npy", array, allow_pickle=False)
        if not _open(info):
            shutil.rmtree(info.folder, ignore_errors=True)  # damaged
            os.replace(aside, info.folder)
    except OSError:
        if not Path(info.folder).exists():  # else another process was faster with the same content
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return info


def _describe(info: DataInfo) -> None:
    """Describe the arrays in a file beside them, if the file describes another source of this content."""
    if _described(Path(info.folder)) != info:
        write_sealed(Path(info.folder) / "data.json", {**asdict(info), "folder": ""})


def _described(folder: Path) -> DataInfo | None:
    """Read the file that `_describe` wrote; `None` if it is gone or damaged."""
    try:
        return _to_info(read_sealed(folder / "data.json"), folder)
    except Exception:
        return None


def _to_info(values: Mapping[str, Any], folder: Path) -> DataInfo:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return DataInfo(**{**plain, "folder": str(folder)})


def _open(info: DataInfo) -> Arrays | None:
    """Map the arrays of a data set in the cache; `None` if they are gone or damaged."""
    try:
        # mode "c": nothing is written to the file, and torch takes the array without a warning
        arrays = {key: np.load(Path(info.folder) / f"{key}.npy", mmap_mode="c", allow_pickle=False) for key in ARRAYS}
        return Arrays(info, **arrays) if _digest(arrays) == info.digest else None
    except Exception:  # numpy raises many kinds for a damaged header
        return None


def _float_range(arrays: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    images = [arrays["train_images"], arrays["test_images"]]
    if images[0].dtype == np.uint8:
        return None
    return float(min(part.min() for part in images)), float(max(part.max() for part in images))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in ARRAYS:
        digest.update(f"{arrays[key].dtype.str}{arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


def find(digest: str, output_dir: Path) -> DataInfo:
    """Find the description of data that was prepared before, by its digest.

    Raises:
        InputError: the data is gone.
    """
    folder = output_dir / "data" / digest[:16]
    info = _described(folder)
    if info is None:
        raise InputError(f"{folder}: the prepared data is gone (launch the sweep again; it is made again)")
    return info


def load(folder: Path, digest: str) -> Arrays:
    """Map a prepared data set read-only, so that workers share its pages, and verify its digest.

    Raises:
        InputError: the data is gone or damaged.
    """
    info = _described(folder)
    arrays = _open(info) if info and info.digest == digest else None
    if arrays is None:
        raise InputError(
            f"{folder}: the prepared data is gone or damaged (run the same command again; it is made again)"
        )
    return arrays


# ---------------------------------------------------------------- checks


def _check(raw: RawArrays, dataset: AnyDataset) -> None:
    """Refuse arrays that cannot be trained on."""
    if raw.test_images.shape[1:] != raw.train_images.shape[1:]:
        shapes = f"{raw.train_images.shape[1:]} and {raw.test_images.shape[1:]}"
        raise InputError(f"{dataset.root}: training and test images must have one shape, got {shapes}")
    if raw.train_images.dtype != raw.test_images.dtype:
        types = f"{raw.train_images.dtype} and {raw.test_images.dtype}"
        raise InputError(f"{dataset.root}: training and test images must have one type, got {types}")
    n_classes = len(raw.classes)
    for part, labels in (("training", raw.train_labels), ("test", raw.test_labels)):
        outside = labels[(labels < 0) | (labels >= n_classes)]
        if len(outside):
            raise InputError(
                f"{dataset.root}: {part} labels must be 0 to {n_classes - 1}, got {outside[0]} "
                "(every class needs training images)"
            )
    counts = np.bincount(raw.train_labels, minlength=n_classes)
    empty = [raw.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise InputError(
            f"{dataset.root}: no training images of class {', '.join(empty)} (add some, or number the classes anew)"
        )


def _notes(name: str, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Count test images that are also training images."""
    train = {row.tobytes() for row in arrays["train_images"]}
    both = sum(row.tobytes() in train for row in arrays["test_images"])
    n_test = len(arrays["test_images"])
    return (f"{name}: {both} of {n_test} test images stand in the training set too",) if both else ()


def _check_settings(dataset: AnyDataset, info: DataInfo) -> None:
    channels = info.image_shape[0]
    for name in ("mean", "std"):
        given = getattr(dataset, name)
        if len(given) not in (0, 1, channels):
            raise InputError(f"dataset.{name}: needs 1 value or one for each of {channels} channels, got {list(given)}")
    n_val = val_count(info.n_train, dataset.val_size)
    if n_val >= info.n_train:
        raise InputError(f"dataset.val_size: must leave images to train on, got {n_val} of {info.n_train}")
    if dataset.val_size and not n_val:
        raise InputError(f"dataset.val_size: {dataset.val_size} of {info.n_train} images is none (set 0 for none)")
    if info.notes and dataset.duplicates == "error":
        raise InputError(f"{info.notes[0]} (remove them, or set dataset.duplicates=warn)")


def _range_notes(dataset: AnyDataset, info: DataInfo) -> tuple[str, ...]:
    """Warn of floats that look like pixels from 0 to 255.

    Raises:
        InputError: the floats are certain to be such pixels.
    """
    low, high = info.float_range or (0.0, 0.0)
    if dataset.std or low < 0 or high <= 1.5:  # standardised values lie on both sides of 0
        return ()
    said = f"{info.name}: floats are taken as they are, and these go from {low:g} to {high:g}"
    cure = "save bytes as uint8, divide them to 0..1, or set dataset.std, [1] for as they are"
    if high > 127 and info.image_shape[:2] != (1, 1):
        raise InputError(f"{said}, expected about 0 to 1 for images ({cure})")
    return (f"{said} (if that is not meant: {cure})",)


def val_count(n: int, val_size: int | float) -> int:
    """Count the images of `n` that are held out for validation; `val_size` is a count, or a fraction below 1."""
    # random_split rounds each share down and deals the rest from the first share on, the training set
    return val_size if isinstance(val_size, int) else int(np.floor(n * val_size))
