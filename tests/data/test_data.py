"""Reading, checking, caching and dividing data, on small files in the real formats and on the real data where it is."""

import dataclasses
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

from stagetree.config import schema
from stagetree.data import cache
from stagetree.errors import InputError

REAL = Path(os.environ.get("STAGETREE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def npz(path: Path, **settings) -> schema.Npz:
    return schema.Npz(name="npz", root=str(path.parent), file=path.name, **settings)


def write_npz(folder: Path, **changes) -> Path:
    """Write 60 + 12 images of 4x4 in three classes, with some arrays changed; `None` leaves one out."""
    rng = np.random.default_rng(0)
    arrays = {f"{part}_x": rng.integers(0, 256, (n, 4, 4), dtype=np.uint8) for part, n in (("train", 60), ("test", 12))}
    arrays |= {"train_y": np.arange(60) % 3, "test_y": np.arange(12) % 3, **changes}
    path = folder / "own.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


# ---------------------------------------------------------------- npz, folders


def test_arrays_are_mapped_as_they_were_given(tmp_path):
    path = write_npz(tmp_path)
    info = cache.prepare(npz(path), tmp_path / "out")
    assert (info.image_shape, info.n_train, info.n_test, info.classes) == ((1, 4, 4), 60, 12, ("0", "1", "2"))
    arrays = cache.load(Path(info.folder), info.digest)
    with np.load(path) as given:
        assert np.array_equal(arrays.train_images, given["train_x"].reshape(60, 16))
        assert np.array_equal(arrays.test_labels, given["test_y"])


def test_color_images_are_kept_channel_by_channel(tmp_path):
    x = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
    path = write_npz(tmp_path, train_x=x, train_y=np.arange(6) % 3, test_x=x[:3] + 1, test_y=np.arange(3))
    info = cache.prepare(npz(path), tmp_path / "out")
    assert info.image_shape == (3, 4, 5)
    rows = cache.load(Path(info.folder), info.digest).train_images
    assert np.array_equal(rows, x.transpose(0, 3, 1, 2).reshape(6, -1))


def test_the_digest_is_of_the_content_alone(tmp_path):
    """The same data elsewhere, under another name and compressed, is the same data; one byte more is not."""
    path = write_npz(tmp_path)
    first = cache.prepare(npz(path), tmp_path / "a").digest
    with np.load(path) as given:
        arrays = dict(given)
    other = tmp_path / "moved" / "x.npz"
    other.parent.mkdir()
    np.savez_compressed(other, **arrays)
    assert cache.prepare(npz(other), tmp_path / "b").digest == first
    arrays["test_x"][3, 2, 1] ^= 1
    np.savez(path, **arrays)
    assert cache.prepare(npz(path), tmp_path / "a").digest != first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_y": None}, "needs the arrays train_x, train_y and, for a test set, test_x and test_y"),
        ({"test_y": None}, "needs the arrays train_x, train_y and, for a test set, test_x and test_y"),
        ({"train_y": np.arange(59) % 3}, "train_x and train_y must be equally many and not none, got 60 and 59"),
        (
            {"train_x": np.zeros((60, 2, 2, 2, 2), np.uint8)},
            "must be (n, h, w, c), (n, c, h, w), (n, h, w) or (n, features)",
        ),
        ({"train_x": np.zeros((60, 2, 4, 5), np.uint8)}, "c being 1, 3 or 4, got (60, 2, 4, 5)"),
        ({"train_y": np.full(60, 2**63, np.uint64)}, "train_y must count classes from 0, got 9223372036854775808"),
        (
            {"train_y": np.arange(60, dtype=np.uint32) * 10**7},
            "from 0 without gaps, got 590000000 in 60 labels",
        ),
        ({"classes": np.array(["cat", "dog"])}, "classes must be 3 names, all different"),
        ({"classes": np.array(["cat", "dog", "cat"])}, "classes must be 3 names, all different"),
        ({"classes": np.array([0.5, 1.5, 2.5])}, "classes must be 3 names, all different"),
        ({"train_x": np.zeros((60, 4, 5), np.uint8)}, "training and test images must have one shape"),
        ({"train_x": np.zeros((60, 4, 4), np.int64)}, "train_x must be uint8 (0..255) or floats, got int64"),
        ({"train_x": np.full((60, 4, 4), np.nan)}, "train_x holds NaN or infinity"),
        ({"train_y": np.arange(60) % 3 - 1}, "train_y must count classes from 0, got -1"),
        ({"train_y": np.arange(60) / 3}, "train_y must be whole numbers (n,), got float64"),
        ({"train_y": (np.arange(60) % 2) * 2}, "no training images of class 1"),
        ({"test_y": np.arange(12)}, "test labels must be 0 to 2, got 3"),
        ({"train_x": np.array([object()] * 60)}, "cannot be read as .npz without pickle"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused_by_name(tmp_path, changes, said):
    with pytest.raises(InputError) as error:
        cache.prepare(npz(write_npz(tmp_path, **changes)), tmp_path / "out")
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("type_", np.typecodes["AllInteger"])
def test_labels_may_be_of_any_type_of_whole_numbers(tmp_path, type_):
    path = write_npz(tmp_path, train_y=(np.arange(60) % 3).astype(type_), test_y=(np.arange(12) % 3).astype(type_))
    info = cache.prepare(npz(path), tmp_path / "out")
    assert info.classes == ("0", "1", "2")
    assert info.digest == cache.prepare(npz(write_npz(tmp_path)), tmp_path / "out").digest


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_first_or_last(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 256, (72, 6, 5, channels), dtype=np.uint8)
    infos = [
        cache.prepare(npz(write_npz(tmp_path, train_x=images[:60], test_x=images[60:])), tmp_path / "out")
        for images in (x, x.transpose(0, 3, 1, 2))
    ]
    assert infos[0] == infos[1]
    assert infos[0].image_shape == (channels, 6, 5)


@pytest.mark.parametrize("names", [["ä", "b", "c"], [b"x", b"y", b"z"], [10, 20, 30]])
def test_classes_are_named_by_the_file(tmp_path, names):
    info = cache.prepare(npz(write_npz(tmp_path, classes=np.array(names))), tmp_path / "out")
    assert info.classes == tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def test_floats_that_nobody_scaled_are_not_trained_on_without_a_word(tmp_path):
    """Images of bytes are refused, other values above 0 are told, standardised ones are what floats are for."""
    x = np.random.default_rng(0).random((72, 4, 4))

    def prepare(scaled, **settings):
        path = write_npz(tmp_path, train_x=scaled[:60], test_x=scaled[60:])
        return cache.prepare(npz(path, **settings), tmp_path / "out")

    for silent in (x, 4 * x - 2, 1000 * x - 500):
        assert prepare(silent).notes == ()
    for told in (16 * x, (255 * x).reshape(72, 16)):
        assert "floats are taken as they are, and these go from" in prepare(told, duplicates="ignore").notes[0]
    for _ in range(2):  # from the cache too
        with pytest.raises(InputError, match=r"these go from 0\.\d+ to 25\d\.\d+, expected about 0 to 1"):
            prepare(255 * x)
    assert prepare(255 * x, std=(255.0,)).notes == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"val_size": 60}, "dataset.val_size: must leave images to train on, got 60 of 60"),
        ({"val_size": 0.001}, "dataset.val_size: 0.001 of 60 images is none"),
        ({"mean": (0.5, 0.5)}, "dataset.mean: needs 1 value"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(tmp_path, settings, said):
    with pytest.raises(InputError) as error:
        cache.prepare(npz(write_npz(tmp_path), **settings), tmp_path / "out")
    assert said in str(error.value)


def test_a_file_that_is_missing_torn_or_outside_is_told(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        cache.prepare(npz(tmp_path / "nothing.npz"), tmp_path / "out")
    path = write_npz(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read as"):
        cache.prepare(npz(path), tmp_path / "out")
    with pytest.raises(InputError, match="must lie below"):
        cache.prepare(schema.Npz(name="npz", root=str(tmp_path / "sub"), file="../own.npz"), tmp_path / "out")


def test_train_images_that_stand_in_the_test_set_are_counted(tmp_path):
    with np.load(write_npz(tmp_path)) as given:
        train = given["train_x"]
    path = write_npz(tmp_path, test_x=np.concatenate([train[:5], 255 - train[5:12]]))
    said = "npz: 5 of 12 test images stand in the training set too"
    assert cache.prepare(npz(path), tmp_path / "out").notes == (said,)
    assert cache.prepare(npz(path, duplicates="ignore"), tmp_path / "out").notes == ()
    with pytest.raises(InputError, match=said):
        cache.prepare(npz(path, duplicates="error"), tmp_path / "out")


@pytest.mark.parametrize(("size", "count"), [(10, 10), (0.25, 15)])
def test_a_test_set_is_held_out_where_there_is_none(tmp_path, size, count):
    path = write_npz(tmp_path, test_x=None, test_y=None)
    info = cache.prepare(npz(path, test_size=size), tmp_path / "out")
    assert (info.n_train, info.n_test) == (60 - count, count)
    assert cache.prepare(npz(path, test_size=size, test_seed=1), tmp_path / "out").digest != info.digest
    with pytest.raises(InputError, match="no test set of its own"):
        cache.prepare(npz(path), tmp_path / "out")


def write_images(root: Path, names=("cat", "dog"), n=3, size=(5, 4)) -> None:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", size, (label * 100, i * 10, 7)).save(root / name / f"{i}.png")


def folder(root: Path, **settings) -> schema.ImageFolder:
    return schema.ImageFolder(name="image_folder", root=str(root), height=4, width=5, **settings)


def test_folders_of_images_are_read_by_class(tmp_path):
    write_images(tmp_path / "p/train")
    write_images(tmp_path / "p/test", n=2)
    info = cache.prepare(folder(tmp_path / "p"), tmp_path / "out")
    assert (info.classes, info.image_shape, info.n_train, info.n_test) == (("cat", "dog"), (3, 4, 5), 6, 4)
    arrays = cache.load(Path(info.folder), info.digest)
    assert arrays.train_images.reshape(6, 3, 20)[4].tolist() == [[100] * 20, [10] * 20, [7] * 20]
    assert arrays.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    gray = cache.prepare(folder(tmp_path / "p", grayscale=True), tmp_path / "out")
    assert gray.image_shape == (1, 4, 5)


def test_images_that_cannot_be_used_are_told_by_name(tmp_path):
    write_images(tmp_path / "p")
    with pytest.raises(InputError, match="no test set of its own"):
        cache.prepare(folder(tmp_path / "p"), tmp_path / "out")
    (tmp_path / "p/cat/9.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"9\.png: cannot be read as an image"):
        cache.prepare(folder(tmp_path / "p", test_size=2), tmp_path / "out")
    (tmp_path / "p/cat/9.png").unlink()
    (tmp_path / "p/cat/8.png").symlink_to(write_outside(tmp_path))
    with pytest.raises(InputError, match=r"8\.png: leads out of"):
        cache.prepare(folder(tmp_path / "p", test_size=2), tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        cache.prepare(folder(tmp_path / "nowhere", test_size=2), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no folders"):
        cache.prepare(folder(tmp_path / "empty", test_size=2), tmp_path / "out")


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
    info = cache.prepare(schema.Torchvision(name="fashion_mnist", root=str(tmp_path)), tmp_path / "out")
    assert (info.image_shape, info.n_train, info.n_test, info.classes[0]) == ((1, 28, 28), 30, 10, "T-shirt/top")
    assert np.array_equal(cache.load(Path(info.folder), info.digest).train_images, images[:30].reshape(30, 784))


def test_emnist_is_upright_and_its_letters_count_from_0(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (52, 28, 28), dtype=np.uint8), np.arange(52, dtype=np.uint8) % 26 + 1
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(images.transpose(0, 2, 1).copy()))
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    info = cache.prepare(schema.Emnist(name="emnist", root=str(tmp_path), split="letters"), tmp_path / "out")
    arrays = cache.load(Path(info.folder), info.digest)
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
    info = cache.prepare(schema.Torchvision(name="cifar10", root=str(tmp_path)), tmp_path / "out")
    arrays = cache.load(Path(info.folder), info.digest)
    assert (info.image_shape, info.n_train, info.n_test, info.classes[3]) == ((3, 32, 32), 100, 20, "class 3")
    assert np.array_equal(arrays.test_images, written["test_batch"])


def test_data_that_is_neither_there_nor_to_be_downloaded_is_told_with_a_cure(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(InputError, match="mnist is not there and cannot be downloaded") as error:
        cache.prepare(schema.Torchvision(name="mnist", root=str(tmp_path)), tmp_path / "out")
    assert "set dataset.root or STAGETREE_DATA" in str(error.value)


def test_digits_are_bundled(tmp_path):
    info = cache.prepare(schema.Digits(name="digits", root="", test_size=360), tmp_path)
    assert (info.n_train, info.n_test, info.image_shape, len(info.classes)) == (1437, 360, (1, 8, 8), 10)
    images = cache.load(Path(info.folder), info.digest).train_images
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.skipif(not (REAL / "MNIST").exists(), reason=f"{REAL} does not hold the real data (STAGETREE_TEST_DATA)")
@pytest.mark.parametrize(("name", "counts"), [("mnist", [5923, 6742]), ("fashion_mnist", [6000, 6000])])
def test_the_real_data_is_read_whole(tmp_path, name, counts):
    info = cache.prepare(schema.Torchvision(name=name, root=str(REAL)), tmp_path)
    arrays = cache.load(Path(info.folder), info.digest)
    assert (info.n_train, info.n_test) == (60_000, 10_000)
    assert np.bincount(arrays.train_labels)[:2].tolist() == counts


# ---------------------------------------------------------------- cache


def test_an_unchanged_source_is_not_read_again_and_nothing_heavy_is_imported(tmp_path):
    code = (
        "import sys; from pathlib import Path; from stagetree.config import schema; from stagetree.data import cache;"
        "print(cache.prepare(schema.Digits(name='digits', root='', test_size=360), Path(sys.argv[1])).digest,"
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
    first = cache.prepare(npz(path), tmp_path / "out")
    path = write_npz(tmp_path, train_y=np.arange(60)[::-1] % 3)
    assert cache.prepare(npz(path), tmp_path / "out").digest != first.digest


def test_what_a_source_says_of_the_same_content_is_noticed_and_the_content_is_left_alone(tmp_path):
    """Whatever it is, what the cache says is what a fresh folder would; the digest, part of every uid, stays."""
    with np.load(write_npz(tmp_path)) as given:
        train, test = given["train_x"], given["test_x"]
    sources = [
        {"train_x": images.reshape(-1, *shape), "test_x": held.reshape(-1, *shape), "classes": names}
        for images, held in [(train, test)]
        for shape, names in [((16,), None), ((4, 4), None), ((2, 8), None), ((4, 4), ["a", "b", "c"]), ((4, 4), "xyz")]
    ]
    said, files = [], None
    for number, source in enumerate(sources):
        names = source["classes"]
        path = write_npz(tmp_path, **{**source, "classes": None if names is None else np.array(list(names))})
        info = cache.prepare(npz(path), tmp_path / "out")
        fresh = cache.prepare(npz(path), tmp_path / f"fresh{number}")
        assert info == dataclasses.replace(fresh, folder=info.folder)
        assert cache.prepare(npz(path), tmp_path / "out") == info  # from the cache
        assert cache.find(info.digest, tmp_path / "out") == info
        assert cache.load(Path(info.folder), info.digest).info == info
        said.append((info.image_shape, info.classes))
        now = {array: array.stat().st_ino for array in Path(info.folder).glob("*.npy")}
        assert now == (files or now)  # a worker may have them mapped
        files = now
    assert len(set(said)) == len(sources)


def test_sources_of_one_content_keep_their_own_names(tmp_path):
    write_images(tmp_path / "animals", ("cat", "dog"))
    write_images(tmp_path / "letters", ("a", "b"))
    animals, letters = [folder(tmp_path / name, test_size=2) for name in ("animals", "letters")]
    for _ in range(2):
        first, second = cache.prepare(animals, tmp_path / "out"), cache.prepare(letters, tmp_path / "out")
        assert (first.classes, second.classes) == (("cat", "dog"), ("a", "b"))
        assert first.digest == second.digest
        assert cache.find(first.digest, tmp_path / "out").classes == ("a", "b")  # prepared last


def test_renamed_classes_of_a_folder_are_noticed(tmp_path):
    write_images(tmp_path / "p", ("cat", "dog"))
    before = cache.prepare(folder(tmp_path / "p", test_size=2), tmp_path / "out")
    (tmp_path / "p/cat").rename(tmp_path / "p/bird")
    after = cache.prepare(folder(tmp_path / "p", test_size=2), tmp_path / "out")
    assert (after.classes, after.digest) == (("bird", "dog"), before.digest)
    assert cache.find(after.digest, tmp_path / "out").classes == ("bird", "dog")


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "data.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_is_refused_with_its_name_and_made_again(tmp_path, name, damage):
    info = cache.prepare(npz(write_npz(tmp_path)), tmp_path / "out")
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
        cache.load(Path(info.folder), info.digest)
    assert f"{info.folder}: the prepared data is gone or damaged (run the same command again" in str(error.value)
    assert cache.prepare(npz(tmp_path / "own.npz"), tmp_path / "out") == info
    cache.load(Path(info.folder), info.digest)


def test_the_users_own_floats_are_left_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 7))
    path = write_npz(tmp_path, train_x=x, test_x=x[:12] + 1)
    info = cache.prepare(npz(path), tmp_path / "out")
    rows = cache.load(Path(info.folder), info.digest).train_images
    assert (info.scale, info.image_shape) == (1.0, (1, 1, 7))
    assert np.array_equal(rows, x.astype(np.float32))
