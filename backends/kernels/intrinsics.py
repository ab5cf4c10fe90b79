"""Functions for compiled loops that Python does not have: pointers, prefetching, BLAS, exp and log that vectorize."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["exp_low", "exp_parts", "gemm32", "gemm64", "log_of_one_more", "pointer", "prefetch", "rounded"]


@intrinsic  # type: ignore[untyped-decorator]
def pointer(context: Any, address: Any, like: Any) -> Any:
    """Convert an address to a pointer to numbers of the type of `like`."""
    kind = types.CPointer(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(context: Any, address: Any) -> Any:
    """Ask the processor to bring the memory at an address into its cache, for a read that comes soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flag, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        read, keep, data = flag(0), flag(3), flag(1)
        builder.call(function, [builder.inttoptr(arguments[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(address), generate


def _gemm_with(bits: int) -> Any:
    """Make the call of cblas_sgemm or cblas_dgemm at an address, for a BLAS whose integers have `bits` bits."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(
        context: Any, address: Any, flag_a: Any, flag_b: Any, m: Any, n: Any, k: Any, alpha: Any, a: Any, lead_a: Any,
        b: Any, lead_b: Any, beta: Any, c: Any, lead_c: Any,
    ) -> Any:  # fmt: skip
        given = (address, flag_a, flag_b, m, n, k, alpha, a, lead_a, b, lead_b, beta, c, lead_c)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            flag, size, pointer = ir.IntType(32), ir.IntType(bits), ir.IntType(8).as_pointer()
            real = context.get_value_type(alpha)
            matrix = (pointer, size)
            wanted = (*[flag] * 3, *[size] * 3, real, *matrix, *matrix, real, *matrix)
            function = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), wanted).as_pointer())
            passed = [ir.Constant(flag, 101)]  # row-major
            for value, kind in zip(arguments[1:], wanted[1:], strict=True):
                if isinstance(kind, ir.PointerType):
                    value = builder.inttoptr(value, kind)
                elif isinstance(kind, ir.IntType) and kind.width < value.type.width:
                    value = builder.trunc(value, kind)
                passed.append(value)
            builder.call(function, passed)
            return context.get_dummy_value()

        return types.void(*given), generate

    return call


gemm64, gemm32 = _gemm_with(64), _gemm_with(32)


#: For each type: NumPy's type, bits of the fraction, bias of the exponent, and degree of the polynomial for e^r.
_FORMATS = {types.float32: (np.float32, 23, 127, 7), types.float64: (np.float64, 52, 1023, 13)}


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(context: Any, shifted: Any) -> Any:
    """Return 2^n for a number whose lowest bits are n: n + bias is moved to the bits of the exponent."""
    real, fraction, bias, _ = _FORMATS[shifted]
    word = ir.IntType(8 * np.dtype(real).itemsize)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.bitcast(arguments[0], word), word(bias))
        return builder.bitcast(builder.shl(biased, word(fraction)), arguments[0].type)

    return shifted(shifted), generate


def exp_parts(x: Any) -> Any:
    """Return (2^n, e^r - 1) for x = n ln 2 + r <= 0. Then e^x = 2^n + 2^n (e^r - 1), to 1.1 units in the last
    place, and e^x - 1 = (2^n - 1) + 2^n (e^r - 1) is accurate near 0. NaN gives NaN; e^x below 2^-126.5 (float64:
    2^-1022.5) is 0. This plain arithmetic vectorizes; a call of exp for each number does not. Source: Cody and
    Waite, Software Manual for the Elementary Functions, 1980.
    """


@overload(exp_parts, jit_options={"forceinline": True, "fastmath": {"contract"}})  # type: ignore[untyped-decorator]
def _exp_parts_of(x: Any) -> Any:
    """`exp_parts` for the type of x. The constants have that type, so float32 is not widened to float64."""
    real, fraction, bias, degree = _FORMATS[x]
    # ln 2 = 355/512 + ln2_low; n * 355/512 is exact.
    per_ln2, ln2_high, ln2_low = real(1 / math.log(2)), real(355 / 512), real(-2.1219444005469058277e-4)
    to_whole = real(1.5 * 2.0**fraction)  # adding it rounds to a whole number n, whose bits come last
    lowest = real(-bias * math.log(2))  # there n = -bias: the exponent's bits are 0, and so is the number
    # Taylor's series e^r - 1 = r + r^2 (1/2! + r/3! + ...). The omitted terms are below 2^-27, and 2^-57 in float64.
    terms = tuple(real(1 / math.factorial(k)) for k in range(degree, 1, -1))

    def parts(x: Any) -> Any:
        x = lowest if x < lowest else x
        shifted = x * per_ln2 + to_whole
        n = shifted - to_whole
        r = (x - n * ln2_high) - n * ln2_low
        series = terms[0]
        for term in terms[1:]:
            series = series * r + term
        return _power_of_two(shifted), r + r * r * series

    return parts


def exp_low(x: Any) -> Any:
    """Return e^x for x <= 0, by `exp_parts`."""


@overload(exp_low, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _exp_low_of(x: Any) -> Any:
    def exp(x: Any) -> Any:
        power, rest = exp_parts(x)
        return power + power * rest

    return exp


def log_of_one_more(x: Any) -> Any:
    """Return ln(1 + x) for x from 0 to 1, also for small x to 3 units in the last place. NaN gives NaN.

    ln(1 + x) = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...) with s = x / (2 + x), which is at most 1/3.
    """


@overload(log_of_one_more, jit_options={"forceinline": True, "fastmath": {"contract"}})  # type: ignore[untyped-decorator]
def _log_of_one_more_of(x: Any) -> Any:
    real, fraction, *_ = _FORMATS[x]
    # The first omitted term is below 2^-27, and 2^-56 in float64.
    terms = tuple(real(1 / odd) for odd in range(15 if fraction < 32 else 33, 1, -2))
    one: Any = real(1)

    def log(x: Any) -> Any:
        s = x / (one + one + x)
        square, series = s * s, terms[0]
        for term in terms[1:]:
            series = series * square + term
        twice = s + s
        return twice + twice * (square * series)

    return log


def rounded(number: Any, like: Any) -> Any:
    """Return a number in the dtype of another."""


@overload(rounded, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _rounded_of(number: Any, like: Any) -> Any:
    real: Any = _FORMATS[like][0]

    def of(number: Any, like: Any) -> Any:
        return real(number)

    return of
