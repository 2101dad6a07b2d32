"""Reading, checking, caching and dividing data, on small files in the real formats and on the real data where it is."""

import hashlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagetree import config, data
from stagetree.mistakes import InputError

REAL = Path(os.environ.get("STAGETREE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def npz(path: Path, **settings) -> config.Npz:
    return config.Npz(name="npz", root=str(path.parent), file=path.name, **settings)


def write_npz(folder: Path, **changes) -> Path:
    """Write 60 + 12 pictures of 4x4 in three classes, with some arrays changed; `None` leaves one out."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (60, 4, 4), dtype=np.uint8), "train_y": np.arange(60) % 3,
        "test_x": rng.integers(0, 256, (12, 4, 4), dtype=np.uint8), "test_y": np.arange(12) % 3,
    } | changes  # fmt: skip
    path = folder / "own.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


# ---------------------------------------------------------------- npz, folders


def test_arrays_are_mapped_as_they_were_given(tmp_path):
    path = write_npz(tmp_path)
    info = data.prepare(npz(path), tmp_path / "out")
    assert (info.image_shape, info.n_train, info.n_test, info.classes) == ((1, 4, 4), 60, 12, ("0", "1", "2"))
    arrays = data.load(Path(info.folder), info.digest)
    with np.load(path) as given:
        assert np.array_equal(arrays.train_images, given["train_x"].reshape(60, 16))
        assert np.array_equal(arrays.test_labels, given["test_y"])


def test_colour_pictures_are_kept_channel_by_channel(tmp_path):
    x = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
    path = write_npz(tmp_path, train_x=x, train_y=np.arange(6) % 3, test_x=x[:3] + 1, test_y=np.arange(3))
    info = data.prepare(npz(path), tmp_path / "out")
    assert info.image_shape == (3, 4, 5)
    rows = data.load(Path(info.folder), info.digest).train_images
    assert np.array_equal(rows, x.transpose(0, 3, 1, 2).reshape(6, -1))


def test_the_digest_is_of_the_content_alone(tmp_path):
    """The same data elsewhere, under another name and compressed, is the same data; one byte more is not."""
    path = write_npz(tmp_path)
    first = data.prepare(npz(path), tmp_path / "a").digest
    with np.load(path) as given:
        arrays = dict(given)
    other = tmp_path / "moved" / "x.npz"
    other.parent.mkdir()
    np.savez_compressed(other, **arrays)
    assert data.prepare(npz(other), tmp_path / "b").digest == first
    arrays["test_x"][3, 2, 1] ^= 1
    np.savez(path, **arrays)
    assert data.prepare(npz(path), tmp_path / "a").digest != first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_y": None}, "needs the arrays train_x, train_y and, for a test set, test_x and test_y"),
        ({"test_y": None}, "needs the arrays train_x, train_y and, for a test set, test_x and test_y"),
        ({"train_y": np.arange(59) % 3}, "train_x and train_y must be equally many and not none, got 60 and 59"),
        ({"train_x": np.zeros((60, 2, 2, 2, 2), np.uint8)}, "must be (n, h, w, c), (n, h, w) or (n, features), got"),
        ({"train_x": np.zeros((60, 4, 5), np.uint8)}, "training and test pictures must have one shape"),
        ({"train_x": np.zeros((60, 4, 4), np.int64)}, "train_x must be uint8 (0..255) or floats, got int64"),
        ({"train_x": np.full((60, 4, 4), np.nan)}, "train_x holds NaN or infinity"),
        ({"train_y": np.arange(60) % 3 - 1}, "train_y must count classes from 0, got -1"),
        ({"train_y": np.arange(60) / 3}, "train_y must be whole numbers (n,), got float64"),
        ({"train_y": (np.arange(60) % 2) * 2}, "no training pictures of class 1"),
        ({"test_y": np.arange(12)}, "test labels must be 0 to 2, got 3"),
        ({"train_x": np.array([object()] * 60)}, "cannot be read as .npz without pickle"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused_by_name(tmp_path, changes, said):
    with pytest.raises(InputError) as error:
        data.prepare(npz(write_npz(tmp_path, **changes)), tmp_path / "out")
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"val_size": 60}, "dataset.val_size: must leave pictures to train on, got 60 of 60"),
        ({"val_size": 0.001}, "dataset.val_size: 0.001 of 60 pictures is none"),
        ({"mean": (0.5, 0.5)}, "dataset.mean: needs 1 value"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(tmp_path, settings, said):
    with pytest.raises(InputError) as error:
        data.prepare(npz(write_npz(tmp_path), **settings), tmp_path / "out")
    assert said in str(error.value)


def test_a_file_that_is_missing_torn_or_outside_is_told(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        data.prepare(npz(tmp_path / "nothing.npz"), tmp_path / "out")
    path = write_npz(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read as"):
        data.prepare(npz(path), tmp_path / "out")
    with pytest.raises(InputError, match="must lie below"):
        data.prepare(config.Npz(name="npz", root=str(tmp_path / "sub"), file="../own.npz"), tmp_path / "out")


def test_train_pictures_that_stand_in_the_test_set_are_counted(tmp_path):
    with np.load(write_npz(tmp_path)) as given:
        train = given["train_x"]
    path = write_npz(tmp_path, test_x=np.concatenate([train[:5], 255 - train[5:12]]))
    said = "npz: 5 of 12 test pictures stand in the training set too"
    assert data.prepare(npz(path), tmp_path / "out").notes == (said,)
    assert data.prepare(npz(path, duplicates="ignore"), tmp_path / "out").notes == ()
    with pytest.raises(InputError, match=said):
        data.prepare(npz(path, duplicates="error"), tmp_path / "out")


@pytest.mark.parametrize(("size", "count"), [(10, 10), (0.25, 15)])
def test_a_test_set_is_held_out_where_there_is_none(tmp_path, size, count):
    path = write_npz(tmp_path, test_x=None, test_y=None)
    info = data.prepare(npz(path, test_size=size), tmp_path / "out")
    assert (info.n_train, info.n_test) == (60 - count, count)
    assert data.prepare(npz(path, test_size=size, test_seed=1), tmp_path / "out").digest != info.digest
    with pytest.raises(InputError, match="no test set of its own"):
        data.prepare(npz(path), tmp_path / "out")


def write_pictures(root: Path, names=("cat", "dog"), n=3, size=(5, 4)) -> None:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", size, (label * 100, i * 10, 7)).save(root / name / f"{i}.png")


def folder(root: Path, **settings) -> config.ImageFolder:
    return config.ImageFolder(name="image_folder", root=str(root), height=4, width=5, **settings)


def test_folders_of_pictures_are_read_by_class(tmp_path):
    write_pictures(tmp_path / "p/train")
    write_pictures(tmp_path / "p/test", n=2)
    info = data.prepare(folder(tmp_path / "p"), tmp_path / "out")
    assert (info.classes, info.image_shape, info.n_train, info.n_test) == (("cat", "dog"), (3, 4, 5), 6, 4)
    arrays = data.load(Path(info.folder), info.digest)
    assert arrays.train_images.reshape(6, 3, 20)[4].tolist() == [[100] * 20, [10] * 20, [7] * 20]
    assert arrays.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    gray = data.prepare(folder(tmp_path / "p", grayscale=True), tmp_path / "out")
    assert gray.image_shape == (1, 4, 5)


def test_pictures_that_cannot_be_used_are_told_by_name(tmp_path):
    write_pictures(tmp_path / "p")
    with pytest.raises(InputError, match="no test set of its own"):
        data.prepare(folder(tmp_path / "p"), tmp_path / "out")
    (tmp_path / "p/cat/9.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"9\.png: cannot be read as a picture"):
        data.prepare(folder(tmp_path / "p", test_size=2), tmp_path / "out")
    (tmp_path / "p/cat/9.png").unlink()
    (tmp_path / "p/cat/8.png").symlink_to(write_outside(tmp_path))
    with pytest.raises(InputError, match=r"8\.png: leads out of"):
        data.prepare(folder(tmp_path / "p", test_size=2), tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        data.prepare(folder(tmp_path / "nowhere", test_size=2), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no folders"):
        data.prepare(folder(tmp_path / "empty", test_size=2), tmp_path / "out")


def write_outside(folder: Path) -> Path:
    Image.new("RGB", (5, 4)).save(folder / "outside.png")
    return folder / "outside.png"


# ---------------------------------------------------------------- torchvision, digits


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the format of MNIST's files."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_the_mnist_family_is_read_from_its_own_files(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.arange(40, dtype=np.uint8) % 10
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, members in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images[members]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[members]))
    info = data.prepare(config.Torchvision(name="fashion_mnist", root=str(tmp_path)), tmp_path / "out")
    assert (info.image_shape, info.n_train, info.n_test, info.classes[0]) == ((1, 28, 28), 30, 10, "T-shirt/top")
    assert np.array_equal(data.load(Path(info.folder), info.digest).train_images, images[:30].reshape(30, 784))


def test_emnist_is_upright_and_its_letters_count_from_0(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (52, 28, 28), dtype=np.uint8), np.arange(52, dtype=np.uint8) % 26 + 1
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(images.transpose(0, 2, 1).copy()))
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    info = data.prepare(config.Emnist(name="emnist", root=str(tmp_path), split="letters"), tmp_path / "out")
    arrays = data.load(Path(info.folder), info.digest)
    assert (info.classes[0], info.classes[-1], len(info.classes)) == ("a", "z", 26)
    assert np.array_equal(arrays.train_images[1].reshape(28, 28), images[1])
    assert arrays.train_labels.tolist()[:3] == [0, 1, 2]


def test_cifar10_is_read_through_torchvisions_checksums(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    batches = tmp_path / CIFAR10.base_folder
    batches.mkdir()
    written = {}
    for name in [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]:
        written[name] = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": written[name], "labels": [i % 10 for i in range(20)]}))
    meta = batches / CIFAR10.meta["filename"]
    meta.write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))

    def listed(names):
        return [[name, hashlib.md5((batches / name).read_bytes()).hexdigest()] for name in names]

    monkeypatch.setattr(CIFAR10, "train_list", listed([name for name, _ in CIFAR10.train_list]))
    monkeypatch.setattr(CIFAR10, "test_list", listed([name for name, _ in CIFAR10.test_list]))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()})
    info = data.prepare(config.Torchvision(name="cifar10", root=str(tmp_path)), tmp_path / "out")
    arrays = data.load(Path(info.folder), info.digest)
    assert (info.image_shape, info.n_train, info.n_test, info.classes[3]) == ((3, 32, 32), 100, 20, "class 3")
    assert np.array_equal(arrays.test_images, written["test_batch"])


def test_data_that_is_neither_there_nor_to_be_downloaded_is_told_with_a_cure(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(InputError, match="mnist is not there and cannot be downloaded") as error:
        data.prepare(config.Torchvision(name="mnist", root=str(tmp_path)), tmp_path / "out")
    assert "set dataset.root or STAGETREE_DATA" in str(error.value)


def test_digits_are_bundled(tmp_path):
    info = data.prepare(config.Digits(name="digits", root="", test_size=360), tmp_path)
    assert (info.n_train, info.n_test, info.image_shape, len(info.classes)) == (1437, 360, (1, 8, 8), 10)
    images = data.load(Path(info.folder), info.digest).train_images
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.skipif(not (REAL / "MNIST").exists(), reason=f"{REAL} does not hold the real data (STAGETREE_TEST_DATA)")
@pytest.mark.parametrize(("name", "counts"), [("mnist", [5923, 6742]), ("fashion_mnist", [6000, 6000])])
def test_the_real_data_is_read_whole(tmp_path, name, counts):
    info = data.prepare(config.Torchvision(name=name, root=str(REAL)), tmp_path)
    arrays = data.load(Path(info.folder), info.digest)
    assert (info.n_train, info.n_test) == (60_000, 10_000)
    assert np.bincount(arrays.train_labels)[:2].tolist() == counts


# ---------------------------------------------------------------- cache


def test_an_unchanged_source_is_not_read_again_and_nothing_heavy_is_imported(tmp_path):
    code = (
        "import sys; from pathlib import Path; from stagetree import config, data;"
        "print(data.prepare(config.Digits(name='digits', root='', test_size=360), Path(sys.argv[1])).digest,"
        "sorted({'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    cold, warm = [
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert cold.split()[0] == warm.split()[0]
    assert "sklearn" in cold
    assert warm.split(maxsplit=1)[1].strip() == "[]"


def test_a_changed_source_is_read_again(tmp_path):
    path = write_npz(tmp_path)
    first = data.prepare(npz(path), tmp_path / "out")
    path = write_npz(tmp_path, train_y=np.arange(60)[::-1] % 3)
    assert data.prepare(npz(path), tmp_path / "out").digest != first.digest


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "data.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_is_refused_with_its_name_and_made_again(tmp_path, name, damage):
    info = data.prepare(npz(write_npz(tmp_path)), tmp_path / "out")
    path = Path(info.folder) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        content[5 if name == "data.json" else -1] ^= 0x11
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        data.load(Path(info.folder), info.digest)
    assert f"{info.folder}: the prepared data is gone or damaged (run the same command again" in str(error.value)
    assert data.prepare(npz(tmp_path / "own.npz"), tmp_path / "out") == info
    data.load(Path(info.folder), info.digest)


def test_the_users_own_floats_are_left_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 7))
    path = write_npz(tmp_path, train_x=x, test_x=x[:12] + 1)
    info = data.prepare(npz(path), tmp_path / "out")
    rows = data.load(Path(info.folder), info.digest).train_images
    assert (info.scale, info.image_shape) == (1.0, (1, 1, 7))
    assert np.array_equal(rows, x.astype(np.float32))
