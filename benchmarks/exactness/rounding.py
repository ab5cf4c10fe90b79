"""Measures the rounding errors of matrix products in exact numerics, beside those in float32.

    python -m xnn.benchmarks.exactness.rounding

Each line of the table is one product AB. The error of a result C is |C - AB| / |AB| with Frobenius norms, where AB is
computed in long double. The columns:

    forward    exact numerics as in the forward pass of Dense: x = A, W = B
    gradient   exact numerics as in the gradient of Dense's weights: x = A^T, dy = B
    float32    NumPy's float32 product
    floor      AB itself, rounded to float32

Exact numerics store numbers in fixed point. For sums of up to 8192 terms they keep the 27 bits below the largest
weight of the whole tensor, or, in the gradient, below the largest number of each column of x; of 65536 terms they
keep 25. Of the other operand they keep 27 bits or more below the largest number of each row or column. The error of a
term is therefore about 2^-28 max|W| |x|, however small its weight is. This is less than float32's error where all
terms are of similar size. It is more where weights are small and their inputs larger by the same factor, from a
factor of about 2^7 on. At 2^27 no correct digit is left. The last lines of the table show this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from xnn import losses, ops
from xnn.backends import get_backend, numerics
from xnn.benchmarks.contestants import Task
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.ops.apply import backward_of, forward_of
from xnn.runs.mlp import mlp

__all__ = ["CASES", "Case", "Errors", "main", "measure"]

_PIXEL = 1 / 255


@dataclass(frozen=True)
class Case:
    """A product of float32 matrices A (m, k) and B (k, n). If `pixels`, A is given as bytes and divided by 255."""

    name: str
    draw: Callable[[], tuple[np.ndarray, np.ndarray]]
    pixels: bool = False


@dataclass(frozen=True)
class Errors:
    """The relative errors of one product; the module's docstring explains the columns."""

    forward: float
    gradient: float
    float32: float
    floor: float


def _rng() -> np.random.Generator:
    return np.random.default_rng(2024)


def _gaussian(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = _rng()
    return rng.standard_normal((m, k)).astype("f4"), rng.standard_normal((k, n)).astype("f4")


def _cancelling() -> tuple[np.ndarray, np.ndarray]:
    """A product whose terms cancel in pairs, so that about 2^-20 of their size remains."""
    a, b = _gaussian(128, 392, 64)
    rest = 1.0 + 2.0**-20 * _rng().standard_normal(b.shape)
    order = _rng().permutation(784)
    return np.hstack([a, a])[:, order], np.vstack([b, -(b * rest).astype("f4")])[order]


def _lognormal(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of random sign and size e^(sigma g), g normally distributed."""
    rng = _rng()
    a, b = (
        np.exp(sigma * rng.standard_normal(s)) * rng.choice((-1.0, 1.0), s) for s in ((128, 784), (784, 64))
    )
    return a.astype("f4"), b.astype("f4")


def _spanning(bits: int, inverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of A that shrink from 1 to 2^-bits. If `inverse`, B grows by as much, so that all terms are alike."""
    a, b = _gaussian(128, 784, 64)
    sizes = 2.0 ** np.linspace(0.0, -bits, 784)
    return (a * sizes).astype("f4"), (b / sizes[:, None] if inverse else b).astype("f4")


def _task() -> Task:
    """The article's network and 256 images, MNIST's if it is on disk, else synthetic ones."""
    return Task((784, 100, 200, 10), 256, 256, dataset_here())


def _first_product() -> tuple[np.ndarray, np.ndarray]:
    """A batch of images and the first layer's initial weights."""
    return _task().data()[0], _task().weights()[0][0]


def _first_gradient() -> tuple[np.ndarray, np.ndarray]:
    """X^T of the batch, and the gradient of the loss with respect to the first layer's outputs."""
    x, y = _task().data()
    model, loss = mlp(784, (100, 200), 10, rescale=(_PIXEL, 0.0)), losses.SoftmaxCrossEntropy()
    with numerics("fast"):
        outputs: Any = x
        for layer in model.layers:
            outputs = layer.forward(outputs, training=True)
        loss.forward(outputs, y)
        gradient: Any = loss.backward()
        for layer in reversed(model.layers[2:]):
            gradient = layer.backward(gradient)
    return x.T, gradient


def _as_floats(draw: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    a, b = draw()
    return (a * np.float32(_PIXEL)).astype("f4"), b


CASES = (
    Case("Gaussian, k = 784", lambda: _gaussian(256, 784, 100)),
    Case("Gaussian, k = 4096", lambda: _gaussian(64, 4096, 64)),
    Case("Gaussian, k = 65536", lambda: _gaussian(16, 65536, 16)),
    Case("cancelling to 2^-20, k = 784", _cancelling),
    Case("digits X W1, X float32", lambda: _as_floats(_first_product)),
    Case("digits X W1, X uint8 / 255", _first_product, pixels=True),
    Case("digits X^T d1, batch 256, X float32", lambda: _as_floats(_first_gradient)),
    Case("digits X^T d1, batch 256, X uint8 / 255", _first_gradient, pixels=True),
    Case("lognormal, sigma 3", lambda: _lognormal(3.0)),
    Case("lognormal, sigma 10", lambda: _lognormal(10.0)),
    Case("rows of A span 2^40, B does not", lambda: _spanning(40, inverse=False)),
    *(
        Case(f"rows of A span 2^{bits}, B the inverse", partial(_spanning, bits, True))
        for bits in (5, 7, 10, 20, 27, 40)
    ),
)


def measure(case: Case) -> Errors:
    """Compute one case in all ways and return the errors."""
    a, b = case.draw()
    exactly = np.matmul(a.astype(np.longdouble), b.astype(np.longdouble))
    stored = a
    if case.pixels:
        exactly *= np.longdouble(1) / 255
        stored = (a * np.float32(_PIXEL)).astype("f4")

    def error(c: Any) -> float:
        return float(np.linalg.norm((c - exactly).astype(float)) / np.linalg.norm(exactly.astype(float)))

    return Errors(
        error(_forward(a, b, case.pixels)),
        error(_gradient(a, b, case.pixels)),
        error(np.matmul(stored, b)),
        error(exactly.astype(np.float32)),
    )


def _inputs(x: np.ndarray, pixels: bool) -> Any:
    """x as the Dense layer receives it in exact numerics: bytes pass through Rescale."""
    return forward_of(ops.rescale, get_backend("numpy").exact, (x,), {"scale": _PIXEL})[0] if pixels else x


def _forward(a: np.ndarray, b: np.ndarray, pixels: bool) -> Any:
    return forward_of(ops.dense, get_backend("numpy").exact, (_inputs(a, pixels), b), {})[0]


def _gradient(a: np.ndarray, b: np.ndarray, pixels: bool) -> Any:
    """The gradient of Dense's weights, x^T dy with x = A^T and dy = B."""
    xp = get_backend("numpy").exact
    weights = np.zeros((a.shape[0], b.shape[1]), np.float32)
    _, saved = forward_of(ops.dense, xp, (_inputs(np.ascontiguousarray(a.T), pixels), weights), {})
    return backward_of(ops.dense, xp, b, ops.dense.without_input_gradient(saved))[1]


def _lines() -> Iterator[str]:
    yield f"{'':<42}{'exact':>21}{'float32':>11}{'floor':>11}"
    yield f"{'':<42}{'forward':>10}{'gradient':>11}{'both':>11}"
    for case in CASES:
        e = measure(case)
        yield f"{case.name:<42}{e.forward:>10.1e}{e.gradient:>11.1e}{e.float32:>11.1e}{e.floor:>11.1e}"


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    if arguments:
        print(f"got {arguments[0]!r}, but this command takes no arguments\n{__doc__}", file=sys.stderr)
        return 2
    if np.finfo(np.longdouble).nmant < 63:
        print(
            "NumPy's long double has only float64's digits on this machine; run this on x86-64",
            file=sys.stderr,
        )
        return 2
    print(environment_line(environment()))
    print(f"relative error of a product, against long double; digits: {dataset_here()}")
    for line in _lines():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
