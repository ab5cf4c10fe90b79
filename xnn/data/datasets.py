"""Data sets by name: found on disk, fetched, or drawn; always training, validation and test arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from xnn.backends import Purpose, Stream, get_backend
from xnn.data.idx import read_idx
from xnn.data.sources import data_homes, fetch, find, reachable
from xnn.data.synthetic import synthetic_digits
from xnn.data.tables import check_pair, is_classification, read_csv, read_npz
from xnn.errors import CorruptFileError, DataNotFoundError, MissingExtraError, OptionError

__all__ = ["Dataset", "dataset_names", "load", "on_disk"]

_IMAGES, _LABELS = (None, 28, 28), (None,)
# name -> shape and SHA-256 of the decompressed bytes
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
# name -> MD5 of the published .gz, looked at when it is fetched
_FASHION = {
    "train-images-idx3-ubyte": (_IMAGES, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte": (_LABELS, "25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte": (_IMAGES, "bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte": (_LABELS, "bb300cfdad3c16e7a12a480ee83cd310"),
}
_FASHION_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_VALIDATION = 10_000  # the last training images, as in the MNIST article
_SYNTHETIC = (10_000, 2_000, 2_000)


@dataclass(frozen=True)
class Dataset:
    """Six arrays, which it unpacks to, and what they are.

    x: (n, features), uint8 pixels or float64; y: int64 labels (n,) or float64 targets (n, 1).
    task: "classification" or "regression". scale: what the features are multiplied with in a model, or
    None if they should be standardized. note: a line the user should see, such as a replacement.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    task: str = "classification"
    scale: float | None = None
    note: str = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.x_train, self.y_train, self.x_val, self.y_val, self.x_test, self.y_test))

    @property
    def classes(self) -> int:
        """The number of outputs a model needs: classes, or columns of the targets."""
        if self.task == "regression":
            return int(self.y_train.shape[1])
        return int(max(y.max(initial=0) for y in (self.y_train, self.y_val, self.y_test))) + 1

    def rescaling(self) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Scale and offset for layers.Rescale: `scale`, or 1/std and -mean/std of the training features."""
        if self.scale is not None:
            return self.scale, 0.0
        from xnn.backends.exact import ExactNamespace

        exact = ExactNamespace(get_backend("numpy"))  # NumPy's sums depend on the processor
        x = self.x_train.astype(np.float64)
        mean, std = exact.mean(x, axis=0), exact.std(x, axis=0)
        std = np.where(std == 0.0, 1.0, std)
        return 1.0 / std, -mean / std


def dataset_names() -> tuple[str, ...]:
    """The names that load accepts besides paths."""
    return ("mnist", "fashion-mnist", "digits", "boston", "synthetic")


def load(
    name: str | os.PathLike[str] | None = None, data_home: str | os.PathLike[str] | None = None
) -> Dataset:
    """A data set by name (mnist, fashion-mnist, digits, boston, synthetic), or a .npz or .csv file.

        x_train, y_train, x_val, y_val, x_test, y_test = xnn.data.load("mnist")

    Files are looked for in data_home, XNN_DATA_HOME and the user's cache, then fetched. Without a name:
    mnist, or synthetic if it is not reachable, and `note` says so. A table's last column is the target;
    whole numbers 0 .. k - 1 make it a classification. Tables and .npz files without a test set are
    split 80/10/10, training samples without a validation set 90/10, by a permutation that depends on
    nothing but their number.
    Raises DataNotFoundError, CorruptFileError, OptionError or MissingExtraError.
    """
    if name is None:
        here = [member for member in _MNIST if find("mnist", (member + ".gz", member), data_home)]
        try:
            if not here and not reachable(_MNIST_MIRRORS):
                raise DataNotFoundError("no mirror of MNIST answers")
            return load("mnist", data_home)
        except DataNotFoundError:
            if here:  # some of the files are there: something went wrong that synthetic digits would hide
                raise
            homes = ", ".join(str(home / "mnist") for home in data_homes(data_home))
            return _load_synthetic(f"MNIST is neither in {homes} nor reachable: using synthetic digits")
    if name == "mnist":
        return _load_images("mnist", data_home)
    if name == "fashion-mnist":
        return _load_images("fashion-mnist", data_home)
    if name == "synthetic":
        return _load_synthetic()
    if name == "digits":
        return _load_digits()
    if name == "boston":
        path = find("boston", ("boston_housing.csv",), data_home)
        if path is None:
            raise DataNotFoundError(
                "boston needs the file boston_housing.csv (506 rows, 13 features and medv) in a folder boston/ "
                "of XNN_DATA_HOME; scikit-learn no longer ships it"
            )
        return _split("boston", *_columns(path))
    path = Path(name)
    if path.suffix.lower() == ".csv":
        return _split(path.name, *_columns(path))
    if path.suffix.lower() == ".npz":
        return _load_npz(path)
    raise OptionError(
        f"no data set is called {str(name)!r}; choose {', '.join(dataset_names())}, or give a .npz or .csv file"
    )


def on_disk(data_home: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Which data sets are there without fetching, and where."""
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
                f"{name}: {len(images)} images and {len(labels)} labels up to {labels.max(initial=0)} "
                "do not belong together; delete the files and fetch them again"
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


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError('digits are scikit-learn\'s: pip install ".[sklearn]"') from error
    x, y = load_digits(return_X_y=True)
    return _split("digits", x.astype(np.uint8), y.astype(np.int64), scale=1 / 16)


def _columns(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = read_csv(path)
    if table.shape[1] < 2:
        raise CorruptFileError(f"{path} has one column; a table needs features and, last, the target")
    return table[:, :-1], table[:, -1]


def _split(name: str, x: np.ndarray, y: np.ndarray, scale: float | None = None) -> Dataset:
    """80 % training, 10 % validation, 10 % test, by a permutation that depends on nothing but n."""
    x, y = check_pair(name, x, y)
    n = len(x)
    if n < 3:
        raise CorruptFileError(f"{name} holds {n} samples; it takes 3 to train, validate and test")
    y, task, note = _as_task(y)
    order = Stream(0, Purpose.SPLIT).permutation(n)
    part = max(1, n // 10)
    train, validation, test = order[2 * part :], order[part : 2 * part], order[:part]
    return Dataset(
        name, x[train], y[train], x[validation], y[validation], x[test], y[test], task=task,
        scale=_pixel_scale(x) if scale is None else scale, note=note,
    )  # fmt: skip


def _as_task(y: np.ndarray) -> tuple[np.ndarray, str, str]:
    """The targets as their task has them, the task, and a note if it may not be the one meant."""
    if is_classification(y):
        return y.astype(np.int64), "classification", ""
    note = ""
    if y.ndim == 1 and y.size and np.unique(y).size <= 20 and bool(np.all(y == np.floor(y))):
        note = "the targets are whole numbers but not 0 .. k - 1 with each present: this is a regression, not classes"
    return y.reshape(len(y), -1).astype(np.float64), "regression", note


def _pixel_scale(x: np.ndarray) -> float | None:
    return 1 / 255 if x.dtype == np.uint8 else None


def _load_npz(path: Path) -> Dataset:
    arrays = read_npz(path)
    if {"x", "y"} <= arrays.keys():
        return _split(path.name, arrays["x"], arrays["y"])
    if not {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        raise CorruptFileError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it needs x and y, or x_train, y_train, x_test, "
            "y_test (and x_val, y_val)"
        )
    parts = {
        part: check_pair(f"{path.name}, {part}", arrays[f"x_{part}"], arrays[f"y_{part}"])
        for part in ("train", "val", "test")
        if f"x_{part}" in arrays and f"y_{part}" in arrays
    }
    x, y = parts["train"]
    y, task, note = _as_task(y)
    if len(x) < 2:
        raise CorruptFileError(f"{path} holds {len(x)} training samples; it takes 2 or more")
    for part, (xs, ys) in parts.items():
        whole = ys.ndim == 1 and bool(np.all((ys >= 0) & (ys == np.floor(ys))))
        if xs.shape[1] != x.shape[1] or (task == "classification" and not whole):
            raise CorruptFileError(
                f"{path}: x_{part} is {xs.shape} and y_{part} {ys.dtype}{list(ys.shape)}; the training samples have "
                f"{x.shape[1]} features and are a {task}"
            )
        like = ys.astype(np.int64) if task == "classification" else ys.reshape(len(ys), -1).astype(np.float64)
        parts[part] = xs, like
    if "val" not in parts:
        x, y = parts["train"]
        order, cut = Stream(0, Purpose.SPLIT).permutation(len(x)), max(1, len(x) // 10)
        parts["val"], parts["train"] = (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])
    (x_train, y_train), (x_val, y_val), (x_test, y_test) = (parts[part] for part in ("train", "val", "test"))
    if y_test.shape[1:] != y_train.shape[1:] or y_val.shape[1:] != y_train.shape[1:]:
        raise CorruptFileError(f"{path}: the parts' targets have different numbers of columns")
    return Dataset(
        path.name, x_train, y_train, x_val, y_val, x_test, y_test, task=task, scale=_pixel_scale(x), note=note
    )
