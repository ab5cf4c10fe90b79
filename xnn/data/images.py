"""Reads PNG and JPEG files as arrays of bytes, with Pillow (extra `image`)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xnn.errors import CorruptFileError, DataNotFoundError, MissingExtraError, OptionError
from xnn.files import reading
from xnn.options import shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ENDINGS",
    "LONGEST",
    "OTHER_IMAGES",
    "check_pillow",
    "checked_size",
    "grey_within",
    "picture",
    "read_image",
    "size_and_channels",
]

#: The endings of the names of images that are read, in lower case.
ENDINGS = (".png", ".jpg", ".jpeg")
#: The endings of images of other formats.
OTHER_IMAGES = (".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".svg")

LONGEST = 4096  #: pixels of a side to which images are resized, at most
_FORMATS = ("PNG", "JPEG")
_GREY = ("1", "L", "LA", "La", "I", "F")  # modes without colors, and those that begin with "I;16"
_TURNED = (5, 6, 7, 8)  # orientations in EXIF that exchange width and height
_ORIENTATION = 0x0112


def check_pillow() -> None:
    """Raise MissingExtraError if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('images need Pillow: pip install ".[image]"') from error


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """A PNG or JPEG file, of which the header is read. What Pillow raises becomes an error that names the file."""
    check_pillow()
    from PIL import Image

    with reading(path):
        if path.is_dir():
            raise DataNotFoundError(f"{path} is a folder, not an image")
        file = open(path, "rb")  # noqa: SIM115
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=_FORMATS) as image:
                if image.format == "PNG" and getattr(image, "is_animated", False):
                    raise CorruptFileError(f"{path} is animated: save one of its pictures as PNG")
                yield image
        except (CorruptFileError, MemoryError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise CorruptFileError(
                f"{path} has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels, too many to unpack: make it smaller"
            ) from error
        except (
            Exception
        ) as error:  # Pillow raises OSError, SyntaxError, ValueError and others for broken files
            kind = path.suffix[1:].upper() or "image"
            broken = "" if type(error).__name__ == "UnidentifiedImageError" else f" ({error})"
            raise CorruptFileError(
                f"{path} is no PNG or JPEG, or a broken one{broken}: save it as {kind} again"
            ) from error


def _is_grey(image: Image) -> bool:
    return image.mode in _GREY or image.mode.startswith("I;16")


def size_and_channels(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """The height and width of an image as it is to be seen, and its channels: 1 if it is grey, else 3.

    Only the head of the file is read. Raises as `read_image`.
    """
    with _opened(Path(path)) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return ((width, height) if turned else (height, width)), 1 if _is_grey(image) else 3


def read_image(
    path: str | os.PathLike[str], channels: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The pixels of a PNG or JPEG file, uint8 (channels, height, width): 0 is black, 255 is white or full color.

    path: the file. Its content says whether it is PNG or JPEG.
    channels: 1 for grey, 3 for red, green and blue. Colors become grey by 0.299 R + 0.587 G + 0.114 B.
    size: height and width to which the image is resized, whatever its aspect ratio. Default None: it is not.

    The image is turned as its EXIF data say. What is transparent shows white. 16 bits become 8, palettes and CMYK
    become colors.

    Raises DataNotFoundError if the file cannot be read; CorruptFileError for a file that is broken, is neither PNG
    nor JPEG, is animated, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`; MissingExtraError without Pillow.
    """
    with _opened(Path(path)) as opened:
        image = picture(opened, channels)
        if size is not None and image.size != size[::-1]:
            from PIL import Image

            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def picture(image: Image, channels: int) -> Image:
    """An image of Pillow as it is to be seen, of mode L (one channel) or RGB (three)."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion cuts them off at 255
        return picture(Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)), channels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def checked_size(value: object) -> tuple[int, int] | None:
    """A size of images as (height, width). Raises OptionError unless it is None or two positive integers."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, Iterable) else ()
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= LONGEST for side in pair):
        raise OptionError(
            f"image_size must be the height and width of images, two integers from 1 to {LONGEST}, got {shown(value)}"
        )
    return pair[0], pair[1]


def grey_within(path: Path, longest: int) -> np.ndarray:
    """An image in grey, uint8 (height, width), made smaller until no side has more than `longest` pixels."""
    with _opened(path) as opened:
        image = picture(opened, 1)
        image.thumbnail((longest, longest))
        return np.asarray(image, np.uint8)
