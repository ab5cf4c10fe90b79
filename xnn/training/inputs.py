"""Checks of samples, targets and weights, once, before training or evaluation uses them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends import admit
from xnn.backends.host_arrays import as_host_array
from xnn.backends.ranks.group import checked_part, current_ranks
from xnn.backends.row_sources import Converted, first_not_finite, is_on_host, reads_rows, row_blocks
from xnn.data import Batches, Stream
from xnn.data.stream import opened
from xnn.errors import DTypeError, LabelError, OptionError, ShapeError, WeightWarning, XnnError
from xnn.files import notice
from xnn.layers import Rescale, Sequential
from xnn.layers.hidden import check_nothing_hidden
from xnn.losses import Loss, check_sample_weight
from xnn.metrics import Metric
from xnn.training.scale import warn_of_samples, warn_of_targets
from xnn.training.steps import Stepper

__all__ = ["check_last_batch", "check_trainable", "check_weights", "prepare", "prepare_validation"]

#: An offset of a Rescale beyond which float32 leaves less than three digits of numbers of size 1.
_FAR = 1e4

#: How a pair is given, for each role of data.
_PAIRS = {
    "training": "fit((x, y))",
    "validation": "fit(..., validation=(x, y))",
    "evaluation": "evaluate((x, y))",
}


def check_trainable(model: Sequential) -> None:
    """Raise OptionError if a model has nothing to train, or has parameters where training would not find them."""
    check_nothing_hidden(model)
    first = model.first_layer
    if isinstance(first, Rescale) and not first.takes_float64 and first.dtype == "float32":
        offset = float(np.abs(first.offset).max(initial=0.0))
        ranks = current_ranks()
        if offset > _FAR and (ranks is None or ranks.rank == 0):
            notice(
                f"xnn: {first!r} adds {offset:.3g} in float32, which has about 7 digits: Rescale(scale, shift=mean), "
                "as data.standardize(x) makes it, subtracts the mean in float64"
            )
    last = model.layers[-1] if model.layers else None
    if isinstance(last, Rescale) and last.dtype == "float64" != model.dtype:
        raise OptionError(
            f"the last layer is {last!r} to float64, which turns outputs into the units of the targets: train the "
            "layers before it, on targets that data.standardize(y) scaled"
        )
    parameters = model.parameters()
    if not parameters:
        raise OptionError("the model has nothing to train: no layer of it has weights, as Dense has; add one")
    if all(parameter.frozen for parameter in parameters):
        raise OptionError(
            "the model has nothing to train: all its parameters are frozen; parameter.frozen = False on those that "
            "are to learn"
        )


def check_last_batch(stepper: Stepper, batches: Batches) -> None:
    """Raise ShapeError if the rows leave a last batch of one row and the model cannot train on it, as BatchNorm."""
    rows, size = batches.rows, batches.batch_size
    if rows < size or rows % size != 1:
        return
    try:
        stepper.program(1)
    except ShapeError as error:
        raise ShapeError(
            f"{rows} rows in batches of {size} leave one row for the last batch: choose another batch_size, such as "
            f"{_without_a_last_row(rows, size)}. {error}"
        ) from error


def _without_a_last_row(rows: int, size: int) -> int:
    """The batch size nearest to `size` that does not leave a last batch of one row."""
    return min((n for n in range(2, 2 * size + 1) if rows % n != 1), key=lambda n: abs(n - size))


def prepare(
    model: Sequential,
    loss: Loss,
    metrics: Sequence[Metric],
    data: tuple[Any, ...] | Stream,
    role: str,
    sample_weight: Any = None,
    whole: bool = True,
) -> tuple[Any, ...]:
    """The arrays of a pair (x, y), and of sample weights, as programs take them; checked on the host.

    role: what the data are for, in messages. Targets are checked here, since on a GPU labels out of range wrap
    silently.
    whole: whether these are all samples, and not a window of a stream, whose weights may all be 0. Default True.
    Raises OptionError, ShapeError, DTypeError or LabelError.
    """
    if isinstance(data, Stream):
        return _opened(model, loss, metrics, data, role, sample_weight)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        what, hint = type(data).__name__, f": give both in parentheses of their own, as in {_PAIRS[role]}"
        if isinstance(data, (tuple, list)):
            what = f"{what} of {len(data)}"
            if len(data) == 3:
                hint = "; weights of samples are an argument of their own, sample_weight="
        raise OptionError(f"{role} data must be a pair (x, y) of samples and targets, got {what}{hint}")
    lib = model.backend
    x, y = (
        admit(lib, as_host_array(part, f"{role} data: {name}", by_rows=True))
        for name, part in zip("xy", data, strict=True)
    )
    if x.ndim < 1 or not x.shape[0] or y.ndim < 1 or x.shape[0] != y.shape[0]:
        raise ShapeError(
            f"{role} data have x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}: give as many samples as "
            "targets, and at least one"
        )
    with np.errstate(over="ignore"):  # found by _check_finite, which says where
        given, x = x, model.prepare(x, checked_part(x))
        _check_finite(role, "sample", given, x)
        targets = y if is_on_host(y) else lib.to_host(y)
        if targets.dtype.kind in "USO":
            raise LabelError(
                f"{role} targets are {targets.dtype}, not numbers: names, y = numpy.unique(names, "
                "return_inverse=True) numbers the classes from 0"
            )
        prepared = _checked_targets(
            loss, metrics, targets, model.output_shape(tuple(x.shape[1:])), model.dtype
        )
        _check_finite(role, "target", targets, prepared)
    # The calls between the user's line and this one, for warnings.
    above = {"training": 4, "validation": 5, "evaluation": 3}[role]
    warn_of_samples(model, given, role, above)
    if role == "training":
        warn_of_targets(model, loss, targets, above)
    # As they are if they can stay so, on a GPU too: callbacks may write to them, and a copy would not see it.
    arrays = x, y if prepared is targets else prepared if is_on_host(y) else lib.to_device(prepared)
    if sample_weight is None:
        return arrays
    given = admit(lib, as_host_array(sample_weight, f"{role} data: sample_weight"))
    wide = check_sample_weight(
        given if isinstance(given, np.ndarray) else lib.to_host(given), int(x.shape[0])
    )
    with np.errstate(over="ignore"):
        weights = wide.astype(model.dtype)
    _check_finite(role, "sample_weight", wide, weights)
    if whole and not weights.any():
        raise OptionError(f"{role} data: every sample_weight is 0 in {model.dtype}, so that no sample counts")
    return *arrays, weights if isinstance(given, np.ndarray) else lib.to_device(weights)


def _opened(
    model: Sequential, loss: Loss, metrics: Sequence[Metric], stream: Stream, role: str, sample_weight: Any
) -> tuple[Any, ...]:
    """The arrays of a stream, of which each window is checked and converted when it is read."""
    if sample_weight is not None:
        raise OptionError("a stream gives sample weights as the third of each batch: omit sample_weight=")

    def prepared(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> tuple[Any, ...]:
        return prepare(model, loss, metrics, (x, y), role, weight, whole=False)

    return opened(stream, prepared)


def _checked_targets(
    loss: Loss, metrics: Sequence[Metric], targets: Any, output_shape: tuple[int, ...], dtype: str
) -> Any:
    """The targets as the loss takes them, checked. Those read from files are converted when they are read."""
    by_rows = reads_rows(targets)
    for start, block in row_blocks(targets, checked_part(targets)) if by_rows else [(0, targets)]:
        try:
            loss.check(block, output_shape)
            for metric in metrics:
                metric.check(block)
        except XnnError as error:
            if not start:
                raise
            raise type(error)(f"in rows {start:,} to {start + len(block) - 1:,}: {error}") from error
    if not by_rows:
        return loss.prepare(targets, dtype)
    sample = np.asarray(targets[:1])
    if loss.prepare(sample, dtype) is sample:  # nothing is converted
        return targets
    return Converted(targets, lambda rows: loss.prepare(rows, dtype))


def _check_finite(role: str, what: str, given: Any, prepared: Any) -> None:
    """Raise DTypeError for NaN or infinity in a host array, given or made by the conversion to its dtype."""
    row = first_not_finite(prepared, checked_part(prepared)) if is_on_host(prepared) else None
    if row is None:
        return
    if np.isfinite(given[row]).all():
        raise DTypeError(
            f"{role} data: {what} {row} holds a number too large for {prepared.dtype}: scale them, or build the "
            "layers with dtype='float64'"
        )
    raise DTypeError(f"{role} data: {what} {row} holds NaN or infinity; fill or drop such samples first")


def check_weights(loss: Loss, batch_size: int, weighted: bool) -> None:
    """Warn if the weights of samples or classes have no effect, since each batch is one sample.

    weighted: whether there are sample weights.
    """
    if batch_size == 1 and loss.weights_cancel(weighted):
        warnings.warn(
            f"{loss!r} divides the sum of a batch by its weights, so that in batches of one sample they cancel: take "
            "a larger batch_size, or reduction='sum_over_batch_size'",
            WeightWarning,
            stacklevel=4,
        )


def prepare_validation(
    model: Sequential, loss: Loss, metrics: Sequence[Metric], data: Any
) -> tuple[Any, ...]:
    """Check and convert validation data: a pair (x, y), or three arrays with the sample weights."""
    if isinstance(data, (tuple, list)) and len(data) == 3:
        return prepare(model, loss, metrics, tuple(data[:2]), "validation", data[2])
    if isinstance(data, Stream) and data.once:
        raise OptionError(
            f"validation data are read after each epoch, and {data!r} can be read once: give it a function or an "
            "iterable in place of an iterator"
        )
    return prepare(model, loss, metrics, data, "validation")
