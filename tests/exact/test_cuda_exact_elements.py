"""Exact numerics' CUDA kernels of single elements have the bits of the ops, which NumPy runs."""

import numpy as np
import pytest
from test_cuda_exact import HOST, KINDS, Both, exact, pytestmark, raw
from test_cuda_kernels import CURVE_OPTIONS
from test_exact_kernels import ACTIVATIONS, numbers

from xnn import ops
from xnn.backends import Purpose, Stream
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda.activation_kernels import CURVES
from xnn.backends.random import Mask

__all__ = ["exact", "pytestmark"]


def forward_and_backward(op, options=None, y="y"):
    def make(s):
        forward = Call("forward", op, (s["x"],), (s[y],), dict(options or {}))
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    return make


@pytest.mark.parametrize("activation", ACTIVATIONS[1:], ids=lambda a: a.name)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (2, 3, 4), (64, 33), (3, 2000)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_activations(activation, shape, kind):
    both = Both()
    both.slot("x", raw(shape, 1, kind))
    both.slot("dy", raw(shape, 2, kind))
    both.empty("y", shape)
    both.empty("dx", shape)
    both.check(both.run(forward_and_backward(activation)), "y", "dx", "x", "dy")


@pytest.mark.parametrize("size", [1.0, 30.0, 1e30, 1e-20])
@pytest.mark.parametrize("op", CURVES, ids=lambda op: op.name)
def test_activations_by_their_input(op, size):
    x = numbers((64, 33), 1) * np.float32(size)
    x[0, :6] = np.nan, np.inf, -np.inf, -0.0, 1e-42, -(2.0**-125)
    for options in CURVE_OPTIONS.get(op, [{}]):
        both = Both()
        both.slot("x", x)
        both.slot("dy", raw((64, 33), 2, "hostile"))
        both.empty("y", x.shape)
        both.empty("dx", x.shape)
        both.check(both.run(forward_and_backward(op, options)), "y", "dx", "x", "dy")


@pytest.mark.parametrize(("op", "options"), [(ops.flatten, {}), (ops.reshape, {"shape": (4, 3, 5)})], ids=str)
def test_other_shapes(op, options):
    new = (4, 15) if op is ops.flatten else (4, 3, 5)
    both = Both()
    both.slot("x", numbers((4, 5, 3), 1, "hostile"))
    both.slot("dy", numbers(new, 2, "hostile"))
    both.empty("y", new)
    both.empty("dx", (4, 5, 3))
    both.check(both.run(forward_and_backward(op, options)), "y", "dx")
    both = Both()
    both.pixels("x", np.arange(60, dtype=np.uint8).reshape(4, 5, 3), 1 / 255)
    both.pixels("y", np.zeros(new, np.uint8), 1 / 255)
    both.check(both.run(lambda s: [Call("forward", op, (s["x"],), (s["y"],), options)]), "y")


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_dropout(rate, kind):
    """With its mask, drawn as on the CPU."""
    shape = (33, 20)
    both = Both()
    both.slot("x", numbers(shape, 1, kind))
    both.slot("dy", numbers(shape, 2, kind))
    both.empty("y", shape)
    both.empty("dx", shape)
    both.empty("keep", shape, "bool")
    mask, seed, step = Mask(Purpose.DROPOUT, 1, rate), 7, 5

    def draw():
        return HOST.keep_mask(Stream(seed, Purpose.DROPOUT, 1, step), shape, rate)

    def make(s):
        drawn = Call("draw", None, (), (s["keep"],), {"make": draw, "recipe": mask})
        forward = Call("forward", ops.dropout, (s["x"], s["keep"]), (s["y"],), {"rate": rate})
        return [drawn, forward, Call("backward", ops.dropout, (s["dy"],), (s["dx"], None), forward=forward)]

    found = both.run(make, number=step, seed=seed)
    both.check(found, "keep", "y", "dx")


def test_sums():
    """The sum of two arrays with its gradients, and the sum of several gradients."""
    both = Both()
    for n in range(4):
        both.slot(f"x{n}", numbers((9, 31), n, "hostile" if n == 1 else "wide"))
    for name in ("y", "da", "db", "total"):
        both.empty(name, (9, 31))

    def make(s):
        forward = Call("forward", ops.add, (s["x0"], s["x1"]), (s["y"],))
        back = Call("backward", ops.add, (s["x2"],), (s["da"], s["db"]), forward=forward)
        return [forward, back, Call("add", None, tuple(s[f"x{n}"] for n in range(4)), (s["total"],))]

    both.check(both.run(make), "y", "da", "db", "total")
