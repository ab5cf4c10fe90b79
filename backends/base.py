"""What every backend can do. A backend is one array library on one kind of device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from xnn.backends.kernels.calls import KernelTable
from xnn.backends.numerics import current_numerics
from xnn.backends.random import Stream, half_words, keep_halves, signed_halves
from xnn.errors import DeviceMemoryError, OptionError

__all__ = ["Backend", "Timer"]


@dataclass
class Timer:
    """Seconds between entering and leaving `Backend.timer()`, the device synchronised at both ends."""

    seconds: float = 0.0


class Backend:
    """One array library. Subclasses set `name`, `xp` and `is_host`, and say how arrays travel."""

    #: What XNN_BACKEND, --backend and error messages call it.
    name: ClassVar[str]
    #: Whether its arrays are NumPy arrays in host memory.
    is_host: ClassVar[bool] = False
    #: The Array API namespace that ops are given.
    xp: Any
    #: The device that arrays are created on, as xp's creation functions take it; None is xp's own choice.
    device: Any = None

    @property
    def math(self) -> Any:
        """The namespace that ops compute in: xp itself, or in exact numerics the exact one, checked once."""
        return self.xp if current_numerics() == "fast" else self.exact

    @cached_property
    def exact(self) -> Any:
        """The exact namespace over this backend's arrays. Raises NumericsError where the machine cannot keep it."""
        from xnn.backends.exact import enable  # when it is asked for: it is no small file

        return enable(self)

    def clean(self, x: Any) -> Any:
        """A floating-point array from outside as ops and kernels are given it; x itself in fast numerics."""
        return x if current_numerics() == "fast" else self.exact.leave(self.exact.enter(x))

    def bits(self, x: Any, dtype: str) -> Any:
        """The same bits read as numbers of another dtype of the same size, such as "int64" for float64."""
        return self.to_device(self.to_host(x).view(dtype))

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        """A host array (or nested list) as an array of this backend; one that is there already stays.

        `dtype` is a name such as "float32"; without it the array keeps its own.
        """
        raise NotImplementedError

    def to_host(self, x: Any) -> np.ndarray:
        """An array of this backend as a NumPy array; waits for the device."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until the device has done everything it was asked to."""

    def memory(self) -> dict[str, int]:
        """Bytes: `used` by arrays or the process, `peak` so far, `total` on the device."""
        raise NotImplementedError

    def describe(self) -> dict[str, str]:
        """Names and versions for `xnn info`, records and benchmarks: library, device, driver."""
        raise NotImplementedError

    def probe(self) -> None:
        """Run a product and an elementwise kernel and check their values.

        Raises BackendUnavailableError with what to do.
        """
        raise NotImplementedError

    def keep_mask(self, stream: Stream, shape: tuple[int, ...], rate: float, row: int = 0) -> Any:
        """A boolean array, False with probability `rate`: dropout's mask, the same bits on every backend.

        `row` is the global index of the first row, so that a shard draws its part of the whole batch's.
        """
        halves = self._halves(stream, shape, row)
        return self.xp.reshape(keep_halves(halves, rate), shape)

    def signed(self, stream: Stream, shape: tuple[int, ...], row: int = 0) -> Any:
        """float32 numbers in (-1, 1), the same bits on every backend: noise; `row` as in `keep_mask`."""
        halves = self._halves(stream, shape, row)
        return self.xp.reshape(signed_halves(self.xp, halves), shape)

    def _halves(self, stream: Stream, shape: tuple[int, ...], row: int) -> Any:
        width = math.prod(shape[1:])
        return half_words(self.xp, stream, row * width, shape[0] * width, self.device)

    def kernels(self, name: str = "auto") -> KernelTable:
        """The table of kernels of this name: `ops` is the empty one, `auto` the best that runs here.

        Raises OptionError for a name this backend does not have.
        """
        if name not in ("auto", "ops"):
            raise OptionError(
                f"kernels={name!r} is not known to {self.name}; choose auto or ops, or on numpy also "
                "numpy or compiled"
            )
        return KernelTable()

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Any = None) -> Any:
        """An array that a kernel may write, a copy of `like` or not yet filled; for backends with kernels."""
        raise NotImplementedError

    @contextmanager
    def timer(self) -> Iterator[Timer]:
        """Time a block, device included: `with backend.timer() as t: ...; t.seconds`."""
        self.synchronize()
        result, start = Timer(), time.perf_counter()
        try:
            yield result
        finally:
            self.synchronize()
            result.seconds = time.perf_counter() - start

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around a run: no floating-point warnings (the trainer looks at the numbers itself), and running out
        of memory becomes a DeviceMemoryError that says what to try.
        """
        try:
            with np.errstate(all="ignore"):
                yield
        except DeviceMemoryError:
            raise
        except MemoryError as error:
            raise DeviceMemoryError(
                f"{self.name}: {str(error) or 'out of memory'}. {self.memory_advice}"
            ) from error

    memory_advice: ClassVar[str] = "Try a smaller batch_size."

    def __repr__(self) -> str:
        return f"<backend {self.name}>"
