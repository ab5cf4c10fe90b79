"""The two inner loops of convolution, written as vectors of LLVM's, which keep a tile of results in registers.

A convolution is a sum of shifted planes (`shifts.py`): for output o and place p,

    y[o][p] = b[o] + sum over t of w[o][t] x[offset[t] + p]          `add_shifted`
    dw[o][t] = sum over p of dy[o][p] x[offset[t] + p]               `dot_shifted`

**Tiles.** Each number that is loaded should serve many multiplications, since a processor multiplies faster than it
loads. So a tile of results is computed together: R outputs times V vectors of places (or V taps). Its R V sums stay
in registers while the loop runs over t (or p). One turn loads R numbers and V vectors, and does R V multiplications:
with R = 8 and V = 3 it loads 11 times for 24.

**Vectors** have 64 bytes: 16 numbers of float32, or 8 of float64. LLVM makes of each one register of AVX-512, two of
AVX, four of NEON. The tiles below fill the registers of the processor and leave a few for what is loaded.
Which tile is taken, and how LLVM cuts the vectors, changes no bit: each result is the sum over t in order, or of 16
lanes, each in order of p, added by halves. A processor with a fused multiply-add rounds once in each turn.

Addresses are int64, strides and offsets are in bytes. `like` is a number of the dtype.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

__all__ = [
    "DOTS",
    "GROUPS",
    "VECTOR",
    "VECTORS",
    "add_shifted",
    "atomic_next",
    "call_loop",
    "dot_shifted",
    "move",
]

VECTOR = 64  #: bytes of a vector


def _has_wide_registers() -> bool:
    """Whether Numba compiles for AVX-512: for this processor, or for that of NUMBA_CPU_NAME."""
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        return bool(llvm.get_host_cpu_features().get("avx512f"))
    return "+avx512f" in (config.CPU_FEATURES or "")


_WIDE = _has_wide_registers()
#: V of `add_shifted`, and the R to choose from; then (R, V) of `dot_shifted`. AVX-512 has 32 registers of 64 bytes,
#: NEON 32 of 16, AVX 16 of 32.
VECTORS, GROUPS = (3, (8, 6)) if _WIDE else (1, (6, 4))
DOTS = ((4, 6), (8, 3)) if _WIDE else ((2, 3), (3, 2))

_INT = ir.IntType(64)
_LANE = ir.IntType(32)


def _vector(real: Any) -> Any:
    """The type of a vector of `real`."""
    return ir.VectorType(real, VECTOR // (4 if isinstance(real, ir.FloatType) else 8))


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _multiply_add(builder: Any, vector: Any) -> Any:
    """LLVM's a b + c for vectors: fused on processors that can, never a call of a library."""
    module, name = builder.module, f"llvm.fmuladd.v{vector.count}f{8 * VECTOR // vector.count}"
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(vector, [vector] * 3), name)


def _spread(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    vector = _vector(number.type)
    nothing = ir.Constant(vector, ir.Undefined)
    first = ir.Constant(ir.VectorType(_LANE, vector.count), [0] * vector.count)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _LANE(0)), nothing, first)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """A vector of these lanes; those of b are numbered after those of a."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes))


def _halved(builder: Any, a: Any, b: Any, sums: int) -> Any:
    """Add the upper half of each sum's lanes to the lower half, for two vectors that hold `sums` sums each."""
    many = a.type.count
    width = many // sums
    both = [*range(0, 2 * many, width)]
    lower = [begin + k for begin in both for k in range(width // 2)]
    upper = [begin + k for begin in both for k in range(width // 2, width)]
    return builder.fadd(_shuffle(builder, a, b, lower), _shuffle(builder, a, b, upper))


def _totals(builder: Any, vectors: list[Any]) -> Any:
    """The sum of the lanes of each of 1, 2, 4, ... vectors. Halves are added, of two vectors at once."""
    sums, count = 1, len(vectors)
    while len(vectors) > 1:
        vectors = [_halved(builder, a, b, sums) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        sums *= 2
    total = vectors[0]
    while (many := total.type.count) > count:
        width = many // count
        halves = (
            [begin + k for begin in range(0, many, width) for k in half]
            for half in (range(width // 2), range(width // 2, width))
        )
        total = builder.fadd(*(_shuffle(builder, total, total, half) for half in halves))
    return total


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def add_shifted(
    context: Any, outputs: Any, vectors: Any, like: Any, first: Any, x: Any, offsets: Any, taps: Any, w: Any, y: Any,
    pitch: Any, more: Any, positive: Any,
) -> Any:  # fmt: skip
    """Compute y[r][v] = first[r] + sum over t of w[t][r] x[offsets[t] + v] for r < outputs, v < vectors.

    outputs, vectors: R and V, literal integers. first: address of R numbers to begin with. offsets: address of the
    taps' offsets. w: address of the weights, R for each tap. pitch: from an output to the next in y. more: 1 to begin
    with what is in y, in place of `first`. positive: 1 to store max(y, 0), and NaN where y is NaN.
    """
    rows, columns = outputs.literal_value, vectors.literal_value
    given = outputs, vectors, like, first, x, offsets, taps, w, y, pitch, more, positive

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b = builder
        _, _, like, first, x, offsets, taps, w, y, pitch, more, positive = arguments
        real, vector = like.type, _vector(like.type)
        size, multiply_add = VECTOR // vector.count, _multiply_add(b, vector)
        lines = [b.add(y, b.mul(pitch, _INT(r))) for r in range(rows)]
        places = [
            _pointer(b, b.add(line, _INT(VECTOR * v)), vector) for line in lines for v in range(columns)
        ]
        fresh, again, loop, end = (b.append_basic_block(n) for n in ("fresh", "again", "loop", "end"))
        b.cbranch(b.icmp_signed("==", more, _INT(0)), fresh, again)
        b.position_at_end(fresh)
        begins = [_spread(b, b.load(_pointer(b, b.add(first, _INT(size * r)), real))) for r in range(rows)]
        b.branch(loop)
        b.position_at_end(again)
        old = [b.load(place, align=size) for place in places]
        b.branch(loop)

        b.position_at_end(loop)
        t = b.phi(_INT)
        sums = [b.phi(vector) for _ in places]
        for begin in (fresh, again):
            t.add_incoming(_INT(0), begin)
        for q, total in enumerate(sums):
            total.add_incoming(begins[q // columns], fresh)
            total.add_incoming(old[q], again)
        shifted = b.add(x, b.load(_pointer(b, b.add(offsets, b.mul(t, _INT(8))), _INT)))
        xs = [
            b.load(_pointer(b, b.add(shifted, _INT(VECTOR * v)), vector), align=size) for v in range(columns)
        ]
        weights = b.add(w, b.mul(t, _INT(size * rows)))
        after = []
        for r in range(rows):
            weight = _spread(b, b.load(_pointer(b, b.add(weights, _INT(size * r)), real)))
            after += [b.call(multiply_add, [weight, xs[v], sums[r * columns + v]]) for v in range(columns)]
        following = b.add(t, _INT(1))
        t.add_incoming(following, loop)
        for total, new in zip(sums, after, strict=True):
            total.add_incoming(new, loop)
        b.cbranch(b.icmp_signed("<", following, taps), loop, end)

        b.position_at_end(end)
        zero = ir.Constant(vector, None)
        with b.if_else(b.icmp_signed("!=", positive, _INT(0))) as (then, otherwise):
            with then:
                for new, place in zip(after, places, strict=True):
                    b.store(b.select(b.fcmp_ordered("<", new, zero), zero, new), place, align=size)
            with otherwise:
                for new, place in zip(after, places, strict=True):
                    b.store(new, place, align=size)
        return context.get_dummy_value()

    return types.void(*given), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def dot_shifted(
    context: Any, outputs: Any, taps: Any, like: Any, dy: Any, pitch: Any, x: Any, offsets: Any, count: Any,
    images: Any, dy_step: Any, x_step: Any, out: Any,
) -> Any:  # fmt: skip
    """Add to out[r][t] the sum over images and places p of dy[r][p] x[offsets[t] + p], r < outputs, t < taps.

    outputs, taps: R and V, literal integers. pitch: from an output to the next in dy. count: vectors of places.
    dy_step, x_step: from an image to the next.
    """
    rows, columns = outputs.literal_value, taps.literal_value
    given = outputs, taps, like, dy, pitch, x, offsets, count, images, dy_step, x_step, out

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b = builder
        _, _, like, dy, pitch, x, offsets, count, images, dy_step, x_step, out = arguments
        vector = _vector(like.type)
        size, multiply_add = VECTOR // vector.count, _multiply_add(b, vector)
        shifts = [b.load(_pointer(b, b.add(offsets, _INT(8 * t)), _INT)) for t in range(columns)]
        lines = [b.mul(pitch, _INT(r)) for r in range(rows)]
        entry = b.block
        image, loop, latch, end = (b.append_basic_block(n) for n in ("image", "loop", "latch", "end"))
        b.branch(image)

        b.position_at_end(image)
        n, dy_here, x_here = (b.phi(_INT) for _ in range(3))
        before = [b.phi(vector) for _ in range(rows * columns)]
        b.branch(loop)

        b.position_at_end(loop)
        k, place = b.phi(_INT), b.phi(_INT)
        sums = [b.phi(vector) for _ in before]
        at_dy, at_x = b.add(dy_here, place), b.add(x_here, place)
        dys = [b.load(_pointer(b, b.add(at_dy, line), vector), align=size) for line in lines]
        xs = [b.load(_pointer(b, b.add(at_x, shift), vector), align=size) for shift in shifts]
        after = [
            b.call(multiply_add, [dys[q // columns], xs[q % columns], total]) for q, total in enumerate(sums)
        ]
        following, further = b.add(k, _INT(1)), b.add(place, _INT(VECTOR))
        b.cbranch(b.icmp_signed("<", following, count), loop, latch)

        b.position_at_end(latch)
        n_next, dy_next, x_next = b.add(n, _INT(1)), b.add(dy_here, dy_step), b.add(x_here, x_step)
        b.cbranch(b.icmp_signed("<", n_next, images), image, end)

        zero = ir.Constant(vector, None)
        for phi, start, new in (
            (n, _INT(0), n_next),
            (dy_here, dy, dy_next),
            (x_here, x, x_next),
            *((total, zero, new) for total, new in zip(before, after, strict=True)),
        ):
            phi.add_incoming(start, entry)
            phi.add_incoming(new, latch)
        for phi, start, new in (
            (k, _INT(0), following),
            (place, _INT(0), further),
            *((total, old, new) for total, old, new in zip(sums, before, after, strict=True)),
        ):
            phi.add_incoming(start, image)
            phi.add_incoming(new, loop)
        b.position_at_end(end)
        begin = 0
        while begin < len(after):  # 24 results are 16 and 8
            many = min(vector.count, 1 << (len(after) - begin).bit_length() - 1)
            total = _totals(b, after[begin : begin + many])
            target = _pointer(b, b.add(out, _INT(size * begin)), total.type)
            b.store(b.fadd(b.load(target, align=size), total), target, align=size)
            begin += many
        return context.get_dummy_value()

    return types.void(*given), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def move(context: Any, count: Any, like: Any, target: Any, source: Any) -> Any:
    """Copy `count` numbers, a literal integer, by one load and one store."""
    many = count.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, like, target, source = arguments
        kind, size = ir.VectorType(like.type, many), 4 if isinstance(like.type, ir.FloatType) else 8
        value = builder.load(_pointer(builder, source, kind), align=size)
        builder.store(value, _pointer(builder, target, kind), align=size)
        return context.get_dummy_value()

    return types.void(count, like, target, source), generate


@intrinsic  # type: ignore[untyped-decorator]
def atomic_next(context: Any, address: Any) -> Any:
    """Add 1 to the int64 at an address, and return what was there before: each thread gets another number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0], _INT), _INT(1), "seq_cst")

    return types.int64(address), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_loop(
    context: Any, address: Any, row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> Any:  # fmt: skip
    """Call a compiled loop by its address."""
    given = address, row, first, last, fresh, scratch, part, like

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT] * 6 + [arguments[-1].type])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*given), generate
