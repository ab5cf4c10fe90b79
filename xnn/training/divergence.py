"""Finds where training diverged: replays the last steps layer by layer and names the first number not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.errors import DivergenceError
from xnn.layers import Sequential
from xnn.losses import Loss
from xnn.optimizers import Optimizer

__all__ = ["TakenStep", "diagnose", "finite"]


@dataclass(frozen=True)
class TakenStep:
    """One training step: its number over all fits from 0, its epoch and batch from 1, its rows of the data."""

    number: int
    epoch: int
    batch: int
    rows: np.ndarray


def finite(lib: Backend, *arrays: Any) -> bool:
    """Whether every element of every array is finite. Waits for the device."""
    return all(bool(lib.to_host(lib.xp.all(lib.xp.isfinite(a)))) for a in arrays)


def diagnose(
    model: Sequential,
    loss: Loss,
    optimizer: Optimizer,
    steps: Iterable[TakenStep],
    batch: Callable[[TakenStep], list[Any]],
    seed: int,
) -> tuple[DivergenceError, int]:
    """Repeat steps one by one until a number is not finite. Returns the error, and the number of that step.

    The caller has restored model and optimizer to before the first step; they are left as before the failed step.
    batch: gives a step's samples, targets and perhaps weights on the device.
    """
    lib, number = model.backend, 0
    for step in steps:
        number = step.number
        before = [array.value for _, array in model.named_state()], optimizer.snapshot()
        found = _first_fault(lib, model, loss, optimizer, step, batch(step), seed)
        if found:
            for (_, array), value in zip(model.named_state(), before[0], strict=True):
                array.value = value
            optimizer.restore(before[1])
            error = DivergenceError(
                f"step {number + 1} (epoch {step.epoch}, batch {step.batch}): {found}. The weights are those "
                f"from before this step. Try a smaller learning_rate than {optimizer.rate:g}, "
                "or look at the data"
            )
            return error, number
    error = DivergenceError(
        "a loss or weight became NaN or infinite, but not when the same steps were run again: "
        "the hardware or its library does not repeat its results; see xnn info --probe"
    )
    return error, number + 1


def _first_fault(
    lib: Backend,
    model: Sequential,
    loss: Loss,
    optimizer: Optimizer,
    step: TakenStep,
    batch: list[Any],
    seed: int,
) -> str:
    x, *targets = batch
    if lib.xp.isdtype(x.dtype, "real floating") and not finite(lib, x):
        wrong = ~np.isfinite(lib.to_host(x)).reshape(len(step.rows), -1).all(axis=1)
        return f"the batch itself holds NaN or infinities, in row {int(step.rows[wrong][0])} of the data"
    model.set_stream(seed, step.number)
    out = x
    chain = type(model).compute is Sequential.compute  # else its layers are not simply one behind the other
    parts: list[Any] = model.layers if chain else [model]
    for position, layer in enumerate(parts):
        out = layer.forward(out, training=True)
        if not finite(lib, out):
            where = f"layer {position} ({type(layer).__name__})" if chain else type(model).__name__
            return f"the output of {where} is not finite"
    value = loss.forward(out, *targets)
    if not finite(lib, value):
        return f"the loss ({type(loss).__name__}) is {float(lib.to_host(value))} from finite outputs"
    dout: Any
    dout, of_loss = loss.gradients(model.parameters())
    for position in range(len(parts) - 1, -1, -1):
        layer = parts[position]
        dout = layer.backward(dout, input_gradient=any(inner.parameters() for inner in parts[:position]))
        for name, parameter in layer.named_parameters():
            own = of_loss.get(parameter)
            if own is not None:
                parameter.grad = own if parameter.grad is None else parameter.grad + own
            if not (parameter.frozen or parameter.grad is None or finite(lib, parameter.grad)):
                return f"the gradient of {f'{position}.' if chain else ''}{name} is not finite"
        if dout is None:
            break
    optimizer.step(model.parameters())
    for name, array in model.named_state():
        if not finite(lib, array.value):
            return f"the update made {name} not finite"
    return ""
