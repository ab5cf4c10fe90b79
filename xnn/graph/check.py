"""Gradient checks: the gradients that xnn computes, compared with central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends import Purpose, Stream, backend_of, current_backend, numerics
from xnn.backends.host_arrays import as_host_array
from xnn.errors import DTypeError
from xnn.graph.autograd import gradients_of
from xnn.graph.scope import Scope
from xnn.graph.value import Value

__all__ = ["GradientReport", "gradient_check", "numerical_gradient"]

# The step that balances truncation (h^2) against rounding (1e-16 / h) in float64: the cube root of epsilon.
_STEP = 6e-6
_ALL_ENTRIES = 64  # inputs up to this size are checked entry by entry, larger ones along random directions
_DIRECTIONS = 8
_SEARCH = 512  # how many entries of a large input are checked to name the worst one after a failure


@dataclass(frozen=True)
class GradientReport:
    """The result of `gradient_check`. It is true if every error is within the tolerance.

    error: the largest |computed - numerical|, relative to the largest derivative of its argument.
    argument, index: where it is; index is None if only a random direction showed it.
    computed, numerical: the two derivatives there.
    checked: how many derivatives were compared.
    """

    ok: bool
    error: float
    tolerance: float
    checked: int
    argument: int = -1
    index: tuple[int, ...] | None = None
    computed: float = 0.0
    numerical: float = 0.0

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        verdict = "gradients agree" if self.ok else "gradients differ"
        if self.checked == 0:
            return f"{verdict}: no floating-point input to differentiate"
        where = "a random direction" if self.index is None else f"entry {self.index}"
        return (
            f"{verdict}: {self.checked} derivatives, worst at {where} of argument {self.argument}: "
            f"computed {self.computed:.9g}, numerical {self.numerical:.9g}, "
            f"error {self.error:.2e} (tolerance {self.tolerance:.0e})"
        )


def gradient_check(
    f: Callable[..., Any], *inputs: Any, tolerance: float = 1e-6, seed: int = 0
) -> GradientReport:
    """Compare f's gradients with central differences (f(x + h u) - f(x - h u)) / 2h, in float64.

    f: an op, or any function of its inputs written with ops. Its output may have any shape; a random projection
        reduces it to one number.
    inputs: arrays or numbers. Floating-point arrays and Python numbers are converted to float64 and differentiated;
        integer and boolean arrays are passed as they are. Choose inputs away from kinks, such as 0 of ReLU.
    tolerance: the largest relative error allowed.
    seed: draws the projection and the directions.

    An input of more than 64 entries is checked along 8 random directions, and entry by entry only if that fails, to
    name the worst entry. The check always computes in fast numerics, because exact numerics store float32 only.
    Raises DTypeError for an input that is not an array of numbers.

        >>> import numpy as np, xnn
        >>> from xnn import ops
        >>> report = xnn.gradient_check(ops.tanh, np.ones((2, 3)))
        >>> bool(report), report.checked
        (True, 6)
    """
    with numerics("fast"):
        return _check(f, inputs, tolerance, seed)


def _check(f: Callable[..., Any], inputs: Sequence[Any], tolerance: float, seed: int) -> GradientReport:
    lib = backend_of(*(x for x in inputs if hasattr(x, "shape")))
    host = [lib.to_host(x) if hasattr(x, "shape") else as_host_array(x, "an input") for x in inputs]
    for x in host:
        if x.dtype.kind not in "fiub":
            raise DTypeError(f"gradient_check needs numbers, got an input of dtype {x.dtype}")
    # A Python number keeps the meaning it has in autograd: a float64 array.
    host = [
        x.astype(np.float64) if x.dtype.kind == "f" or not hasattr(given, "shape") else x
        for given, x in zip(inputs, host, strict=True)
    ]
    wanted = [i for i, x in enumerate(host) if x.dtype.kind == "f"]

    arguments: list[Any] = [lib.to_device(x) for x in host]
    for i in wanted:
        arguments[i] = Value(arguments[i])
    with Scope():
        output = f(*arguments)
    projection = Stream(seed, Purpose.DIRECTIONS).uniform(tuple(output.shape), -1.0, 1.0)
    if isinstance(output, Value):
        value = output.value
        computed = gradients_of(output, lib.to_device(projection), [arguments[i] for i in wanted])
    else:  # it depends on nothing that is differentiated
        value, computed = output, [lib.to_device(np.zeros_like(host[i])) for i in wanted]

    def projected(values: Sequence[np.ndarray]) -> float:
        y = lib.to_host(f(*(lib.to_device(v) for v in values)))
        return float(np.sum(projection * y))

    # Rounding in f changes a difference by about 4e-11 of f's terms: derivatives below 1e-4 of them are noise.
    terms = float(np.sum(np.abs(projection * lib.to_host(value))))

    best = GradientReport(True, 0.0, tolerance, 0)
    checked = 0
    for i, gradient in zip(wanted, computed, strict=True):
        g, size = lib.to_host(gradient), host[i].size
        small = size <= _ALL_ENTRIES
        scale = max(float(np.max(np.abs(g), initial=0.0)), 1e-4 * terms, 1e-8)
        tries: list[tuple[int | None, np.ndarray]] = []
        if small:
            tries = [(k, _unit(k, host[i].shape)) for k in range(size)]
        else:
            streams = (Stream(seed, Purpose.DIRECTIONS, i + 1, n) for n in range(_DIRECTIONS))
            tries = [(None, s.uniform(host[i].shape, -1.0, 1.0)) for s in streams]
        reports = [_compare(projected, host, i, k, u, g, tolerance, scale) for k, u in tries]
        checked += len(reports)
        if not small and not all(reports):
            entries = Stream(seed, Purpose.DIRECTIONS, i + 1, _DIRECTIONS).permutation(size)[:_SEARCH]
            reports += [
                _compare(projected, host, i, int(k), _unit(int(k), host[i].shape), g, tolerance, scale)
                for k in entries
            ]
            named = [r for r in reports if r.index is not None and not r]
            reports = named or reports
        for report in reports:
            if not report.error <= best.error or best.argument < 0:
                best = report
    return GradientReport(
        best.error <= tolerance, best.error, tolerance, checked,
        best.argument, best.index, best.computed, best.numerical,
    )  # fmt: skip


def _unit(k: int, shape: tuple[int, ...]) -> np.ndarray:
    direction = np.zeros(shape)
    direction.reshape(-1)[k] = 1.0
    return direction


def _compare(
    projected: Callable[[Sequence[np.ndarray]], float],
    host: Sequence[np.ndarray],
    argument: int,
    entry: int | None,
    direction: np.ndarray,
    gradient: np.ndarray,
    tolerance: float,
    scale: float,
) -> GradientReport:
    """Compare one derivative, computed both ways."""
    numerical = _difference(projected, host, argument, direction)
    computed = float(np.sum(gradient * direction))
    error = abs(computed - numerical) / max(scale, abs(computed), abs(numerical))
    error = error if np.isfinite(error) else float("inf")
    shape = host[argument].shape
    index = None if entry is None else tuple(int(n) for n in np.unravel_index(entry, shape))
    return GradientReport(error <= tolerance, error, tolerance, 1, argument, index, computed, numerical)


def _difference(
    f: Callable[[Sequence[np.ndarray]], float], values: Sequence[np.ndarray], i: int, u: np.ndarray
) -> float:
    """(f(x_i + h u) - f(x_i - h u)) / 2h, h scaled to x_i."""
    h = _STEP * max(1.0, float(np.max(np.abs(values[i]), initial=0.0)))
    ahead, behind = list(values), list(values)
    ahead[i], behind[i] = values[i] + h * u, values[i] - h * u
    return (f(ahead) - f(behind)) / (2.0 * h)


def numerical_gradient(f: Callable[[Any], Any], x: Any) -> Any:
    """The gradient of a function of one array that returns one number, by central differences.

    It evaluates f twice for each entry of x: for teaching and checking, not for training.

        >>> import numpy as np
        >>> from xnn.graph.check import numerical_gradient
        >>> numerical_gradient(lambda x: (x * x).sum(), np.array([1.0, 3.0])).round(6).tolist()
        [2.0, 6.0]
    """
    lib = backend_of(x) if hasattr(x, "shape") else current_backend()
    host = np.asarray(lib.to_host(x), dtype=np.float64)

    def evaluate(values: Sequence[np.ndarray]) -> float:
        return float(f(lib.to_device(values[0])))

    with numerics("fast"):  # float64, whatever is in force
        entries = [_difference(evaluate, [host], 0, _unit(k, host.shape)) for k in range(host.size)]
    return lib.to_device(np.asarray(entries).reshape(host.shape))
