"""Samples that come batch by batch from a generator or another iterable, and are shuffled in windows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from xnn.backends.host_arrays import as_host_array
from xnn.backends.row_sources import RowSource
from xnn.data.ahead import read_ahead
from xnn.errors import DataError, OptionError, ShapeError, XnnError
from xnn.files import notice
from xnn.options import check_count, shown

__all__ = ["Stream", "StreamRows", "opened"]

Arrays = tuple[np.ndarray, ...]

_END = object()


class Stream:
    """Samples and targets that an iterable gives batch by batch: `trainer.fit(data.Stream(...))`.

    source: one of three:
        an iterable, such as a list or an object with `__iter__`, which each epoch iterates from the beginning;
        a function of the number of the epoch, from 0, which returns an iterable: each epoch may have data of its own;
        an iterator, such as a generator, which is read once: an epoch is the next `samples` samples of it.
        It gives pairs (x, y), or (x, y, sample_weight): arrays with as many rows, of any number.
    samples: how many samples an epoch has. What an iterable or a function gives after them is left out, and a line
        says so. Default None: the iterable is read once, and its samples are counted.
    window: how many samples are shuffled together. Default 10,000.

    The order: the samples are read in windows of `window` samples, and each is shuffled in itself, by the seed, the
    number of the epoch and the number of the window. With a window of all samples, the order and all results are
    those of the same samples as arrays. Three or four windows are in memory. Batches are copied into them: the source
    may use its arrays again.

    The next window is read by a thread while one is trained on. Samples are checked when they are read, as arrays are
    before training. A training that goes on in the middle, as after a checkpoint, is given the same source from its
    beginning: samples before that place are read and left out.

    Raises OptionError for a source that is no iterable or function, and for an iterator without `samples`. The fit
    raises DataError if the source fails or ends too early, and ShapeError for batches that do not fit together.

        >>> import numpy as np, xnn
        >>> from xnn import data, layers, losses, optimizers
        >>> def batches(epoch):
        ...     for start in range(0, 200, 50):
        ...         x = np.arange(start, start + 50).reshape(50, 1) / 200
        ...         yield x, 3.0 * x
        >>> model = xnn.Sequential(layers.Dense(1, 1), seed=0)
        >>> trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1))
        >>> history = trainer.fit(data.Stream(batches, samples=200), epochs=50, progress=False)
        >>> history["loss"][-1] < 0.01, history.samples
        (True, 10000)
    """

    def __init__(self, source: Any, samples: int | None = None, window: int = 10_000) -> None:
        if isinstance(source, (np.ndarray, RowSource, str, bytes, dict)) or not (
            callable(source) or isinstance(source, Iterable)
        ):
            raise OptionError(
                f"source must be an iterable of batches (x, y), or a function that returns one, got {shown(source)}"
            )
        self.source, self.window = source, check_count("window", window)
        #: Whether the source can be read only once.
        self.once = not callable(source) and iter(source) is source
        if samples is None:
            if self.once or callable(source):
                raise OptionError(
                    "samples, the number of samples in an epoch, is needed for a generator, iterator or function"
                )
            samples = sum(len(_as_arrays(batch)[0]) for batch in source)
        self.samples = check_count("samples", samples)
        self._taken = 0  # samples of a source that is read once
        self._left: list[Arrays] = []  # what it gave beyond the last window
        self._iterator: Iterator[Any] | None = iter(source) if self.once else None
        self._told = False
        #: Shapes and dtypes of the rows of the first batch, which all others have, and that batch in words.
        self._first: tuple[list[Any], str] | None = None

    def __repr__(self) -> str:
        name = getattr(self.source, "__name__", type(self.source).__name__)
        return f"Stream({name}, samples={self.samples}, window={self.window})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise DataError(
            f"{self!r} is no array: fit, evaluate and validation= take a stream of samples and targets in place of "
            "(x, y). Everything else takes arrays: give it those of each batch"
        )

    def windows(self, epoch: int) -> Iterator[Arrays]:
        """The arrays of each window of an epoch, not shuffled. Raises DataError or ShapeError."""
        left: list[Arrays] = []
        if self._iterator is not None:
            if self._taken > epoch * self.samples:
                raise DataError(
                    f"{self!r} can be read once, and {self._taken:,} samples of it were read: give a new one, or an "
                    "iterable or function in place of an iterator"
                )
            iterator, left = self._iterator, self._left
            while self._taken < epoch * self.samples:
                self._taken += len(self._next(iterator, left, epoch * self.samples - self._taken, 0)[0])
        else:
            iterator = iter(self.source(epoch) if callable(self.source) else self.source)
        for start in range(0, self.samples, self.window):
            found = self._next(iterator, left, min(self.window, self.samples - start), start)
            self._taken += len(found[0]) if self.once else 0
            if start + self.window >= self.samples and not (self.once or self._told):
                self._told = bool(left) or next(iterator, _END) is not _END
                if self._told:
                    notice(
                        f"xnn: {self!r} has more samples than {self.samples:,}: those after them are left out"
                    )
            yield found

    def _next(self, iterator: Iterator[Any], left: list[Arrays], size: int, start: int) -> Arrays:
        """The next `size` samples; what the last batch has beyond them is put into `left`. start: samples before.

        The iterator goes on only when nothing is left.
        """
        found: list[np.ndarray] = []
        rows = 0
        while rows < size:
            arrays = left.pop() if left else self._batch(iterator, start + rows)
            found = found or [np.empty((size, *array.shape[1:]), array.dtype) for array in arrays]
            count = min(size - rows, len(arrays[0]))
            for whole, array in zip(found, arrays, strict=True):
                whole[rows : rows + count] = array[:count]  # a copy: the source may use its arrays again
            if count < len(arrays[0]):
                left.append(tuple(array[count:] for array in arrays))
            rows += count
        return tuple(found)

    def _batch(self, iterator: Iterator[Any], rows: int) -> Arrays:
        """The next batch of the source. rows: samples before."""
        try:
            batch = next(iterator, _END)
        except Exception as error:
            raise DataError(
                f"{self!r} failed after {rows:,} samples: {type(error).__name__}: {error}"
            ) from error
        if batch is _END:
            if self.once and self._taken >= self.samples:
                raise DataError(
                    f"{self!r} ended after {rows:,} samples of a later epoch: an iterator goes on from one epoch to "
                    "the next; give a function or an iterable, which begins anew"
                )
            raise DataError(
                f"{self!r} ended after {rows:,} samples: give the samples of an epoch as samples="
            )
        arrays = _as_arrays(batch)
        kind = [(array.shape[1:], array.dtype) for array in arrays]
        self._first = self._first or (kind, _described(arrays))
        if kind != self._first[0]:
            raise ShapeError(
                f"{self!r} gave {_described(arrays)} after {self._first[1]}: all batches must have rows of one shape "
                "and dtype"
            )
        return arrays


def _as_arrays(batch: Any) -> Arrays:
    """A batch of a source, checked. Raises OptionError or ShapeError."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise OptionError(f"a stream must give batches (x, y) or (x, y, sample_weight), got {shown(batch)}")
    names = "x", "y", "sample_weight"
    arrays = tuple(as_host_array(part, f"stream: {name}") for part, name in zip(batch, names, strict=False))
    if any(array.ndim < 1 or len(array) != len(arrays[0]) for array in arrays) or not len(arrays[0]):
        raise ShapeError(
            f"a stream gave {_described(arrays)}: give as many samples as targets, and at least one"
        )
    return arrays


def _described(arrays: Arrays) -> str:
    return " and ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)


def opened(stream: Stream, prepare: Callable[..., Arrays]) -> tuple[StreamRows, ...]:
    """The arrays of a stream, whose rows are those of the windows that were read.

    prepare: checks and converts the arrays of a window.
    """
    windows = _Windows(stream, prepare)
    return tuple(StreamRows(windows, place) for place in range(len(windows.first)))


class StreamRows(RowSource):
    """The samples, targets or weights of a stream: rows can be taken in the order of `numbers`, window by window."""

    sequential = True

    def __init__(self, windows: _Windows, place: int) -> None:
        first = windows.first[place]
        super().__init__((windows.stream.samples, *first.shape[1:]), first.dtype)
        self.windows, self.place = windows, place

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.windows.take(rows, self.place)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise DataError(f"{self.windows.stream!r} is not in memory: it can only be read window by window")


class _Windows:
    """The windows of a stream that are in memory.

    first: the first window, which also serves to try out a batch before training.
    """

    def __init__(self, stream: Stream, prepare: Callable[..., Arrays]) -> None:
        self.stream, self.prepare = stream, prepare
        self._lock = threading.RLock()
        self._held: dict[int, Arrays] = {}
        self._begun, self._epoch = False, 0
        self._windows: Generator[Arrays, None, None] = self._all(0)
        if stream.once:  # the first window is not read again
            done = stream._taken // stream.samples
            self._start(done)
            self.first = self._window(0)
        else:
            self.first = self._prepared(next(stream.windows(0)), 0)

    def begin(self, epoch: int) -> None:
        """Read the windows of this epoch from now on, from its beginning."""
        with self._lock:
            if not (self.stream.once and self._epoch == epoch and not self._begun):
                self._start(epoch)
            self._windows, self._begun = read_ahead(self._windows), True

    def end(self) -> None:
        """End the thread that reads."""
        with self._lock:
            self._windows.close()

    def _start(self, epoch: int) -> None:
        self._windows.close()
        self._epoch, self._begun = epoch, False
        self._held.clear()
        self._windows, self._read = self._all(epoch), 0

    def _all(self, epoch: int) -> Generator[Arrays, None, None]:
        left, count = self.stream.samples, False
        for number, window in enumerate(self.stream.windows(epoch)):
            prepared = self._prepared(window, number)
            left, count = left - len(prepared[0]), count or len(prepared) < 3 or bool(prepared[2].any())
            if not (left or count):
                raise OptionError(f"{self.stream!r}: every sample_weight is 0, so that no sample counts")
            yield prepared

    def take(self, rows: np.ndarray, place: int) -> np.ndarray:
        """These rows of one of the arrays."""
        first = self.first[place]
        taken = np.empty((len(rows), *first.shape[1:]), first.dtype)
        with self._lock:
            windows = rows // self.stream.window
            for number in np.unique(windows).tolist():
                here = np.flatnonzero(windows == number)
                taken[here] = self._window(number)[place][rows[here] - number * self.stream.window]
            for number in [held for held in self._held if len(rows) and held < windows.min() - 1]:
                del self._held[number]
        return taken

    def _window(self, number: int) -> Arrays:
        if number in self._held:
            return self._held[number]
        if number == 0 and not self._begun and not self.stream.once:  # a batch is tried out before training
            return self.first
        if number < self._read:  # a batch is taken again
            return self._again(number)
        while self._read <= number:
            window = next(self._windows)
            if self._read >= number - 1:  # others are left out, when a training goes on in the middle
                self._held[self._read] = window
            self._read += 1
        return self._held[number]

    def _again(self, number: int) -> Arrays:
        if self.stream.once:
            raise DataError(
                f"window {number} of {self.stream!r} is not in memory any more, and cannot be read again"
            )
        for place, window in enumerate(self.stream.windows(self._epoch)):
            if place == number:
                return self._prepared(window, number)
        raise AssertionError("a stream has all its windows")

    def _prepared(self, window: Arrays, number: int) -> Arrays:
        start = number * self.stream.window
        try:
            return self.prepare(*window)
        except XnnError as error:
            rows = f"samples {start:,} to {start + len(window[0]) - 1:,} of {self.stream!r}"
            raise type(error)(f"{rows}: {error}") from error
