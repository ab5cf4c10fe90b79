"""Vectors in compiled loops: a type of Numba's for LLVM's vectors, with + - * and a few functions.

Numba leaves it to LLVM whether a loop becomes vectors. For sums that is forbidden, since the order of the additions
would change, and for reads of every second number it often fails. Such loops are written with this type.

`zeros(lanes, like)` makes the first vector: `lanes` is a literal integer, `like` a number of the dtype. All others
have the type of one that is there: `load(zero, address)`, `spread(zero, number)`. Addresses are int64.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "evens", "load", "odds", "spread", "store", "total", "weave", "where_better", "where_equal", "where_not_above",
    "zeros",
]  # fmt: skip

_LANE = ir.IntType(32)


class _Vector(types.Type):  # type: ignore[misc]
    """The type of a vector: `lanes` numbers of the dtype `real`."""

    def __init__(self, lanes: int, real: Any) -> None:
        self.lanes, self.real = lanes, real
        super().__init__(name=f"Vector({lanes}, {real})")

    def of_llvm(self) -> Any:
        return ir.VectorType(ir.FloatType() if self.real == types.float32 else ir.DoubleType(), self.lanes)


@register_model(_Vector)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.of_llvm())


def _shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes))


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def zeros(context: Any, lanes: Any, like: Any) -> Any:
    """A vector of zeros. lanes: a literal integer; 0 for as many as 64 bytes hold."""
    kind = _Vector(lanes.literal_value or 512 // like.bitwidth, like)
    return kind(lanes, like), lambda context, builder, signature, given: ir.Constant(kind.of_llvm(), None)


@intrinsic  # type: ignore[untyped-decorator]
def load(context: Any, vector: Any, address: Any) -> Any:
    """The numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[1], arguments[0].type.as_pointer())
        return builder.load(place, align=vector.real.bitwidth // 8)

    return vector(vector, address), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(context: Any, address: Any, vector: Any) -> Any:
    """Write the numbers to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], arguments[1].type.as_pointer())
        builder.store(arguments[1], place, align=vector.real.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(address, vector), generate


@intrinsic  # type: ignore[untyped-decorator]
def spread(context: Any, vector: Any, number: Any) -> Any:
    """A vector of one number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(arguments[0].type, ir.Undefined)
        first = builder.insert_element(nothing, arguments[1], _LANE(0))
        return _shuffled(builder, first, nothing, [0] * vector.lanes)

    return vector(vector, vector.real), generate


def _operation(name: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def apply(context: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)

    return apply


def _overload(symbol: Any, apply: Any) -> None:
    @overload(symbol)  # type: ignore[untyped-decorator]
    def of_vectors(a: Any, b: Any) -> Any:
        def of(a: Any, b: Any) -> Any:
            return apply(a, b)

        return of if isinstance(a, _Vector) and a == b else None


for _symbol, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _overload(_symbol, _operation(_name))


def _choice(test: Any) -> Any:
    """A function (a, b, x, y): lane by lane x where test(builder, a, b), else y."""

    @intrinsic  # type: ignore[untyped-decorator]
    def choose(context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.select(test(builder, *arguments[:2]), *arguments[2:])

        return x(a, b, x, y), generate

    return choose


def _is_better(builder: Any, a: Any, b: Any) -> Any:
    first_nan = builder.and_(builder.fcmp_unordered("uno", a, a), builder.fcmp_ordered("ord", b, b))
    return builder.or_(builder.fcmp_ordered(">", a, b), first_nan)


#: x where a > b, or a is NaN and b is not; else y.
where_better = _choice(_is_better)
where_equal = _choice(lambda builder, a, b: builder.fcmp_ordered("==", a, b))
#: x where a <= b, else y, also where one is NaN.
where_not_above = _choice(lambda builder, a, b: builder.fcmp_ordered("<=", a, b))


@intrinsic  # type: ignore[untyped-decorator]
def total(context: Any, vector: Any) -> Any:
    """The sum of the numbers: the upper half is added to the lower one, until one number is left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        while (many := value.type.count) > 1:
            halves = [*range(many // 2)], [*range(many // 2, many)]
            value = builder.fadd(*(_shuffled(builder, value, value, half) for half in halves))
        return builder.extract_element(value, _LANE(0))

    return vector.real(vector), generate


def _mixed(lanes: Any) -> Any:
    """A function (a, b): the lanes of a vector, then another's, that `lanes` chooses for their number."""

    @intrinsic  # type: ignore[untyped-decorator]
    def mix(context: Any, a: Any, b: Any) -> Any:
        chosen = [*lanes(a.lanes)]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _shuffled(builder, arguments[0], arguments[1], chosen)

        return a(a, b), generate

    return mix


#: Every second number of a, then of b, from the first or from the second on.
evens, odds = _mixed(lambda many: range(0, 2 * many, 2)), _mixed(lambda many: range(1, 2 * many, 2))
_weave_low = _mixed(lambda many: [k + n for k in range(many // 2) for n in (0, many)])
_weave_high = _mixed(lambda many: [k + n for k in range(many // 2, many) for n in (0, many)])


def weave(a: Any, b: Any) -> Any:
    """Two vectors with the numbers of a and b in turn."""


@overload(weave)  # type: ignore[untyped-decorator]
def _weave_of(a: Any, b: Any) -> Any:
    def of(a: Any, b: Any) -> Any:
        return _weave_low(a, b), _weave_high(a, b)

    return of
