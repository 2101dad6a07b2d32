"""Image files of every depth and mode, read the same."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagetree.data.images import read_image
from stagetree.errors import InputError

RAMP = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)


def read(path: Path, **settings) -> np.ndarray:
    return read_image(path, **{"height": 4, "width": 4, "grayscale": True, **settings})


def drawn_in_alpha(mode: str) -> Image.Image:
    """A black drawing on nothing."""
    layers = Image.new("RGBA", (4, 4))
    layers.putalpha(Image.fromarray(255 - RAMP))
    return layers.convert(mode)


def with_key() -> Image.Image:
    """A palette of grays, the darkest of which is transparent."""
    image = Image.fromarray(RAMP).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


READ_RIGHTLY = {
    "8 bits.png": Image.fromarray(RAMP),
    "16 bits.png": Image.fromarray(RAMP.astype(np.uint16) * 257),
    "16 bits.tif": Image.fromarray(RAMP.astype(np.uint16) * 257),
    "16 bits.pgm": Image.fromarray(RAMP.astype(np.uint16) * 257),
    "floats to 1.tif": Image.fromarray(RAMP.astype(np.float32) / 255),
    "floats to 255.tif": Image.fromarray(RAMP.astype(np.float32)),
    "32 bits to 255.tif": Image.fromarray(RAMP.astype(np.int32)),
    "colours.png": Image.fromarray(RAMP).convert("RGB"),
    "palette.png": Image.fromarray(RAMP).convert("P"),
    "opaque.png": Image.fromarray(RAMP).convert("RGBA"),
    "drawn in alpha.png": drawn_in_alpha("RGBA"),
    "drawn in alpha, gray.png": drawn_in_alpha("LA"),
}


@pytest.mark.parametrize("name", READ_RIGHTLY)
@pytest.mark.parametrize("grayscale", [True, False])
def test_an_image_is_the_same_in_whatever_depth_and_mode_it_is_kept(tmp_path, name, grayscale):
    READ_RIGHTLY[name].save(tmp_path / name)
    found = read(tmp_path / name, grayscale=grayscale)
    assert (found.dtype, found.shape) == (np.uint8, (1 if grayscale else 3, 4, 4))
    assert all(np.array_equal(channel, RAMP) for channel in found)


def test_what_is_transparent_is_laid_on_white(tmp_path):
    with_key().save(tmp_path / "key.png")
    assert read(tmp_path / "key.png")[0].flatten().tolist() == [255, *RAMP.flatten()[1:].tolist()]


TURN = Image.Transpose
TURNS = [TURN.FLIP_LEFT_RIGHT, TURN.ROTATE_180, TURN.FLIP_TOP_BOTTOM, TURN.TRANSPOSE]
TURNS += [TURN.ROTATE_270, TURN.TRANSVERSE, TURN.ROTATE_90]
"""That undo the orientations from 2 to 8."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_camera_was_held(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.kron(RAMP, np.ones((8, 8), np.uint8)))
    expected = stored if orientation == 1 else stored.transpose(TURNS[orientation - 2])
    stored.save(tmp_path / "turned.png", exif=exif)
    found = read(tmp_path / "turned.png", height=32, width=32)[0]
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("a.png", Image.fromarray(RAMP.astype(np.uint16) * 16), "its 16-bit values from 0 to 4080 leave open which"),
        ("a.tif", Image.fromarray(RAMP.astype(np.int32) * 257), "its 32-bit whole numbers from 0 to 65535 leave"),
        ("a.tif", Image.fromarray(RAMP.astype(np.float32) - 1), "its floats from -1 to 254 leave open"),
        ("a.tif", Image.fromarray(np.full((4, 4), np.nan, np.float32)), "its floats from nan to nan leave open"),
        ("a.png", Image.merge("LA", [Image.new("L", (4, 4), 255), Image.fromarray(RAMP)]), "white on transparent"),
    ],
)
def test_an_image_that_leaves_open_what_it_shows_is_refused(tmp_path, name, image, said):
    image.save(tmp_path / name)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {said}")
