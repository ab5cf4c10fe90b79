"""Random numbers: a stream for each purpose, with the same bits on every backend and machine.

The random bits come from Philox4x64-10 (Salmon, Moraes, Dror and Shaw, SC 2011), a counter-based generator: word i
(64 bits) of a stream is a function of a key and a counter, and of nothing else. The key is the user's seed. The
counter is

    (block i // 4, step, index, purpose)

so every layer's weights, every epoch's shuffle and every step's mask have words of their own, which any worker can
compute in any order. NumPy's Philox gives the same words, fast. (NumPy promises never to change the words, NEP 19,
but not the uniform or normal numbers that it makes from them.) `philox_words` computes them with integer array
operations on any backend.

Uniform numbers, normal numbers, orthonormal matrices and permutations are made from the words here, by `+ - * /`,
sqrt and comparisons only. IEEE 754 fixes each of these operations to the last bit, so the results do not depend on a
C library, SIMD instructions or the version of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from xnn.errors import OptionError
from xnn.ops.special import rational
from xnn.options import shown

__all__ = [
    "MULTIPLIERS",
    "WEYL",
    "AffineField",
    "ElasticField",
    "Mask",
    "Purpose",
    "Stream",
    "mask_threshold",
]

#: Numbers that are made at a time: 256 KiB, which the cache of a processor holds a few times.
_BLOCK = 2**15


class Purpose(IntEnum):
    """What a stream of random numbers is used for; the last word of its counter.

    The numbers must never change: every seed would give other results.
    """

    WEIGHTS = 1
    SHUFFLE = 2
    DROPOUT = 3
    SYNTHETIC = 4
    DIRECTIONS = 5
    SPLIT = 6
    AUGMENT = 7


@dataclass(frozen=True)
class Stream:
    """One stream of random numbers.

    seed: an integer in 0 .. 2^64 - 1.
    purpose: what the numbers are for, a `Purpose`.
    index: the number of the layer or image that they belong to, default 0.
    step: the training step or epoch, default 0.

    Raises OptionError for any other seed.

    >>> from xnn.backends import Purpose, Stream
    >>> Stream(seed=1, purpose=Purpose.SHUFFLE).permutation(5)
    array([4, 0, 2, 3, 1])
    >>> Stream(seed=1, purpose=Purpose.WEIGHTS).uniform((2,)).round(4)
    array([0.2699, 0.993 ])
    """

    seed: int
    purpose: Purpose
    index: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)):
            raise OptionError(f"seed={shown(self.seed)} is not an integer: a seed must lie in 0 .. 2**64 - 1")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed={shown(self.seed)} is out of range: a seed must lie in 0 .. 2**64 - 1")
        object.__setattr__(self, "seed", int(self.seed))

    def words(self, start: int, count: int) -> np.ndarray:
        """Return words start .. start + count - 1 of the stream, uint64, as a NumPy array."""
        counter = np.array([start // 4, self.step, self.index, int(self.purpose)], dtype=np.uint64)
        key = np.array([self.seed, 0], dtype=np.uint64)
        skip = start % 4
        raw = np.random.Philox(counter=counter, key=key).random_raw(skip + count)
        return np.asarray(raw, dtype=np.uint64)[skip:]

    def uniform(
        self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: str = "float64"
    ) -> np.ndarray:
        """Return uniform numbers in the open interval (low, high), as a NumPy array of this shape.

        dtype: what the numbers, which are computed in float64, are rounded to at the end. Default "float64".

        They are low + (high - low) * (k + 1/2) * 2^-52, where k is the top 52 bits of a word. Where rounding gives
        `low` or `high` itself, the next float64 number inside the interval is taken.
        """
        return self._drawn(shape, dtype, lambda words: _uniform(words, low, high))

    def normal(
        self, shape: tuple[int, ...], std: float = 1.0, mean: float | None = None, dtype: str = "float64"
    ) -> np.ndarray:
        """Return normal numbers: mean + std times the standard normal quantile function of `uniform`.

        dtype: what the numbers, which are computed in float64, are rounded to at the end. Default "float64".
        """
        return self._drawn(
            shape, dtype, lambda words: _scaled(_normal_quantile(_uniform(words, 0.0, 1.0)), std, mean)
        )

    def truncated_normal(
        self, shape: tuple[int, ...], std: float = 1.0, mean: float | None = None, dtype: str = "float64"
    ) -> np.ndarray:
        """Return mean + std times numbers of the standard normal distribution truncated to [-2, 2].

        dtype: what the numbers, which are computed in float64, are rounded to at the end. Default "float64".
        """
        low, high = _BELOW_2, 1.0 - _BELOW_2

        def make(words: np.ndarray) -> np.ndarray:
            z = _normal_quantile(_uniform(words, low, high))
            return _scaled(np.clip(z, -2.0, 2.0, out=z), std, mean)

        return self._drawn(shape, dtype, make)

    def _drawn(
        self, shape: tuple[int, ...], dtype: str, make: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the numbers that `make` computes from the words of the stream, one from each, rounded to a dtype.

        They are made block by block: what lies between a word and its number stays in the processor's cache, and
        takes no memory of the array's size.
        """
        count = math.prod(shape)
        # Once an array of 2 MiB was freed, glibc keeps freed memory of up to 4 MiB. Before that it returns each large
        # block to the system and asks for the next one, which takes half of the time, here and in steps by hand.
        np.empty(8 * _BLOCK)
        numbers = np.empty(count, dtype)
        for start in range(0, numbers.size, _BLOCK):
            block = numbers[start : start + _BLOCK]
            block[...] = make(self.words(start, block.size))
        return numbers.reshape(shape)

    def permutation(self, n: int) -> np.ndarray:
        """Return 0 .. n - 1 in random order, int64: the indices that sort n words (equal words by index)."""
        return np.argsort(self.words(0, n), kind="stable").astype(np.int64)

    def keep(self, start: int, count: int, rate: float) -> np.ndarray:
        """Return booleans start .. start + count - 1 of the stream, each False with probability `rate`."""
        return self._halves(start, count) >= np.uint32(mask_threshold(rate))

    def signed(self, start: int, count: int) -> np.ndarray:
        """Return float32 numbers start .. start + count - 1 of the stream, uniform in (-1, 1).

        They are (2 k + 1) * 2^-23 - 1 without rounding, where k is the top 23 bits of a half word (32 bits).
        """
        k = (self._halves(start, count) >> np.uint32(9)).astype(np.float32)
        return np.asarray((2 * k + 1) * np.float32(2.0**-23) - 1)

    def _halves(self, start: int, count: int) -> np.ndarray:
        first, past = start // 2, (start + count + 1) // 2
        halves = self.words(first, past - first).astype("<u8", copy=False).view("<u4")
        return halves[start - 2 * first :][:count]


def _uniform(words: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a number in (low, high) for each word; `Stream.uniform` says which."""
    unit = (words >> np.uint64(12)).astype(np.float64)
    unit += 0.5
    unit *= 2.0**-52
    unit *= high - low
    unit += low
    return np.clip(unit, np.nextafter(low, high), np.nextafter(high, low), out=unit)


def _scaled(z: np.ndarray, std: float, mean: float | None) -> np.ndarray:
    """Return mean + std z, in the memory of z. Without a mean, nothing is added: 0 would change -0."""
    z *= std
    if mean is not None:
        z += mean
    return z


@dataclass(frozen=True)
class Mask:
    """What a mask of dropout is drawn from, besides the seed and the step: its `Stream`'s numbers, and the rate."""

    purpose: Purpose
    index: int
    rate: float


@dataclass(frozen=True)
class AffineField:
    """What the displacements of a RandomAffine are drawn from, besides the seed and the step.

    rotation: degrees. scale: by which factors differ from 1. shift: pixels.
    """

    purpose: Purpose
    index: int
    rotation: float
    scale: float
    shift: float


@dataclass(frozen=True)
class ElasticField:
    """What the displacements of an ElasticDeformation are drawn from, besides the seed and the step.

    smoothing: gives the matrix of the smoothing with `sigma` for an extent and a dtype, as a NumPy array.
    """

    purpose: Purpose
    index: int
    alpha: float
    sigma: float
    smoothing: Callable[[int, str], np.ndarray] = field(compare=False)


def mask_threshold(rate: float) -> int:
    """Return the number below which a random 32-bit half word lies with probability `rate`, to 2^-32."""
    if not 0.0 <= rate < 1.0:
        raise OptionError(f"dropout rate={rate} is out of range: a rate must lie in [0, 1)")
    return min(round(rate * 2.0**32), 2**32 - 1)


def half_words(xp: Any, stream: Stream, start: int, count: int, device: Any = None) -> Any:
    """Return half words (32 bits) start .. start + count - 1 of the stream, held as uint64, in any namespace.

    The low half of a word comes before its high half.
    """
    first, past = start // 2, (start + count + 1) // 2
    words = philox_words(xp, stream, first, past - first, device)
    halves = xp.reshape(xp.stack((words & 0xFFFFFFFF, words >> 32), axis=1), (-1,))
    return halves[start - 2 * first : start - 2 * first + count]


def keep_halves(halves: Any, rate: float) -> Any:
    """Compute `Stream.keep` from half words, in any namespace."""
    return halves >= mask_threshold(rate)


def signed_halves(xp: Any, halves: Any) -> Any:
    """Compute `Stream.signed` from half words, in any namespace; no operation rounds."""
    return (2.0 * xp.astype(halves >> 9, xp.float32) + 1.0) * 2.0**-23 - 1.0


# Multipliers and key increments of Philox4x64 (Salmon et al. 2011, table 2 and section 3).
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_MASK = 2**64 - 1


def philox_words(xp: Any, stream: Stream, start: int, count: int, device: Any = None) -> Any:
    """Compute `Stream.words(start, count)` with uint64 array operations in any namespace, on a device."""
    first, past = start // 4, (start + count + 3) // 4
    # NumPy adds 1 to the counter before it makes the first block.
    blocks = xp.arange(first + 1, past + 1, dtype=xp.uint64, device=device)
    return philox(xp, blocks, stream)[start - 4 * first : start - 4 * first + count]


def philox(xp: Any, blocks: Any, stream: Stream) -> Any:
    """Compute the four words of each block: Philox4x64 with ten rounds, some thirty array operations each."""
    c0, c1, c2, c3 = blocks, *(blocks * 0 + int(n) for n in (stream.step, stream.index, stream.purpose))
    k0, k1 = stream.seed, 0
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return xp.reshape(xp.stack((c0, c1, c2, c3), axis=1), (-1,))


def _multiply(x: Any, m: int) -> tuple[Any, Any]:
    """Return the high and the low 64 bits of x * m, from products of 32-bit halves, since uint64 wraps around."""
    m_low, m_high = m & 0xFFFFFFFF, m >> 32
    x_low, x_high = x & 0xFFFFFFFF, x >> 32
    low = x_low * m_low
    cross = x_high * m_low + (low >> 32)
    middle = x_low * m_high + (cross & 0xFFFFFFFF)
    return x_high * m_high + (cross >> 32) + (middle >> 32), x * m


# Wichura, Algorithm AS 241 (Applied Statistics 37, 1988), PPND16: relative error about 1e-16.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
    (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
     5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0),
)  # fmt: skip
_SHOULDER = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
     1.27045825245236838258, 3.64784832476320460504, 5.76949722146069140550,
     4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
     1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940,
     2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
     2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580,
     5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
     7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
     5.99832206555887937690e-1, 1.0),
)  # fmt: skip


#: P(Z <= -2).
_BELOW_2 = 0.02275013194817921


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    """Return the z with P(Z <= z) = p for a standard normal Z, for 0 < p < 1 (n,)."""
    q = p - 0.5
    z = rational(_CENTRE, 0.180625 - q * q)
    z *= q
    outside = np.flatnonzero(np.abs(q) > 0.425)
    tail = p[outside]
    r = np.sqrt(-_log(np.minimum(tail, 1.0 - tail)))
    far = rational(_SHOULDER, r - 1.6)
    beyond = np.flatnonzero(r > 5.0)
    far[beyond] = rational(_TAIL, r[beyond] - 5.0)
    z[outside] = np.where(q[outside] < 0.0, -far, far)
    return np.asarray(z)


# _LN2_HIGH has 32 bits, so its product with a whole exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10


def _log(x: np.ndarray) -> np.ndarray:
    """Compute the natural logarithm of positive float64 numbers by correctly rounded operations only.

    x = 2^n m with sqrt(1/2) <= m < sqrt(2). With s = (m - 1) / (m + 1), |s| < 0.172,
    ln m = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...); the first omitted term is below 2^-58.
    """
    m, n = np.frexp(x)
    small = m < math.sqrt(0.5)
    m = np.where(small, 2.0 * m, m)
    exponent = (n - small).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    series = np.full_like(s, 1.0 / 23.0)
    for odd in range(21, 0, -2):
        series = series * s2 + 1.0 / odd
    return np.asarray(exponent * _LN2_HIGH + (2.0 * s * series + exponent * _LN2_LOW))


#: Numbers of a matrix that `orthonormal` works on at a time.
_PANEL = 2**15


def orthonormal(normal: np.ndarray) -> np.ndarray:
    """The product of reflections whose vectors are the columns of a normal matrix, from the diagonal down.

    The product takes the place of the matrix: column k is needed up to reflection k, which is the first that changes
    it. The columns are changed a few at a time, so that what is computed from them takes little memory.
    """
    q = normal
    height = len(q)
    width = max(1, _PANEL // max(1, height))
    for k in reversed(range(q.shape[1])):  # the last one first, since G_k changes only q[k:, k:]
        x = q[k:, k].copy()
        q[:, k] = 0.0
        q[k, k] = 1.0
        size, sign = np.sqrt(_total(x * x)), np.where(x[0] < 0.0, -1.0, 1.0)
        v = x.copy()
        v[0] += sign * size
        u = v / (size * (size + abs(x[0])))
        for first in range(k, q.shape[1], width):
            block = q[k:, first : first + width]
            block -= u[:, None] * _total(v[:, None] * block)
            block *= -sign
    return q


def _total(x: np.ndarray) -> np.ndarray:
    """The sum over axis 0, by adding halves. This order is fixed; that of NumPy's own sums and products is not."""
    while len(x) > 1:
        half = len(x) // 2
        folded = x[:half] + x[half : 2 * half]
        if len(x) % 2:
            folded[0] += x[-1]
        x = folded
    return np.asarray(x[0])
