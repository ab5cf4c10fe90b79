"""A data set: arrays for training, validation and test, what they mean, and how the classes are distributed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Never

import numpy as np

from xnn.backends import get_backend
from xnn.backends.row_sources import is_on_host
from xnn.data.standardize import constant_columns, extremes, far_from_unit, standard_layer
from xnn.data.tables import Columns
from xnn.data.targets import Label
from xnn.errors import CorruptFileError, OptionError, ShapeError
from xnn.layers import Rescale
from xnn.options import is_one_of, shown

__all__ = ["Dataset"]

#: From this ratio of the largest class to the smallest, `advice` mentions it.
_IMBALANCE = 3.0
#: A float32 model cannot see a variation of a column that is smaller than this, relative to its mean.
_UNSEEN = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Arrays for training, validation and test, and what they mean. It unpacks to its six arrays.

    name: the name of the data set, or of the file.
    x_train, x_val, x_test: samples (n, features), uint8 pixels or float64; of a large file, they are read from it
        where they are needed.
    y_train, y_val, y_test: int64 labels (n,), from 0; or float64 targets (n, columns) of a regression.
    task: "classification" or "regression". Default "classification".
    scale: the factor for the features in a model, such as 1/255 for pixels; None if they should be standardized.
        Default None.
    note: a line that the user should see, such as that another data set is used. Default "".
    labels: the names of class 0, 1, ... in the data; empty if the data name them 0, 1, ... Default ().
    columns: for a CSV file, which of its columns are features and targets. Default None.
    sample_shape: the shape of a sample in an archive, such as (28, 28). Default ().
    target_scaling: the layer that made the targets from those of the data; see `with_scaled_targets`. Default None.

        >>> from xnn import data
        >>> x, y = data.synthetic_digits(50)
        >>> digits = data.Dataset("mine", x[:30], y[:30], x[30:40], y[30:40], x[40:], y[40:], scale=1 / 255)
        >>> digits
        <Dataset mine: 30 training + 10 validation + 10 test samples, (784,) uint8, 10 classes>
        >>> x_train, y_train, *rest = digits
        >>> x_train.shape, digits.image
        ((30, 784), (28, 28))
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
    labels: tuple[Label, ...] = ()
    columns: Columns | None = None
    sample_shape: tuple[int, ...] = ()
    target_scaling: Rescale | None = None

    def __post_init__(self) -> None:
        """Raise OptionError or ShapeError for arrays that do not go together."""
        if not is_one_of(self.task, ("classification", "regression")):
            raise OptionError(f"task must be 'classification' or 'regression', got {shown(self.task)}")
        parts = {
            name: (getattr(self, f"x_{name}"), getattr(self, f"y_{name}"))
            for name in ("train", "val", "test")
        }
        for name, (x, y) in parts.items():
            for letter, array in (("x", x), ("y", y)):
                if not (is_on_host(array) and array.dtype.kind in "biuf"):
                    raise OptionError(f"{letter}_{name} must be a NumPy array of numbers, got {shown(array)}")
            if x.ndim != 2 or not len(x) == len(y) or x.shape[1:] != self.x_train.shape[1:]:
                raise ShapeError(
                    f"x_{name} has shape {x.shape} and y_{name} {y.shape}: give samples (n, features), as many "
                    "features as x_train, and a target for each"
                )
            if self.task == "regression" and (y.ndim != 2 or y.shape[1:] != self.y_train.shape[1:]):
                raise ShapeError(
                    f"y_{name} has shape {y.shape}: the targets of a regression are (n, columns)"
                )
            if self.task == "classification" and (y.ndim != 1 or y.dtype.kind == "f" or y.min(initial=0) < 0):
                raise OptionError(f"y_{name} must be integer labels (n,) from 0, got {shown(y)}")

    def __repr__(self) -> str:
        sizes = f"{len(self.y_train):,} training + {len(self.y_val):,} validation + {len(self.y_test):,} test samples"
        shape = self.sample_shape or self.x_train.shape[1:]
        several = "" if self.classes == 1 else "s" if self.task == "regression" else "es"
        outputs = f"{self.classes} {'target' if self.task == 'regression' else 'class'}{several}"
        return f"<Dataset {self.name}: {sizes}, {shape} {self.x_train.dtype}, {outputs}>"

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.x_train, self.y_train, self.x_val, self.y_val, self.x_test, self.y_test))

    def __getitem__(self, position: Any) -> Never:
        raise OptionError(
            f"a Dataset has no position {shown(position)}: dataset.x_train[0] and dataset.y_train[0] are the first "
            "training sample, and x_train, y_train, x_val, y_val, x_test, y_test = dataset are its arrays"
        )

    @property
    def classes(self) -> int:
        """The number of outputs that a model needs: the number of classes, or of the columns of the targets."""
        if self.task == "regression":
            return int(self.y_train.shape[1])
        most = max(int(y.max(initial=-1)) for y in (self.y_train, self.y_val, self.y_test)) + 1
        return max(most, len(self.labels))

    @property
    def image(self) -> tuple[int, int] | None:
        """Height and width if the samples are images, else None.

        Images are samples with two axes or more, the last two of which are height and width; or a square number of
        bytes. Samples whose last axis looks like color channels are not taken for images.
        """
        if len(self.sample_shape) > 1:
            first, *_, last = self.sample_shape
            channels_last = len(self.sample_shape) == 3 and last in (1, 3, 4) and first not in (1, 3, 4)
            return None if channels_last else (self.sample_shape[-2], last)
        pixels = int(self.x_train.shape[1])
        side = math.isqrt(pixels)
        return (side, side) if self.x_train.dtype == np.uint8 and side > 1 and side * side == pixels else None

    def rescaling(self) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Scale and offset: `scale` and 0, or 1/std and -mean/std of the training features. See `scaling_layer`.

        In float32, x * scale + offset loses the digits of a column whose mean is far larger than its deviation. A
        column that is constant, or varies less than float32 can tell, is moved to 0 and not scaled.
        Raises CorruptFileError for a column whose variance is too large for float64.
        """
        if self.scale is not None:
            return self.scale, 0.0
        from xnn.backends.exact import ExactNamespace

        exact = ExactNamespace(get_backend("numpy"))  # the sums of NumPy depend on the processor
        x = np.asarray(self.x_train, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = exact.mean(x, axis=0), exact.std(x, axis=0)
        wrong = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std)))
        if wrong.size:
            raise self._too_large(x, int(wrong[0]), "whose variance is too large for float64")
        # Not std == 0: the mean of ten times 0.1 is rounded, and 1 / std would be the reciprocal of that rounding.
        std = np.where(std > _UNSEEN * np.abs(mean), std, 1.0)
        return 1.0 / std, -mean / std

    def scaling_layer(self, dtype: str = "float32") -> Rescale:
        """The first layer of a model of these data: Rescale(scale), or `standardize` of the training samples.

        dtype: of its output, "float32" (the default) or "float64".

        Raises CorruptFileError for a column that varies too little to be scaled.
        """
        if self.scale is not None:
            return Rescale(self.scale, dtype=dtype)
        try:
            return standard_layer(self.x_train, dtype)[0]  # `advice` names constant columns
        except OptionError as error:
            raise CorruptFileError(f"{self.name}: {error}") from error

    def with_scaled_targets(self) -> Dataset:
        """These data with standardized targets, for a regression; `target_scaling` says how they were scaled."""
        scaling, _ = standard_layer(self.y_train, "float64")

        def scaled(y: np.ndarray) -> np.ndarray:
            return np.asarray((y - scaling.shift) * scaling.scale)

        train, validation, test = map(scaled, (self.y_train, self.y_val, self.y_test))
        return replace(self, y_train=train, y_val=validation, y_test=test, target_scaling=scaling)

    def check_range(self, dtype: str, samples: bool = True) -> None:
        """Raise CorruptFileError, naming the column, for a number that is too large for this dtype.

        samples: whether to check samples besides targets. Default True.
        """
        x, y = (self.x_train, self.x_val, self.x_test), (self.y_train, self.y_val, self.y_test)
        checked = [False] * samples + [True] * (self.task == "regression")
        for targets in checked:
            for array in y if targets else x:
                if array.dtype.kind == "f" and len(array):
                    wrong = np.flatnonzero(np.abs(extremes(array)).max(axis=0) > np.finfo(dtype).max)
                    if wrong.size:
                        raise self._too_large(array, int(wrong[0]), f"too large for {dtype}", targets)

    def _too_large(self, array: np.ndarray, column: int, why: str, targets: bool = False) -> CorruptFileError:
        """The error for a column that holds a number that is too large."""
        place = self._column(column, targets) + ("," if self.columns is None else "")
        largest = max((numbers[column] for numbers in extremes(array)), key=abs)
        return CorruptFileError(
            f"{self.name}: {place} holds {largest:g}, {why}: correct it, drop the row, or change the unit"
        )

    @property
    def class_counts(self) -> dict[str, np.ndarray]:
        """The number of samples of each class, (classes,), in "training", "validation" and "test".

        Empty for a regression.
        """
        if self.task == "regression":
            return {}
        parts = {"training": self.y_train, "validation": self.y_val, "test": self.y_test}
        return {part: np.bincount(y, minlength=self.classes) for part, y in parts.items()}

    @property
    def imbalance(self) -> float:
        """The size of the largest class in training, divided by that of the smallest; 1 for a regression.

        Classes without a sample are left out.
        """
        counts = self.class_counts.get("training", np.ones(1))
        there = counts[counts > 0]
        return float(there.max() / there.min()) if there.size else 1.0

    @property
    def advice(self) -> str:
        """A line of advice, or "" if there is none to give.

        It is given if classes are unbalanced (3 : 1 or more), missing, or only one; if targets of a regression are
        far from unit size; and if a column is constant.
        """
        said = self._about_columns()
        if self.class_counts and np.count_nonzero(sum(self.class_counts.values())) == 1:
            only = self._called(int(self.y_train[0]))
            return "; ".join(
                [f"one class, {only}: there is nothing to tell apart; is this the target?", *said]
            )
        if self.imbalance >= _IMBALANCE:
            counts = self.class_counts["training"]
            there = np.flatnonzero(counts)
            least, most = there[np.argmin(counts[there])], there[np.argmax(counts[there])]
            said.append(
                f"the classes are out of balance, {self.imbalance:.1f} : 1 ({self._called(most)}: {counts[most]} "
                f"training samples, {self._called(least)}: {counts[least]}): class weights (--class-weight balanced) "
                "let them count alike, and accuracy alone says little"
            )
        for part, counts in self.class_counts.items():
            missing = np.flatnonzero(counts == 0)
            if missing.size:
                few = ", ".join(map(self._called, missing[:5])) + (", ..." if missing.size > 5 else "")
                said.append(f"no {part} sample of class {few}")
        return "; ".join(said)

    def _about_columns(self) -> list[str]:
        """What should be said of targets far from unit size, and of constant columns."""
        said = []
        if self.task == "regression" and self.target_scaling is None and self.y_train.size:
            size = far_from_unit(self.y_train)
            if size is not None:
                said.append(
                    f"the targets are far from unit size (typically {size:.3g}), which makes training slow or "
                    "unstable: --scale-target (in Python, data.standardize(y)) scales the target for training, and "
                    "predictions back"
                )
        if self.scale is None and self.x_train.dtype.kind == "f" and len(self.x_train):
            there = constant_columns(self.x_train)
            everywhere = there.copy()
            for x in (self.x_val, self.x_test) if there.any() else ():
                if len(x):
                    everywhere &= np.all([end == self.x_train[0] for end in extremes(x)], axis=0)
            few = f" in the {len(self.x_train)} training samples"
            if len(self.x_train) == 1:
                said.append("there is one training sample, from which nothing can be learned: add samples")
                there = everywhere
            for columns, where in ((everywhere, ""), (there & ~everywhere, few)):
                found = np.flatnonzero(columns).tolist()
                named = [self._column(column) for column in found[:5]] + ["..."] * (len(found) > 5)
                if found:
                    plural = "s" if len(found) > 1 else ""
                    said.append(
                        f"constant column{plural}{where}, which a model learns nothing from: {', '.join(named)}"
                    )
        return said

    def _column(self, feature: int, targets: bool = False) -> str:
        """A feature's or target's column in words."""
        if self.columns is None:
            return f"{'target' if targets else 'feature'} {feature}, counted from 0"
        return self.columns.describe((self.columns.targets if targets else self.columns.features)[feature])

    def _called(self, number: int) -> str:
        return str(self.labels[number] if self.labels else number)

    def report(self) -> str:
        """A table of the number of samples of each class, or the range of each target, in each part; and `advice`.

        >>> from xnn import data
        >>> x, y = data.synthetic_digits(60)
        >>> x, y = x[y < 2], y[y < 2]
        >>> print(data.Dataset("mine", x[:6], y[:6], x[6:9], y[6:9], x[9:], y[9:]).report())
        mine: classification, 784 features
                 training  validation  test
        samples         6           3     3
        0               2           1     1
        1               4           2     2
        largest : smallest class in training  2.0 : 1
        """
        sizes = len(self.y_train), len(self.y_val), len(self.y_test)
        rows: list[tuple[str, ...]] = [("", "training", "validation", "test")]
        rows.append(("samples", *map(str, sizes)))
        if self.task == "regression":
            for column in range(self.classes):
                name = f"target {column}"
                if self.columns is not None and self.columns.names:
                    name = self.columns.names[self.columns.targets[column]]
                ys = (y[:, column] for y in (self.y_train, self.y_val, self.y_test))
                rows.append((name, *(f"{y.min():.6g} .. {y.max():.6g}" if y.size else "-" for y in ys)))
        else:
            counts = np.stack(list(self.class_counts.values()), axis=1)
            rows += [(self._called(number), *map(str, row)) for number, row in enumerate(counts)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [f"{self.name}: {self.task}, {self.x_train.shape[1]} features"]
        for first, *others in rows:
            cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
            lines.append(f"{first:<{widths[0]}}  {'  '.join(cells)}")
        if self.task == "classification":
            lines.append(f"largest : smallest class in training  {self.imbalance:.1f} : 1")
        return "\n".join([*lines, self.advice] if self.advice else lines)
