"""ScaledIntegers: an array of integers times one number, the output of Rescale for pixels in exact numerics.

A pixel k / 255 needs 24 bits as float32, but k needs only 8. A batch of images that is kept as integers needs no
slicing, its products take half the work, and the weights keep more bits. Like a quantized tensor of PyTorch, it acts
as an array of float32; only Dense and Conv2D use the integers themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends.exact.slices import to32

__all__ = ["ScaledIntegers", "integer_bits"]

_BITS = {"uint8": 8, "int8": 8, "uint16": 16, "int16": 16}


def integer_bits(xp: Any, dtype: Any) -> int | None:
    """Return how many bits an integer dtype of at most 16 bits has, or None for any other dtype."""
    return next((bits for name, bits in _BITS.items() if dtype == getattr(xp, name, None)), None)


def _by_value(name: str) -> Any:
    """Make an operator of ScaledIntegers that computes with the float32 numbers."""

    def operator(self: ScaledIntegers, *others: Any) -> Any:
        read = (other.materialize() if isinstance(other, ScaledIntegers) else other for other in others)
        return getattr(self.materialize(), name)(*read)

    return operator


@dataclass(frozen=True, eq=False)
class ScaledIntegers:
    """The float32 numbers `integers * scale`.

    lib: the backend. integers: an array of integers with at most 16 bits. scale: a float.

    It computes, reduces and reshapes as the float32 array would. `numpy.asarray` converts it to that array.

    >>> import numpy as np, xnn
    >>> lib = xnn.backends.get_backend("numpy")
    >>> x = xnn.backends.exact.ScaledIntegers(lib, np.asarray([0, 51, 255], "uint8"), 1 / 255)
    >>> x + 1.0
    array([1. , 1.2, 2. ], dtype=float32)
    """

    lib: Any
    integers: Any
    scale: float

    shape = property(lambda self: self.integers.shape, doc="The array's shape.")
    ndim = property(lambda self: self.integers.ndim, doc="The number of axes.")
    size = property(lambda self: self.integers.size, doc="The number of elements.")
    device = property(lambda self: self.integers.device, doc="The device of the integers.")
    dtype = property(lambda self: self.lib.xp.float32, doc="float32, the dtype of the numbers.")

    @property
    def bits(self) -> int:
        """The number of bits of the integers' dtype."""
        bits = integer_bits(self.lib.xp, self.integers.dtype)
        assert bits is not None
        return bits

    def widened(self) -> Any:
        """Return the integers as float64."""
        return self.lib.xp.astype(self.integers, self.lib.xp.float64)

    def materialize(self) -> Any:
        """Return the numbers as an array of float32."""
        return to32(self.lib, self.widened() * self.scale)

    def with_integers(self, integers: Any) -> ScaledIntegers:
        """Return other integers with the same scale."""
        return ScaledIntegers(self.lib, integers, self.scale)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.materialize(), name)

    def __bool__(self) -> bool:
        return bool(self.materialize())

    def __format__(self, form: str) -> str:
        return format(self.materialize(), form)

    def __float__(self) -> float:
        return float(self.materialize())

    def __getitem__(self, key: Any) -> ScaledIntegers:
        return self.with_integers(self.integers[key])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.lib.to_host(self.materialize()), dtype=dtype)

    def __repr__(self) -> str:
        return f"ScaledIntegers({self.integers!r}, scale={self.scale!r})"


_BINARY = "add radd sub rsub mul rmul truediv rtruediv floordiv mod rmod matmul rmatmul pow rpow"
_OTHERS = "neg abs lt le gt ge eq ne"
for _name in f"{_BINARY} {_OTHERS}".split(" "):
    setattr(ScaledIntegers, f"__{_name}__", _by_value(f"__{_name}__"))
