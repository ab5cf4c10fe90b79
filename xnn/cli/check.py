"""`xnn check`: every op's gradient on every backend, the three doors, and the backends against one another.

The table of ops and inputs is `xnn/ops/cases.py`; the tests read it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import layers, losses, optimizers
from xnn.backends import Backend, Purpose, Stream, backend, current_numerics, get_backend
from xnn.data import synthetic_digits
from xnn.graph import Input, Node, forward_pass, topological_sort
from xnn.graph.autograd import Value, gradients_of
from xnn.graph.backward import backpropagate
from xnn.graph.check import gradient_check
from xnn.layers import Layer
from xnn.ops.cases import CASES, Case
from xnn.runs.mlp import mlp
from xnn.training import Trainer

__all__ = ["Result", "draw", "run_checks", "through_doors"]

# Between two backends, in float32: a few roundings in an op, and what 20 steps make of them in a run.
_OP_TOLERANCE, _RUN_TOLERANCE = 1e-5, 1e-3


def draw(case: Case, dtype: str) -> list[Any]:
    """The case's inputs as NumPy arrays; floating-point ones are of `dtype`."""
    return [_draw(spec, dtype, n) for n, spec in enumerate(case.inputs)]


def _draw(spec: Any, dtype: str, number: int) -> Any:
    if isinstance(spec, float):
        return spec
    stream = Stream(7, Purpose.DIRECTIONS, 100, number)
    kind, shape = (spec[0], spec[1]) if spec and isinstance(spec[0], str) else ("any", spec)
    unit = np.asarray(stream.uniform(shape))
    if kind == "bool":
        return np.asarray(unit < 0.5)
    if kind == "int":
        return (unit * spec[2]).astype(np.int64)
    if kind == "unit":
        return unit.astype(dtype)
    signed = 2.0 * unit - 1.0
    away = np.sign(signed) * (0.1 + 1.9 * np.abs(signed))
    return np.asarray(np.abs(away) if kind == "positive" else away, dtype=dtype)


@dataclass(frozen=True)
class Result:
    """One line of `xnn check`. error: of a gradient, relative to the largest derivative; None elsewhere."""

    backend: str
    check: str
    ok: bool
    detail: str
    error: float | None = None
    case: str = ""


def run_checks(names: list[str]) -> Iterator[Result]:
    """Every check on these backends, one Result at a time. Raises for a backend that cannot be had."""
    for name in names:
        lib = get_backend(name)
        with backend(name):
            for case in CASES:
                yield _safely(lib, f"gradient of {case.name}", _gradient, case)
                yield _safely(lib, f"three doors of {case.name}", _doors, case)
                if name != "numpy":
                    yield _safely(lib, f"numpy agrees on {case.name}", _agreement, case)
            if name != "numpy":
                yield _safely(lib, "numpy agrees on 20 training steps", _training, None)


def _safely(lib: Backend, title: str, check: Any, case: Case | None) -> Result:
    name = case.name if case else ""
    try:
        ok, detail, *error = check(lib, case)
    except Exception as fault:  # a check that cannot run has failed, and the others still run
        return Result(lib.name, title, False, f"{type(fault).__name__}: {fault}", case=name)
    return Result(lib.name, title, ok, detail, error[0] if error else None, name)


def _device(lib: Backend, inputs: list[Any]) -> list[Any]:
    return [lib.to_device(x) if isinstance(x, np.ndarray) else x for x in inputs]


def _gradient(lib: Backend, case: Case) -> tuple[bool, str, float]:
    inputs = _device(lib, [x for x in draw(case, "float64") if isinstance(x, np.ndarray)])
    fixed = [x for x in draw(case, "float64") if isinstance(x, float)]
    report = gradient_check(lambda *xs: case.op(*xs, *fixed, **case.options), *inputs)
    return bool(report) and report.checked > 0, str(report), report.error


class _Bound(Layer):
    """An op as a layer: x comes through forward, the rest of a case's inputs are its arguments."""

    def __init__(self, case: Case, rest: list[Any]) -> None:
        super().__init__()
        self.op, self.rest, self.fixed = case.op, tuple(rest), case.options

    def compute(self, x: Any) -> Any:
        return self.op(x, *self.rest, **self.fixed)


def through_doors(lib: Backend, case: Case, dtype: str) -> dict[str, list[np.ndarray | None]]:
    """Output and gradients of one case through each door; a layer hands back its first input's gradient."""
    inputs = _device(lib, draw(case, dtype))
    layer = _Bound(case, inputs[1:])
    y = layer.forward(inputs[0])
    seed = lib.to_device(Stream(7, Purpose.DIRECTIONS, 101).uniform(tuple(y.shape), -1.0, 1.0).astype(dtype))

    nodes = [Input(x) if hasattr(x, "shape") else x for x in inputs]
    output: Node = case.op(*nodes, **case.options)
    order = topological_sort({node: None for node in nodes if isinstance(node, Input)})

    floating = [hasattr(x, "shape") and lib.xp.isdtype(x.dtype, "real floating") for x in inputs]
    values = [Value(x) if wanted else x for x, wanted in zip(inputs, floating, strict=True)]
    result = case.op(*values, **case.options)
    gradients = iter(gradients_of(result, seed, [v for v in values if isinstance(v, Value)]))

    doors = {
        "layer": [y, layer.backward(seed)],
        "graph": [forward_pass(order), *backpropagate(order, {output: seed})[output]],
        "autograd": [result.value, *(next(gradients) if wanted else None for wanted in floating)],
    }
    return {door: [None if a is None else lib.to_host(a) for a in arrays] for door, arrays in doors.items()}


def _doors(lib: Backend, case: Case) -> tuple[bool, str]:
    doors = through_doors(lib, case, "float32")
    for door in ("layer", "graph"):
        for a, b in zip(doors[door], doors["autograd"], strict=False):  # a layer has one gradient to show
            if (a is None) != (b is None) or (a is not None and b is not None and a.tobytes() != b.tobytes()):
                return False, f"{door} and autograd give different bits"
    return True, "layer, graph and autograd: same bits"


def _agreement(lib: Backend, case: Case) -> tuple[bool, str]:
    worst = 0.0
    here, there = (
        through_doors(library, case, "float32")["graph"] for library in (get_backend("numpy"), lib)
    )
    for a, b in zip(here, there, strict=True):
        if (a is None) != (b is None):
            return False, "one backend has a gradient where the other has none"
        if a is not None and b is not None:
            if a.shape != b.shape or a.dtype != b.dtype:
                return False, f"numpy gives {a.dtype}{a.shape}, {lib.name} {b.dtype}{b.shape}"
            worst = max(worst, _difference(a, b))
    return worst <= _allowed(_OP_TOLERANCE), f"largest relative difference {worst:.1e}"


def _allowed(tolerance: float) -> float:
    """Between two backends: nothing in exact numerics."""
    return 0.0 if current_numerics() == "exact" else tolerance


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b| in units of the largest |a|."""
    gap = np.max(np.abs(a.astype(float) - b.astype(float)), initial=0.0)
    return float(gap / max(float(np.max(np.abs(a), initial=0.0)), 1e-30))


def _training(lib: Backend, _: Case | None) -> tuple[bool, str]:
    """A small network with dropout: same first weights, same masks, losses within rounding."""
    x, y = synthetic_digits(640)
    runs = []
    for name in ("numpy", lib.name):
        with backend(name):
            model = mlp(784, (32,), 10, dropout=0.2, rescale=(1 / 255, 0.0), seed=3)
            start = [model.backend.to_host(p.value) for p in model.parameters()]
            optimizer = optimizers.SGD(learning_rate=0.1, momentum=0.9)
            history = Trainer(model, losses.SoftmaxCrossEntropy(), optimizer).fit(
                (x, y), seed=3, progress=False
            )
            mask = layers.Dropout(0.5, seed=1).forward(
                model.backend.to_device(np.ones((8, 5), np.float32)), training=True
            )
            end = np.concatenate([model.backend.to_host(p.value).ravel() for p in model.parameters()])
            runs.append((start, model.backend.to_host(mask), history["loss"][0], end))
    (start, mask, loss, end), (start2, mask2, loss2, end2) = runs
    same = all(a.tobytes() == b.tobytes() for a, b in zip(start, start2, strict=True)) and np.array_equal(
        mask, mask2
    )
    drift = max(abs(loss - loss2) / loss, _difference(end, end2))
    detail = f"same start and masks: {same}; losses and weights drift by {drift:.1e}"
    return same and drift <= _allowed(_RUN_TOLERANCE), detail
