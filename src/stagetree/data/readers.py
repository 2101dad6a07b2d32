"""Read each kind of data source into four plain arrays; each kind imports its own heavy libraries."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from stagetree.config.schema import AnyDataset, Digits, Emnist, HeldOutTest, ImageFolder, Npz, Torchvision
from stagetree.data.images import SUFFIXES, read_image
from stagetree.errors import InputError, printable

TORCHVISION = {
    "mnist": ("MNIST", "MNIST/**/*"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/**/*"),
    "kmnist": ("KMNIST", "KMNIST/**/*"),
    "qmnist": ("QMNIST", "QMNIST/**/*"),
    "emnist": ("EMNIST", "EMNIST/**/*"),
    "usps": ("USPS", "usps*"),
    "svhn": ("SVHN", "*_32x32.mat"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/**/*"),
    "cifar100": ("CIFAR100", "cifar-100-python/**/*"),
}
"""The class of each of torchvision's data sets, and the pattern of its files below the root."""


@dataclass(frozen=True)
class RawArrays:
    """A data set as read: images `(n, c, h, w)` uint8 or float32, labels int64 `(n,)` from 0."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def read(dataset: AnyDataset) -> RawArrays:
    """Read a data set; download it if it is missing and can be downloaded.

    Raises:
        InputError: the data is missing or unusable; the message names the file or folder, and the cure.
    """
    readers: dict[type, Callable[[Any], RawArrays]] = {
        Digits: _read_digits,
        Torchvision: _read_torchvision,
        Emnist: _read_torchvision,
        Npz: _read_npz,
        ImageFolder: _read_image_folder,
    }
    return readers[type(dataset)](dataset)


def fingerprint(dataset: AnyDataset) -> str:
    """Identify the state of the source's files by their names, sizes and times, without reading them.

    It is empty if the source does not exist yet.
    """
    if isinstance(dataset, Digits):
        return f"scikit-learn {metadata.version('scikit-learn')}"
    lines = []
    for path in sorted(_files(dataset)):
        stat = path.stat()
        lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def _files(dataset: AnyDataset) -> Iterable[Path]:
    root = Path(dataset.root)
    if isinstance(dataset, Npz):
        return [path for path in [root / dataset.file] if path.is_file()]
    if isinstance(dataset, ImageFolder):
        return [path for path in root.rglob("*") if path.is_file()]
    return [path for path in root.glob(TORCHVISION[dataset.name][1]) if path.is_file()]


# ---------------------------------------------------------------- digits, npz


def _read_digits(dataset: Digits) -> RawArrays:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    # Pixels are 0..16, and are stretched to 0..255.
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    return _hold_out(dataset, images, labels, tuple(map(str, digits.target_names)))


def _read_npz(dataset: Npz) -> RawArrays:
    root, path = Path(dataset.root), Path(dataset.root) / dataset.file
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"dataset.file: must lie below dataset.root, got {dataset.file} (set dataset.root to its folder)"
        )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (set dataset.root and dataset.file)") from None
    except Exception as error:  # zip, header and pickle errors have no common class
        raise InputError(f"{path}: cannot be read as .npz without pickle: {error} (save it by numpy.savez)") from None
    missing = [key for key in ("train_x", "train_y") if key not in found]
    if missing or ("test_x" in found) != ("test_y" in found):
        raise InputError(
            f"{path}: needs the arrays train_x, train_y and, for a test set, test_x and test_y; got {sorted(found)}"
        )
    train = _checked_arrays(path, found["train_x"], found["train_y"], "train")
    classes = _class_names(path, found.get("classes"), train[1])
    if "test_x" not in found:
        return _hold_out(dataset, *train, classes)
    return RawArrays(*train, *_checked_arrays(path, found["test_x"], found["test_y"], "test"), classes)


def _checked_arrays(path: Path, x: np.ndarray, y: np.ndarray, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Bring a user's arrays into shape `(n, c, h, w)`.

    They may be (n, h, w), (n, h, w, c), (n, c, h, w) or rows (n, features). c is 1, 3 or 4; if the last and the second
    axis both have such a length, the last one has the channels.

    Raises:
        InputError: the arrays have the wrong types, shapes or values.
    """
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{path}: {part}_x must be uint8 (0..255) or floats, got {x.dtype}")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise InputError(f"{path}: {part}_y must be whole numbers (n,), got {y.dtype} {y.shape}")
    if len(x) != len(y) or len(x) == 0:
        raise InputError(f"{path}: {part}_x and {part}_y must be equally many and not none, got {len(x)} and {len(y)}")
    if y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path}: {part}_y must count classes from 0, got {y.min()} to {y.max()}")
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise InputError(f"{path}: {part}_x holds NaN or infinity (replace or drop those images)")
    if x.ndim == 2:
        x = x[:, None, None, :]
    elif x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        shapes = "(n, h, w, c), (n, c, h, w), (n, h, w) or (n, features), c being 1, 3 or 4"
        raise InputError(f"{path}: {part}_x must be {shapes}, got {x.shape}")
    return x, y.astype(np.int64)


def _class_names(path: Path, names: np.ndarray | None, labels: np.ndarray) -> tuple[str, ...]:
    """Return the names of the classes from the file, or their numbers."""
    n_classes = int(labels.max()) + 1
    if names is None:
        if n_classes > len(labels):  # before millions of names are made
            raise InputError(
                f"{path}: train_y must count classes from 0 without gaps, got {n_classes - 1} in {len(labels)} labels"
            )
        return tuple(map(str, range(n_classes)))
    if names.dtype.kind not in "USiu" or names.ndim != 1 or len(names) != n_classes or len(set(names)) != n_classes:
        raise InputError(
            f"{path}: classes must be {n_classes} names, all different, one for each label of train_y, "
            f"got {names.dtype} {names.shape}"
        )
    texts = names.astype(str) if names.dtype.kind != "S" else np.char.decode(names, "utf-8", "replace")
    return tuple(printable(text) for text in texts.tolist())


def _hold_out(dataset: HeldOutTest, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> RawArrays:
    """Hold out a test set, a count or a fraction, from data that has none, by a seeded permutation."""
    n, size = len(images), dataset.test_size
    n_test = size if isinstance(size, int) else round(size * n)
    if not 0 < n_test < n:
        raise InputError(
            f"dataset.test_size: this data has no test set of its own, so some of its {n} images must be held out, "
            f"got {size} (set dataset.test_size=0.2)"
        )
    order = np.random.default_rng(dataset.test_seed).permutation(n)
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    return RawArrays(images[train], labels[train], images[test], labels[test], classes)


# ---------------------------------------------------------------- torchvision


def _read_torchvision(dataset: Torchvision | Emnist) -> RawArrays:
    import torchvision.datasets

    maker = getattr(torchvision.datasets, TORCHVISION[dataset.name][0])
    options = {"split": dataset.split} if isinstance(dataset, Emnist) else {}
    parts = []
    for train in (True, False):
        which = {"split": "train" if train else "test"} if dataset.name == "svhn" else {"train": train}
        parts.append(_open_torchvision(maker, dataset, {**which, **options}))
    arrays = [array for part in parts for array in _torchvision_arrays(part, dataset)]
    classes = getattr(parts[0], "classes", None) or sorted(set(arrays[1].tolist()))
    if isinstance(dataset, Emnist) and dataset.split == "letters":
        classes = classes[1:]  # torchvision lists "N/A" as class 0
    train_images, train_labels, test_images, test_labels = arrays
    return RawArrays(train_images, train_labels, test_images, test_labels, tuple(map(str, classes)))


def _open_torchvision(maker: type, dataset: AnyDataset, options: dict[str, Any]) -> Any:
    root = Path(dataset.root)
    try:
        return maker(root, download=False, **options)
    except RuntimeError:
        pass  # it is missing or incomplete
    try:
        return maker(root, download=True, **options)
    except Exception as error:  # URLError, HTTPError, RuntimeError of a checksum, OSError of the folder ...
        raise InputError(
            f"{root}: {dataset.name} is not there and cannot be downloaded: {type(error).__name__}: {error} "
            "(set dataset.root or STAGETREE_DATA to the folder that torchvision would use, or connect to a network)"
        ) from None


def _torchvision_arrays(part: Any, dataset: AnyDataset) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, c, h, w)` and labels from 0 of one of torchvision's data sets."""
    images = np.asarray(part.data)
    labels = np.asarray(part.targets if hasattr(part, "targets") else part.labels)
    if dataset.name == "qmnist":
        labels = labels[:, 0]  # the other columns say who wrote it
    if dataset.name == "emnist":
        images = images.transpose(0, 2, 1)  # stored lying on its side
        labels = labels - (dataset.split == "letters")
    if images.ndim == 3:
        images = images[:, None]
    elif dataset.name.startswith("cifar"):
        images = images.transpose(0, 3, 1, 2)
    return images, labels.astype(np.int64)


# ---------------------------------------------------------------- image_folder


def _read_image_folder(dataset: ImageFolder) -> RawArrays:
    root = Path(dataset.root)
    train = root / "train" if (root / "train").is_dir() else root
    if not train.is_dir():
        raise InputError(f"{root}: no such folder (set dataset.root to a folder with one folder of images a class)")
    classes = tuple(_class_folders(train))
    if not classes:
        raise InputError(f"{train}: has no folders (one folder of images for each class is expected)")
    train_arrays = _read_folder(train, classes, dataset)
    if train == root or not (root / "test").is_dir():
        return _hold_out(dataset, *train_arrays, tuple(map(printable, classes)))
    unknown = set(_class_folders(root / "test")) - set(classes)
    if unknown:
        raise InputError(f"{root / 'test'}: has classes that {train} has not: {', '.join(sorted(unknown))}")
    test_arrays = _read_folder(root / "test", classes, dataset)
    return RawArrays(*train_arrays, *test_arrays, tuple(map(printable, classes)))


def _class_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, except hidden ones such as `.ipynb_checkpoints`."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_folder(folder: Path, classes: tuple[str, ...], dataset: ImageFolder) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*")):
            if path.suffix.lower() not in SUFFIXES:
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{path}: leads out of {folder} (copy the image instead of linking it)")
            image = read_image(path, height=dataset.height, width=dataset.width, grayscale=dataset.grayscale)
            images.append(image)
            labels.append(label)
    if not images:
        raise InputError(f"{folder}: has no images ({', '.join(sorted(SUFFIXES))}) in its classes' folders")
    return np.stack(images), np.array(labels, dtype=np.int64)
