"""Where a run went wrong: replay the last steps layer by layer and name the first number that is not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.errors import DivergenceError
from xnn.layers import Sequential
from xnn.losses import Loss
from xnn.optimizers import Optimizer

__all__ = ["diagnose", "finite"]


def finite(lib: Backend, *arrays: Any) -> bool:
    """Whether every element of every array is finite. Waits for the device."""
    return all(bool(lib.to_host(lib.xp.all(lib.xp.isfinite(a)))) for a in arrays)


def diagnose(
    model: Sequential,
    loss: Loss,
    optimizer: Optimizer,
    steps: Iterable[tuple[str, int, Any, Any, np.ndarray]],
    seed: int,
) -> DivergenceError:
    """Run (place, step number, x, y, rows) one by one until something is not finite, and say what.

    The model and the optimizer, restored by the caller to before the first of these steps, are left as
    they were before the one that failed. `rows` are the batch's row numbers in the training data.
    """
    lib = model.backend
    for place, number, x, y, rows in steps:
        before = [p.value for p in model.parameters()], optimizer.snapshot()
        found = _first_fault(lib, model, loss, optimizer, number, x, y, rows, seed)
        if found:
            for parameter, value in zip(model.parameters(), before[0], strict=True):
                parameter.value = value
            optimizer.restore(before[1])
            return DivergenceError(
                f"{place}: {found}. The weights are those from before this step. "
                f"Try a smaller learning_rate than {optimizer.learning_rate:g}, or look at the data"
            )
    return DivergenceError(
        "a loss or weight became NaN or infinite, but not when the same steps were run again: "
        "the hardware or its library does not repeat its results; see xnn info --probe"
    )


def _first_fault(
    lib: Backend,
    model: Sequential,
    loss: Loss,
    optimizer: Optimizer,
    step: int,
    x: Any,
    y: Any,
    rows: np.ndarray,
    seed: int,
) -> str:
    if lib.xp.isdtype(x.dtype, "real floating") and not finite(lib, x):
        wrong = ~np.isfinite(lib.to_host(x)).reshape(len(rows), -1).all(axis=1)
        return f"the batch itself holds NaN or infinities, in row {int(rows[wrong][0])} of the data"
    model.set_stream(seed, step)
    out = x
    for position, layer in enumerate(model.layers):
        out = layer.forward(out, training=True)
        if not finite(lib, out):
            return f"the output of layer {position} ({type(layer).__name__}) is not finite"
    value = loss.compute(out, y)
    if not finite(lib, value):
        return f"the loss ({type(loss).__name__}) is {float(lib.to_host(value))} from finite outputs"
    model.backward(loss.backward(), input_gradient=False)
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not finite(lib, parameter.grad):
            return f"the gradient of {name} is not finite"
    optimizer.step(model.parameters())
    for name, parameter in model.named_parameters():
        if not finite(lib, parameter.value):
            return f"the update made {name} not finite"
    return ""
