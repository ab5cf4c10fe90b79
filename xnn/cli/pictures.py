"""Reads images for `xnn predict`: prepares them as the model's samples are, and shows them in the terminal."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xnn.cli.model_notes import Notes
from xnn.cli.samples import Samples
from xnn.data import dataset_names
from xnn.data.digit_photos import read_digit
from xnn.data.image_folders import images_in
from xnn.data.images import ENDINGS, OTHER_IMAGES, check_pillow, read_image, size_and_channels
from xnn.errors import CorruptFileError, OptionError, ShapeError
from xnn.files import StandardError, notice, printable, reading

__all__ = ["PREPARATIONS", "is_images", "read_images"]

PREPARATIONS = ("auto", "mnist", "resize", "none")
_MNIST_LIKE = ("mnist", "synthetic")
_NUMBERS, _TOGETHER = 2**22, 1024  # of samples that are predicted together, at most
_WIDEST = 64  # pixels of a row that is shown
_SHADES = " .:-=+*#%@"


def is_images(data: str) -> bool:
    """Whether DATA is an image or a folder. Raises OptionError for images of other formats than PNG and JPEG."""
    path = Path(data)
    if data in dataset_names():
        return False
    with reading(path):
        folder = path.is_dir()
    if not folder and path.suffix.lower() in OTHER_IMAGES:
        raise OptionError(
            f"{data} is a {path.suffix[1:].upper()} file: images must be PNG or JPEG, convert it"
        )
    return folder or path.suffix.lower() in ENDINGS


def read_images(
    model: str, data: str, prepare: str, notes: Notes, width: int, show: bool
) -> Iterator[Samples]:
    """The images that DATA names as samples of the model, in parts.

    model: its file, for messages. notes: those of its file. width: the number of features that it takes.
    prepare: one of PREPARATIONS. show: whether to draw each on standard error.

    Raises CorruptFileError, OptionError or ShapeError.
    """
    check_pillow()
    path = Path(data)
    with reading(path):
        folder = path.is_dir()
    files, skipped = images_in(path) if folder else ([path], Counter[str]())
    if not files:
        inside = f": its {skipped['folders']} folders are not looked into" if skipped.get("folders") else ""
        raise CorruptFileError(f"{data} holds no PNG or JPEG file{inside}; name a folder that has some")
    channels, height, across, last = _shape(model, notes, width)
    if prepare == "auto":
        digits = (notes.dataset in _MNIST_LIKE or not notes.dataset) and width == 784 and not notes.image
        prepare = "mnist" if digits else "resize"
    if prepare == "mnist" and (channels, height, across) != (1, 28, 28):
        raise OptionError(
            f"--prepare mnist makes images of 28x28 pixels, and {model} takes {channels} x {height} x {across}: use "
            "--prepare resize"
        )
    said = [f"{', '.join(f'{n} {kind}' for kind, n in sorted(skipped.items()))}: skipped"] if skipped else []
    if prepare == "mnist":
        said.append("prepared as MNIST's digits are; --prepare resize only resizes")
    return _parts(files, prepare, (channels, height, across), last, folder, show, said)


def _parts(
    files: list[Path],
    prepare: str,
    shape: tuple[int, int, int],
    last: bool,
    folder: bool,
    show: bool,
    said: list[str],
) -> Iterator[Samples]:
    together = max(1, min(_TOGETHER, _NUMBERS // math.prod(shape)))
    resized = 0
    for start in range(0, len(files), together):
        part = files[start : start + together]
        pixels = np.empty((len(part), *shape), np.uint8)
        for row, path in zip(pixels, part, strict=True):
            if prepare == "mnist":
                row[...] = read_digit(path)
            else:
                size, _ = size_and_channels(path)
                if prepare == "none" and size != shape[1:]:
                    raise ShapeError(
                        f"{path} has {size[0]}x{size[1]} pixels, and the model takes {shape[1]}x{shape[2]}: resize "
                        "it, or use --prepare resize"
                    )
                resized += size != shape[1:]
                row[...] = read_image(path, shape[0], shape[1:])
            if show:
                _show(path.name, row)
        x = pixels.transpose(0, 2, 3, 1) if last else pixels
        notes = [*said, *([f"{resized} of {len(files)} resized to {shape[1]}x{shape[2]}"] if resized else [])]
        names = tuple(path.name for path in part) if folder else ()
        yield Samples(x.reshape(len(part), -1), None, tuple(notes), names)


def _shape(model: str, notes: Notes, width: int) -> tuple[int, int, int, bool]:
    """Channels, height and width of the model's images, and whether channels are the last axis."""
    if notes.columns is not None or notes.dataset in ("boston", "digits"):
        what = "images of numbers from 0 to 16" if notes.dataset == "digits" else "a table"
        raise OptionError(
            f"{model} was trained on {what}, and takes no PNG or JPEG images: give it such data"
        )
    if len(notes.image) == 2:
        return 1, notes.image[0], notes.image[1], False
    if len(notes.image) == 3:
        first, second, third = notes.image
        last = first not in (1, 3) and third in (1, 3)
        return (third, first, second, True) if last else (first, second, third, False)
    for channels in (1, 3):
        side = math.isqrt(width // channels)
        if side > 1 and channels * side * side == width:
            return channels, side, side, False
    raise OptionError(
        f"{model} takes {width or 'an unknown number of'} features, which are no square image, grey or with three "
        "colors: give it samples in an .npy file"
    )


def _show(name: str, pixels: np.ndarray) -> None:
    """Draw an image (channels, height, width) in characters, two for each pixel."""
    grey = pixels.mean(axis=0)
    step = -(-max(grey.shape) // _WIDEST)
    grey = grey[: grey.shape[0] // step * step, : grey.shape[1] // step * step]
    grey = grey.reshape(grey.shape[0] // step, step, grey.shape[1] // step, step).mean(axis=(1, 3))
    blocks = "\N{SPACE}\N{LIGHT SHADE}\N{MEDIUM SHADE}\N{DARK SHADE}\N{FULL BLOCK}"
    try:
        blocks.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        blocks = _SHADES
    places = np.minimum((grey / 256 * len(blocks)).astype(int), len(blocks) - 1)
    notice(printable(f"{name}, as the network sees it:"))
    rim = "+" + "-" * (2 * grey.shape[1]) + "+\n"
    lines = ("|" + "".join(2 * blocks[n] for n in row) + "|\n" for row in places.tolist())
    StandardError().write(rim + "".join(lines) + rim)
