"""Makes a data set of a folder of images, in which each class has a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xnn.data.dataset import Dataset
from xnn.data.images import ENDINGS, check_pillow, read_image, size_and_channels
from xnn.data.loading import TableOptions, from_arrays
from xnn.data.splits import random_order, take_out
from xnn.data.targets import Label
from xnn.errors import CorruptFileError
from xnn.files import by_numbers, reading

__all__ = ["from_image_folder", "holds_classes", "images_in"]

_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LARGEST, _USUAL = 128, (64, 64)
_SHOWN = 5


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: by_numbers(path.name))


def _folders(folder: Path) -> list[Path]:
    return _in_order(f for f in folder.iterdir() if f.is_dir() and f.name[0] != ".")


def images_in(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The PNG and JPEG files of a folder in the order of their names, and how many other entries it has, by kind.

    Numbers in names count by their size: 2.png comes before 10.png.
    """
    found, skipped = [], Counter[str]()
    with reading(folder):
        for path in folder.iterdir():
            if path.name[0] == ".":
                skipped["hidden"] += 1
            elif path.is_dir():
                skipped["folders"] += 1
            elif path.suffix.lower() in ENDINGS:
                found.append(path)
            else:
                skipped["neither PNG nor JPEG"] += 1
    return _in_order(found), skipped


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in ENDINGS and path.name[0] != "." for path in folder.iterdir())


def holds_classes(folder: Path) -> bool:
    """Whether a folder has folders with images, or folders of training, validation and test with such folders."""
    with reading(folder):
        inside = _folders(folder)
        return any(_has_images(f) for f in inside) or any(_has_images(f) for g in inside for f in _folders(g))


def from_image_folder(folder: Path, options: TableOptions) -> Dataset:
    """A data set of the images in DIR/CLASS/, or in DIR/train/CLASS/, DIR/test/CLASS/ and perhaps DIR/val/CLASS/.

    Raises CorruptFileError, naming the files, for broken images, and for folders without images.
    """
    options.refuse(f"{folder}, whose classes are its folders", "target", "header", "task")
    check_pillow()
    with reading(folder):
        parts = _parts(folder)
        classes = _folders(parts.get("train", folder))
    names = [path.name for path in classes]
    skipped, files, labels = Counter[str](), dict[str, list[Path]](), dict[str, list[int]]()
    for part, place in (parts or {"all": folder}).items():
        files[part], labels[part] = [], []
        with reading(place):
            inside = _folders(place)
        if odd := [path.name for path in inside if path.name not in names]:
            raise CorruptFileError(
                f"{place} has a class {odd[0]!r}, and the training images have {', '.join(names)}"
            )
        for path in inside:
            found, others = images_in(path)
            skipped += others
            files[part] += found
            labels[part] += [names.index(path.name)] * len(found)
            if not found and place == parts.get("train", folder):
                raise CorruptFileError(f"{path} holds no PNG or JPEG file: add images, or remove the folder")
        if not files[part]:
            raise CorruptFileError(
                f"{place} holds no images in folders of classes: add some, or remove the folder"
            )
    for place in {folder, *parts.values()}:
        skipped["images beside the folders of classes"] += len(images_in(place)[0])
    heads = _read_all([path for found in files.values() for path in found])
    sizes, channels = Counter(size for size, _ in heads), max(channels for _, channels in heads)
    size, note = _size(sizes, options.image_size)
    notes = [note] if note else []
    if len({channels for _, channels in heads}) > 1:
        notes.append("some images are grey and some have colors: all are read with colors")
    if total := sum(skipped.values()):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()) if count)
        notes.append(f"skipped {total} other {'entry' if total == 1 else 'entries'} in the folders: {kinds}")
    x = {part: _pixels(found, channels, size) for part, found in files.items()}
    y = {part: np.asarray(numbers, np.int64) for part, numbers in labels.items()}
    known = _labels(names)
    if not parts:
        made = from_arrays(
            folder.name, x["all"], y["all"], replace(options, task="classification"), 1 / 255, notes=notes
        )
        return replace(made, labels=known)
    if "val" not in parts:
        order = random_order(options.seed, len(y["train"]))
        stratified = None if options.stratify is False else y["train"]
        rows = take_out(order, max(1, int(len(order) * options.split[1] + 1e-9)), stratified)
        for source in (x, y):
            source["val"], source["train"] = source["train"][rows[1]], source["train"][rows[0]]
    train, validation, test = (
        (x[part].reshape(len(x[part]), -1), y[part]) for part in ("train", "val", "test")
    )
    return Dataset(
        folder.name, *train, *validation, *test, scale=1 / 255, note="; ".join(notes), labels=known,
        sample_shape=x["train"].shape[1:],
    )  # fmt: skip


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of training, validation and test; none if the folder has the classes themselves."""
    found: dict[str, Path] = {}
    inside = _folders(folder)
    for part, names in _PARTS.items():
        for path in inside:
            if path.name.lower() in names and not _has_images(path):
                found[part] = path
    if not found:
        return {}
    others = [path.name for path in inside if path not in found.values()]
    if others or not {"train", "test"} <= found.keys():
        raise CorruptFileError(
            f"{folder} has the folders {', '.join(path.name for path in inside)}: give it a folder for each class, "
            "or train, test and perhaps val with a folder for each class"
        )
    return found


def _labels(names: Sequence[str]) -> tuple[Label, ...]:
    """The names of the classes, from those of their folders.

    Integers if all names are whole numbers; an empty tuple if these are 0, 1, 2, ..., which name the classes already.
    """
    if not all(re.fullmatch("0|[1-9][0-9]{0,17}", name) for name in names):
        return tuple(names)
    numbers = tuple(map(int, names))
    return () if numbers == tuple(range(len(names))) else numbers


def _read_all(files: Sequence[Path]) -> list[tuple[tuple[int, int], int]]:
    """Height, width and channels of each file."""
    heads, wrong = [], list[CorruptFileError]()
    for path in files:
        try:
            heads.append(size_and_channels(path))
        except CorruptFileError as error:
            wrong.append(error)
    _raise(wrong)
    return heads


def _pixels(files: Sequence[Path], channels: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (n, height, width) of grey images, (n, 3, height, width) of others."""
    pixels, wrong = np.empty((len(files), channels, *size), np.uint8), list[CorruptFileError]()
    for row, path in zip(pixels, files, strict=True):
        try:
            row[...] = read_image(path, channels, size)
        except CorruptFileError as error:
            wrong.append(error)
    _raise(wrong)
    return pixels[:, 0] if channels == 1 else pixels


def _raise(wrong: Sequence[CorruptFileError]) -> None:
    """Raise an error that names the broken files."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        named = "; ".join(str(error) for error in wrong[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CorruptFileError(f"{len(wrong)} images are broken: {named}{more}")


def _size(sizes: Counter[tuple[int, int]], wanted: tuple[int, int] | None) -> tuple[tuple[int, int], str]:
    """The height and width to which images are resized, and what the user should be told of that."""
    only = next(iter(sizes))
    alike = len(sizes) == 1
    size = wanted or (only if alike and max(only) <= _LARGEST else _USUAL)
    if alike and size == only:
        return size, ""
    count = sum(sizes.values()) - sizes[size]
    low, high = min(sizes), max(sizes)
    were = (
        f"{low[0]}x{low[1]}" if alike else f"{len(sizes)} sizes from {low[0]}x{low[1]} to {high[0]}x{high[1]}"
    )
    hint = "" if wanted else "; --image-size HEIGHTxWIDTH (in Python, image_size) chooses another size"
    return (
        size,
        f"{count} of {sum(sizes.values())} images were resized to {size[0]}x{size[1]} (they had {were}){hint}",
    )
