"""Data sets by name: found on disk, downloaded, or made by xnn (synthetic digits)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Never

import numpy as np

from xnn.backends.memory import explained
from xnn.data.dataset import Dataset
from xnn.data.idx import read_idx
from xnn.data.image_folders import from_image_folder, holds_classes
from xnn.data.loading import Column, TableOptions, from_arrays, from_csv, from_npz
from xnn.data.sources import data_homes, fetch, find, reachable
from xnn.data.synthetic import synthetic_digits
from xnn.errors import CorruptFileError, DataError, DataNotFoundError, MissingExtraError, OptionError
from xnn.files import as_path, reading
from xnn.options import refuse_unknown, shown

__all__ = ["dataset_names", "load", "on_disk"]

_IMAGES, _LABELS = (None, 28, 28), (None,)
# File -> its shape, and the SHA-256 of its decompressed bytes.
_MNIST = {
    "train-images-idx3-ubyte": (_IMAGES, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": (_LABELS, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (_IMAGES, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (_LABELS, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# File -> its shape, and the MD5 of the published .gz, which is checked when it is fetched.
_FASHION = {
    "train-images-idx3-ubyte": (_IMAGES, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte": (_LABELS, "25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte": (_IMAGES, "bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte": (_LABELS, "bb300cfdad3c16e7a12a480ee83cd310"),
}
_FASHION_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_VALIDATION = 10_000  # the last training images, as in the MNIST article
_SYNTHETIC = (10_000, 2_000, 2_000)


def dataset_names() -> tuple[str, ...]:
    """The names that `load` takes besides paths.

    >>> from xnn import data
    >>> data.dataset_names()
    ('mnist', 'fashion-mnist', 'digits', 'boston', 'synthetic')
    """
    return ("mnist", "fashion-mnist", "digits", "boston", "synthetic")


def load(
    name: str | os.PathLike[str] | None = None,
    data_home: str | os.PathLike[str] | None = None,
    *,
    target: Column | Sequence[Column] | None = None,
    header: bool | None = None,
    task: str | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    stratify: bool | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    **unknown: Never,
) -> Dataset:
    """A data set by its name, or from a .npz or .csv file or a folder, split into training, validation and test.

    name: mnist, fashion-mnist, digits, boston, synthetic, or the path of a .npz or .csv file, or of a folder of .npy
        or .npz files (`open_arrays`). Samples of an .npz file or a folder that has 1 GiB or more are not read into
        memory, but from the file where they are needed, with the same results. Or a folder of PNG and JPEG images
        with a folder for each class (docs/images.md; extra image). Default: mnist; or synthetic if MNIST is neither
        on disk nor reachable, which `note` then says.
    data_home: a folder to look in first; then come XNN_DATA_HOME and the user's cache. What is not found is fetched
        into the cache. Default None.

    Options for tables: .csv, and as far as they make sense .npz, digits and boston:

    target: the column of the targets by name or number, where -1 is the last; several for a regression. Default: the
        last column. All other columns are features.
    header: whether the first line holds the names of the columns. Default: it does if nothing in it is a number, or
        if its numbers are names such as 0, 1, 2; `note` then says so.
    task: "classification" or "regression". Default: a classification if the target is text, has two whole numbers, or
        all of 0 .. k - 1 or 1 .. k. Classes are numbered in sorted order; `labels` has their names.
    split: the shares of training, validation and test, positive and with the sum 1. Default (0.8, 0.1, 0.1). Of an
        archive with a test set but no validation set, the second share of the training samples is taken.
    stratify: whether each part gets its share of each class. Default: in a classification.
    seed: it and the number of rows determine the split. Default 0.
    image_size: height and width of the images of a folder, which are resized. Default: their own, if they have
        one and no side is longer than 128; otherwise (64, 64).

    Raises DataNotFoundError, CorruptFileError, OptionError, MissingExtraError (digits without scikit-learn), or
    DataError for data that do not fit into memory.

        x_train, y_train, x_val, y_val, x_test, y_test = xnn.data.load("mnist")
        iris = xnn.data.load("iris.csv", target="species", split=(0.6, 0.2, 0.2))
        print(iris.report())

        >>> from xnn import data
        >>> data.load("synthetic")
        <Dataset synthetic: 10,000 training + 2,000 validation + 2,000 test samples, (784,) uint8, 10 classes>
    """
    refuse_unknown(load, unknown)
    options = TableOptions(target, header, task, split, stratify, seed, image_size)
    with explained(
        f"the data set {'mnist' if name is None else name}",
        "close other programs, or keep the samples in .npy files in a folder, which are read piece by piece",
        DataError,
    ):
        return _load(name, data_home, options)


def _load(
    name: str | os.PathLike[str] | None, data_home: str | os.PathLike[str] | None, options: TableOptions
) -> Dataset:
    if name is None:
        here = [member for member in _MNIST if find("mnist", (member + ".gz", member), data_home)]
        try:
            if not here and not reachable(_MNIST_MIRRORS):
                raise DataNotFoundError("no mirror of MNIST answers")
            return _load_named("mnist", data_home, options)
        except DataNotFoundError:
            if here:  # some of the files are there: synthetic digits would hide what is wrong with the others
                raise
            homes = ", ".join(str(home / "mnist") for home in data_homes(data_home))
            options.refuse("synthetic digits")
            return _load_synthetic(
                f"MNIST is neither in {homes} nor reachable: using synthetic digits. To get MNIST, run this again "
                f"with a network, or put {', '.join(member + '.gz' for member in _MNIST)} in one of these folders"
            )
    if isinstance(name, str) and name in dataset_names():
        return _load_named(name, data_home, options)
    if isinstance(name, (str, os.PathLike)):
        path = as_path(name)
        if path.suffix.lower() == ".csv":
            options.refuse(f"{path}, which holds no images", "image_size")
            return from_csv(path, options)
        with reading(path):
            folder = bool(str(name)) and path.is_dir()
        if folder and holds_classes(path):
            return from_image_folder(path, options)
        options.refuse(f"{path}, which holds no images", "image_size")
        if folder or path.suffix.lower() == ".npz":
            return from_npz(path, options)
        if len(path.parts) > 1 and not path.exists():
            raise DataNotFoundError(f"there is no file or folder {path}")
    hint = "" if isinstance(name, str) else ". A Trainer takes arrays as they are: fit((x, y))"
    raise OptionError(
        f"there is no data set {shown(name)}; choose {', '.join(dataset_names())}, or give a .npz or .csv file, or "
        f"a folder of .npy or .npz files, or of images in a folder for each class{hint}"
    )


def _load_named(name: str, data_home: str | os.PathLike[str] | None, options: TableOptions) -> Dataset:
    if name == "digits":
        return _load_digits(options)
    if name == "boston":
        path = find("boston", ("boston_housing.csv",), data_home)
        if path is None:
            raise DataNotFoundError(
                "there is no file boston_housing.csv (506 rows, 13 features and medv), which cannot be fetched: put "
                "it in a folder boston/ of XNN_DATA_HOME"
            )
        options.refuse(name, "image_size")
        return from_csv(path, options, name)
    options.refuse(name)
    return _load_synthetic() if name == "synthetic" else _load_images(name, data_home)


def on_disk(data_home: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """The data sets that need not be fetched: name -> the folder in which it was found.

    data_home: a folder to look in first; see `load`.

        >>> from xnn import data
        >>> data.on_disk()["synthetic"]
        'drawn by xnn'
    """
    found = {}
    for name, member in (
        ("mnist", "train-images-idx3-ubyte"),
        ("fashion-mnist", "train-images-idx3-ubyte"),
        ("boston", "boston_housing.csv"),
    ):
        path = find(name, (member + ".gz", member), data_home)
        if path is not None:
            found[name] = str(path.parent)
    return {**found, "synthetic": "drawn by xnn"}


def _load_images(name: str, data_home: str | os.PathLike[str] | None) -> Dataset:
    published, mirrors = (_MNIST, _MNIST_MIRRORS) if name == "mnist" else (_FASHION, _FASHION_MIRRORS)
    arrays = []
    for member, (shape, digest) in published.items():
        sha256 = digest if name == "mnist" else None
        check = partial(read_idx, sha256=sha256, shape=shape, dtype="u1")
        path = find(name, (member + ".gz", member), data_home)
        if path is None:
            path = fetch(name, member + ".gz", mirrors, check, None if name == "mnist" else digest)
        arrays.append(check(path))
    x, y, x_test, y_test = arrays
    for images, labels in ((x, y), (x_test, y_test)):
        if len(images) != len(labels) or (labels.size and labels.max() > 9):
            raise CorruptFileError(
                f"{name} has {len(images)} images and {len(labels)} labels up to {labels.max(initial=0)}, which do "
                "not fit together: delete the files and fetch them again"
            )
    x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    y, y_test = y.astype(np.int64), y_test.astype(np.int64)
    cut = max(len(x) - _VALIDATION, 0)
    return Dataset(name, x[:cut], y[:cut], x[cut:], y[cut:], x_test, y_test, scale=1 / 255)


def _load_synthetic(note: str = "") -> Dataset:
    train, validation, test = _SYNTHETIC
    x, y = synthetic_digits(train + validation + test)
    cut = train + validation
    return Dataset(
        "synthetic",
        x[:train],
        y[:train],
        x[train:cut],
        y[train:cut],
        x[cut:],
        y[cut:],
        scale=1 / 255,
        note=note,
    )


def _load_digits(options: TableOptions) -> Dataset:
    options.refuse("digits", "target", "header", "task", "image_size")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError('the digits need scikit-learn: pip install ".[sklearn]"') from error
    x, y = load_digits(return_X_y=True)
    return from_arrays("digits", x.astype(np.uint8), y.astype(np.int64), options, scale=1 / 16)
