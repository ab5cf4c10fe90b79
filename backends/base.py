"""Backend, the interface that every backend fills in: one array library on one kind of device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from xnn.backends.communicator import communicator
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.numerics import current_numerics
from xnn.backends.random import Stream, half_words, keep_halves, signed_halves
from xnn.backends.ranks.rows import SharedRows
from xnn.errors import DeviceMemoryError, DTypeError, OptionError, XnnError
from xnn.options import is_one_of, shown

__all__ = ["Backend", "Measured", "Timer"]


@dataclass
class Timer:
    """The result of `Backend.timer()`.

    seconds: the wall-clock time of the block, a float, 0.0 until the block ends. The device is synchronised at both
        ends, so that work which a GPU has still to do is counted.
    """

    seconds: float = 0.0


@dataclass
class Measured:
    """The result of `Backend.measured()`.

    peak: the most bytes that the arrays of the block took together; 0 if that is not known.
    """

    peak: int = 0


class Backend:
    """One array library on one device; `xnn.backends.get_backend(name)` gives one.

    name: its short name in XNN_BACKEND and --backend, such as "numpy". `address` also has the number of a GPU.
    xp: the Array API namespace that ops compute with.
    is_host: whether its arrays are NumPy arrays in host memory.
    device: the device that arrays are created on, as `xp.zeros(..., device=)` takes it; None for the default one.

    A subclass sets these and defines `to_device`, `to_host`, `memory`, `describe` and `probe`.

    >>> import numpy as np, xnn
    >>> lib = xnn.backends.get_backend("numpy")
    >>> lib
    <backend numpy>
    >>> x = lib.to_device([[1.0, 2.0]], "float32")  # from the host to the device
    >>> lib.to_host(lib.xp.sum(x)).item()           # and back
    3.0
    """

    name: str
    #: Whether there may be several devices of its kind; it is then made with the number of one.
    has_numbers: ClassVar[bool] = False
    is_host: ClassVar[bool] = False
    #: Whether its device can stop answering, so that arrays there are lost.
    can_be_lost: ClassVar[bool] = False
    xp: Any
    device: Any = None
    #: The last sentence of a DeviceMemoryError.
    memory_advice: ClassVar[str] = "Try a smaller batch_size."
    #: The end of its last sentence where no batch would be small enough.
    room_advice: ClassVar[str] = "use a smaller model"
    #: The last sentence of a DeviceLostError.
    lost_advice: ClassVar[str] = ""

    @property
    def address(self) -> str:
        """The name by which `get_backend` gives this backend whatever XNN_DEVICE says, such as "cupy:0"."""
        return self.name

    def activate(self) -> None:
        """Make the device the one on which this thread's work is done, where there are several."""

    @staticmethod
    def number_of(array: Any) -> int:
        """The number of the device on which an array of this kind of backend lies."""
        return 0

    @property
    def math(self) -> Any:
        """The namespace that ops compute in: `fast` in fast numerics, `exact` in exact numerics.

        In fast numerics, while workers share a batch, it is `shared`.
        """
        if current_numerics() != "fast":
            return self.exact
        return self.fast if communicator() is None else self.shared

    @property
    def fast(self) -> Any:
        """`xp`, or a namespace of the same functions that is better for ops."""
        return self.xp

    @cached_property
    def shared(self) -> Any:
        """The namespace in which sums over the batch are those of all workers (`backends/ranks/rows.py`)."""
        return SharedRows(self)

    @cached_property
    def computed(self) -> set[Any]:
        """The dtypes of this backend that `backend_of` has met and found to be among those that ops compute with."""
        return set()

    @cached_property
    def exact(self) -> Any:
        """The namespace of exact numerics over this backend's arrays, made at the first use.

        Raises NumericsError if this machine's arithmetic does not meet the conditions of exact numerics.
        """
        from xnn.backends.exact import enable  # here, since fast runs should not pay for importing it

        return enable(self)

    def clean(self, x: Any) -> Any:
        """Round a floating-point array to what exact numerics store; in fast numerics, return it unchanged."""
        return x if current_numerics() == "fast" else self.exact.leave(self.exact.enter(x))

    def bits(self, x: Any, dtype: str) -> Any:
        """Reinterpret an array's bits as another dtype of the same size, such as "int64" for float64."""
        return self.to_device(self.to_host(x).view(dtype))

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        """Copy a NumPy array or nested list to the device; an array of this backend is returned as it is.

        x: the array.
        dtype: a name such as "float32"; None keeps the array's own dtype.
        """
        raise NotImplementedError

    def to_host(self, x: Any) -> np.ndarray:
        """Return an array of this backend as a NumPy array; waits for the device."""
        raise NotImplementedError

    def to_host_all(self, arrays: Iterable[Any]) -> list[np.ndarray]:
        """Return arrays of this backend as NumPy arrays; a device is waited for once, not for each array.

        arrays: may be computed while they are asked for, such as by a generator.
        """
        return [self.to_host(array) for array in arrays]

    def exchanged(self, x: Any, change: Callable[[np.ndarray], object]) -> Any:
        """Return an array with what `change` has made of its numbers: it writes to a contiguous array on the host.

        x: stays as it is.
        """
        numbers = np.array(self.to_host(x), order="C")
        change(numbers)
        return self.to_device(numbers)

    def synchronize(self) -> None:
        """Wait until the device has finished all work given to it."""

    def memory(self) -> dict[str, int]:
        """Return bytes of memory: `used` by arrays (or the process), `peak` so far, `total` on the device."""
        raise NotImplementedError

    def free_memory(self) -> int | None:
        """Return how many bytes arrays can still take; None where that is not known."""
        return None

    @contextmanager
    def measured(self) -> Iterator[Measured]:
        """Measure how much memory of the device a block takes, where the backend can tell."""
        yield Measured()

    def blas(self) -> str:
        """Return the name and version of the library that computes matrix products; "" if it is the BLAS of NumPy."""
        return ""

    def describe(self) -> dict[str, str]:
        """Return names and versions, such as library and device, for `xnn info`, records and benchmarks."""
        raise NotImplementedError

    def probe(self) -> None:
        """Compute a small product and an elementwise function, and check their values.

        Raises BackendUnavailableError, which says what to do, if a value is wrong.
        """
        raise NotImplementedError

    def keep_mask(self, stream: Stream, shape: tuple[int, ...], rate: float, row: int = 0) -> Any:
        """Draw dropout's mask: booleans that are False with probability `rate`, the same bits on every backend.

        stream: which random numbers, see `Stream`.
        shape: the mask's shape; axis 0 is the batch.
        rate: a probability in [0, 1).
        row: the index of the first row in the whole batch. A worker that holds rows 32 to 63 passes 32 and draws
            those rows of the whole batch's mask.
        """
        halves = self._halves(stream, shape, row)
        return self.xp.reshape(keep_halves(halves, rate), shape)

    def signed(self, stream: Stream, shape: tuple[int, ...], row: int = 0) -> Any:
        """Draw float32 numbers uniform in (-1, 1), the same bits on every backend; `row` as in `keep_mask`."""
        halves = self._halves(stream, shape, row)
        return self.xp.reshape(signed_halves(self.xp, halves), shape)

    def _halves(self, stream: Stream, shape: tuple[int, ...], row: int) -> Any:
        width = math.prod(shape[1:])
        return half_words(self.xp, stream, row * width, shape[0] * width, self.device)

    def kernels(self, name: str = "auto") -> KernelTable:
        """Return a table of kernels: `ops` is the empty table, `auto` the fastest that runs here.

        Raises OptionError for a name that this backend does not have.
        """
        if not is_one_of(name, ("auto", "ops")):
            raise OptionError(
                f"kernels={shown(name)} is not a table of kernels of {self.name}: choose auto or ops, or on the "
                "numpy backend also numpy or compiled, on cupy also cuda"
            )
        return KernelTable()

    def number_on_device(self, value: Any) -> Any:
        """Return a metric's value as an array on the device: a user's metric may return a Python number.

        Raises DTypeError for what is neither a number nor an array.
        """
        if isinstance(value, (Real, np.bool_)):
            return self.to_device(float(value))
        if not hasattr(value, "shape"):
            raise DTypeError(f"a metric returned {type(value).__name__}: it must return a number or an array")
        return value

    def finite(self, arrays: Sequence[Any]) -> bool:
        """Whether every element of every array is finite. Waits for the device, once."""
        if self.is_host:
            return all(bool(self.xp.all(self.xp.isfinite(a))) for a in arrays)
        each = [self.xp.all(self.xp.isfinite(a)) for a in arrays]
        return not each or bool(self.to_host(self.xp.all(self.xp.stack(each))))

    def stacked(self, numbers: Sequence[Any]) -> np.ndarray:
        """Arrays of one shape as one array on the host, in float64. Waits for the device, once."""
        return self.to_host(self.xp.stack(numbers)).astype(np.float64)

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        """Allocate an array for kernels to write: a copy of `like`, or uninitialised."""
        raise NotImplementedError

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Run a block's work on a stream of its own, where a device has streams. Waits at both ends."""
        yield

    @contextmanager
    def timer(self) -> Iterator[Timer]:
        """Measure the wall-clock time of a block, including the device's work in it.

        >>> import xnn
        >>> lib = xnn.backends.get_backend("numpy")
        >>> with lib.timer() as timer:
        ...     y = lib.xp.ones(3) + 1.0
        >>> timer.seconds > 0.0
        True
        """
        self.synchronize()
        result, start = Timer(), time.perf_counter()
        try:
            yield result
        finally:
            self.synchronize()
            result.seconds = time.perf_counter() - start

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Run a block that may compile kernels. A backend whose compiler is slow says so while it runs."""
        yield

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run a block without floating-point warnings, and explain the errors of memory and device.

        No warnings, since the trainer itself looks for values that are not finite. A MemoryError becomes a
        DeviceMemoryError, and what a device reports a DeviceError: they say what to do.
        """
        try:
            with np.errstate(all="ignore"):
                yield
        except Exception as error:
            explained = None if isinstance(error, XnnError) else self.explained(error)
            if explained is None:
                raise
            raise explained from error

    def explained(self, error: Exception) -> XnnError | None:
        """Return xnn's error for an exception of full memory or a failed device; None for any other exception."""
        if isinstance(error, MemoryError):
            what = str(error).rstrip(". ") or "out of memory"
            return DeviceMemoryError(f"{self.name}: {what}. {self.memory_advice}")
        return None

    def without_room(self, error: DeviceMemoryError, what: str) -> DeviceMemoryError:
        """Return the error for full memory where one sample has no room: it does not advise a smaller batch.

        what: that for which there is no room, such as "one sample".
        """
        said = str(error).removesuffix(self.memory_advice)
        return DeviceMemoryError(f"{said}There is no room for {what}: {self.room_advice}")

    def __repr__(self) -> str:
        return f"<backend {self.address}>"
