"""Comparisons, element by element, with NumPy's broadcasting. Their results are booleans and have no gradient.

To compute with a comparison, choose by it: ops.where(a > b, x, 0.0). (A boolean array times 1.0 is float64 in NumPy.
A float32 model would go on in float64.)
"""

from __future__ import annotations

from typing import Any

from xnn.ops.op import Array, Namespace, Op

__all__ = ["equal", "greater", "greater_equal", "less", "less_equal", "not_equal"]


class _Comparison(Op):
    """A comparison, element by element, as booleans. It has no gradient."""

    flat = True

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return None, None


class Less(_Comparison):
    """True where a < b. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a < b, None


class LessEqual(_Comparison):
    """True where a <= b. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a <= b, None


class Greater(_Comparison):
    """True where a > b. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a > b, None


class GreaterEqual(_Comparison):
    """True where a >= b. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a >= b, None


class Equal(_Comparison):
    """True where a == b. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a == b, None


class NotEqual(_Comparison):
    """True where a != b. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a != b, None


less = Less()
less_equal = LessEqual()
greater = Greater()
greater_equal = GreaterEqual()
equal = Equal()
not_equal = NotEqual()
