"""Kernels of dense layers and their activations; the products are cuBLAS's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.cuda.cublas import Product
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import MOST_BLOCKS, Launch, by_element, compiled, cupy, structure
from xnn.backends.kernels.numpy_kernels import serves_dense as fits_dense
from xnn.backends.kernels.numpy_kernels import serves_elements as have_one_dtype

__all__ = [
    "KINDS", "Sums", "activation", "activation_backward", "add", "countable", "dense", "dense_backward",
    "has_one_dtype", "serves_add", "serves_dense", "serves_elements",
]  # fmt: skip

#: The numbers of the activations in common.cu.
KINDS: dict[Any, int] = {None: 0, ops.relu: 1, ops.sigmoid: 2, ops.tanh: 3}
_COLUMNS, _ROWS = 32, 256  # of a block that adds rows; more rows where a grid would be too large


def has_one_dtype(call: Call) -> bool:
    """Whether all arrays have one dtype, float32 or float64."""
    dtypes = {np.dtype(slot.dtype).name for slot in call.slots()}
    return len(dtypes) == 1 and dtypes <= {"float32", "float64"}


def countable(call: Call) -> bool:
    """Whether 31 bits can count the elements of each array."""
    return all(math.prod(slot.shape) < 2**31 for slot in call.slots())


def serves_elements(call: Call) -> bool:
    """Whether all arrays have one dtype, float32 or float64, and elements that 31 bits can count."""
    return have_one_dtype(call) and countable(call)


def serves_dense(call: Call) -> bool:
    """Whether x is a batch of rows and W a matrix, and the activation is one of KINDS."""
    return fits_dense(call) and serves_elements(call)


def dense(call: Call, feed: DeviceFeed) -> list[Any]:
    """Compute y = f(x W + b): a product, and one kernel for the bias and the activation."""
    x, w, *bias = (slot.array for slot in call.reads)
    y = call.writes[0].array  # type: ignore[union-attr]
    steps: list[Any] = [_product(feed, x, w, y)]
    if bias or call.activation is not None:
        steps.append(_activate(feed, y, y, bias[0] if bias else None, KINDS[call.activation]))
    return steps


def _product(
    feed: DeviceFeed, a: Any, b: Any, c: Any, turned: tuple[bool, bool] = (False, False), alpha: Any = None
) -> Any:
    """A product, or None if it has no elements."""
    return Product(feed.cublas, a, b, c, turned, alpha) if c.size else None


def _activate(feed: DeviceFeed, z: Any, y: Any, bias: Any, kind: int) -> Any:
    arguments = z, y, bias, y.size, y.shape[-1] if y.ndim else 1, kind
    return by_element(compiled("dense", y.dtype), "activate", y.size, arguments, feed.stream)


@dataclass(eq=False)
class Sums:
    """The gradient of a bias: the sum of the rows of dz = dy f'(z), which replaces dy. `group`: if it is updated."""

    feed: DeviceFeed
    dy: Any
    y: Any
    out: Any
    kind: int
    group: Any

    @property
    def bias(self) -> Any:
        """The kernels' structure of where the sums go, with the learning rates of a folded update."""
        rates = None if self.group is None else self.feed.rates_of(self.group)
        return structure("Bias", out=self.out, minus_rates=rates, stride=len(self.feed.groups))

    def build(self) -> list[Runnable]:
        (n, width), feed = self.dy.shape, self.feed
        if not width:
            return []
        module, step = compiled("dense", self.dy.dtype), (self.bias, feed.position)
        each = max(_ROWS, -(-n // MOST_BLOCKS))
        blocks = max(1, -(-n // each))
        parts = None if blocks == 1 else cupy().empty((blocks, width), self.dy.dtype)
        arguments = self.dy, self.y, n, width, self.kind, each, parts, *step
        grid = -(-width // _COLUMNS), blocks
        steps: list[Any] = [Launch(module, "gradient_and_sums", grid, (32, 32), arguments, feed.stream)]
        if blocks > 1:
            steps.append(by_element(module, "add_parts", width, (parts, blocks, width, *step), feed.stream))
        return steps


def dense_backward(call: Call, feed: DeviceFeed) -> list[Any]:
    """Compute dz from dy in place with db, then dx = dz W^T, then dW = x^T dz.

    If the update is folded in, W changes by the last product and b by the first kernel; dx comes from the old W.
    """
    forward = call.forward
    assert forward is not None
    x, w = forward.reads[0].array, forward.reads[1].array
    y, dz, kind = forward.writes[0].array, call.reads[0].array, KINDS[forward.activation]  # type: ignore[union-attr]
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    steps: list[Any] = []
    if rest and rest[0] is not None:
        steps.append(Sums(feed, dz, y, rest[0], kind, call.rule))
    elif kind:
        steps.append(_deactivate(feed, dz, y, dz, kind))
    if dx is not None:
        steps.append(_product(feed, dz, w, dx, (False, True)))
    if dw is not None:
        alpha = None if call.rule is None else feed.rate_address(call.rule)
        steps.append(_product(feed, x, dz, dw, (True, False), alpha))
    return steps


def _deactivate(feed: DeviceFeed, dy: Any, y: Any, dz: Any, kind: int) -> Any:
    return by_element(
        compiled("dense", dy.dtype), "deactivate", dy.size, (dy, y, dz, dy.size, kind), feed.stream
    )


def activation(call: Call, feed: DeviceFeed) -> Any:
    """Compute y = f(x) for an activation without a dense layer before it."""
    return _activate(feed, call.reads[0].array, call.writes[0].array, None, KINDS[call.op])  # type: ignore[union-attr]


def activation_backward(call: Call, feed: DeviceFeed) -> Any:
    """Compute dx = dy f'(x) from y."""
    y, dx = call.forward.writes[0].array, call.writes[0].array  # type: ignore[union-attr]
    return _deactivate(feed, call.reads[0].array, y, dx, KINDS[call.op])


def serves_add(call: Call) -> bool:
    """Whether the gradients have one shape and one dtype."""
    return serves_elements(call) and len({slot.shape for slot in call.slots()}) == 1


def add(call: Call, feed: DeviceFeed) -> list[Any]:
    """Add gradients from left to right."""
    first, *others = (slot.array for slot in call.reads)
    out = call.writes[0].array  # type: ignore[union-attr]
    launch: Callable[[Any, Any], Any] = lambda a, b: by_element(  # noqa: E731
        compiled("dense", out.dtype), "add", out.size, (a, b, out, out.size), feed.stream
    )
    return [launch(first if not number else out, other) for number, other in enumerate(others)]
