"""Read image files and draw images; decide what Pillow leaves open."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stagetree.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
"""The suffixes of the files in folders that are read as images."""


def read_image(path: Path, *, height: int, width: int, grayscale: bool, resize: bool = True) -> np.ndarray:
    """Read one image file as uint8 `(c, height, width)`.

    The image is turned as its EXIF data says. 16-bit values, and floats from 0 to 1, are scaled to 0..255; transparent
    images are laid on white, as image viewers do.

    Args:
        path: the path of the file; only the first of several frames is read.
        height: in pixels.
        width: in pixels.
        grayscale: whether to return one channel instead of three.
        resize: whether to resize images of another size; `False` refuses them.

    Raises:
        InputError: the file cannot be read, is too large for an image, or has values of unknown range.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = _as_bytes(ImageOps.exif_transpose(opened), opened.format, path)
            image = _visible(image, path).convert("L" if grayscale else "RGB")
            if image.size != (width, height):
                if not resize:
                    raise InputError(
                        f"{path}: expected {width} x {height} pixels, since the model was trained on rows of numbers, "
                        f"got {image.width} x {image.height} (train on arrays (n, h, w), and any size can be read)"
                    )
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image: {error} (repair or remove it)") from None
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _as_bytes(image: "Image.Image", file_format: str | None, path: Path) -> "Image.Image":
    """Scale images of more than 8 bits to bytes; Pillow's own conversion would cut values off above 255.

    Args:
        image: an image of any mode.
        file_format: the format of the file, as Pillow names it.
        path: the path of the file, for messages.

    Raises:
        InputError: it is unknown which value is white.
    """
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    # Pillow scales PGM files to 16 bits; in other files the largest value may be that of 12 or of 8 bits
    scaled = image.mode == "I" and file_format == "PPM"
    deep = scaled or image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG")
    if deep and (scaled or high == 0 or high >= 4096) and "transparency" not in image.info:
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "F" and low >= 0 and high <= 1:
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if not deep and low >= 0 and high <= 255:
        return image
    kind = "16-bit values" if deep else "floats" if image.mode == "F" else "32-bit whole numbers"
    raise InputError(
        f"{path}: its {kind} from {low:g} to {high:g} leave open which of them is white (save it as 8 bits)"
    )


def _visible(image: "Image.Image", path: Path) -> "Image.Image":
    """Lay a transparent image on white.

    Raises:
        InputError: the image is white itself.
    """
    from PIL import Image

    if not image.has_transparency_data:
        return image
    layers = image.convert("RGBA")
    alpha = np.asarray(layers.getchannel("A"))
    if alpha.min() == 255:
        return image
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    if np.ptp(alpha) and not np.ptp(np.asarray(flat), axis=(0, 1)).any():
        raise InputError(f"{path}: white on transparent, which is laid on white (save it with a dark background)")
    return flat


def draw(pixels: np.ndarray, image_shape: tuple[int, int, int]) -> "Image.Image":
    """Draw one image of a data set in its own size: 3 channels in color, else the first channel in gray.

    Args:
        pixels: `(in_features,)`, uint8 or float; floats are stretched so that the lowest is black, the highest white.
        image_shape: channels, height, width.
    """
    from PIL import Image

    image = pixels.reshape(image_shape)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)
    return Image.fromarray(image.transpose(1, 2, 0) if len(image) == 3 else image[0])
