"""Finds where training diverged: takes the last steps again and names the first number that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.data.standardize import far_from_unit
from xnn.errors import DivergenceError, OptionError
from xnn.layers import Sequential
from xnn.optimizers import Optimizer
from xnn.training.parameters import finite, has_nan, is_real
from xnn.training.scale import as_scaled
from xnn.training.steps import Stepper

__all__ = ["TakenStep", "check_start", "diagnose"]

#: Samples up to this size, in deviations of a column, are no reason for a training to diverge.
_USUAL = 10.0


@dataclass(frozen=True)
class TakenStep:
    """One training step: its number over all fits from 0, its epoch and batch from 1, its rows of the data."""

    number: int
    epoch: int
    batch: int
    rows: np.ndarray


def check_start(model: Sequential, optimizer: Optimizer) -> None:
    """Raise OptionError if weights, buffers or an optimizer's state are not finite before the first step.

    Infinity in what no step changes, a frozen parameter or a buffer, may be meant, as in a mask; NaN never is.
    """
    lib = model.backend
    for name, array in model.named_state():
        value = array.array
        if not finite(lib, value) and (not array.frozen or has_nan(lib, value)):
            raise OptionError(
                f"{name} of the model {_wrong(lib, value)}, before training: load or build a model whose weights are "
                "finite"
            )
    for found in _faults_of_state(lib, model, optimizer):
        raise OptionError(
            f"{found}, from an earlier training, so that these weights would never learn again: optimizer.state."
            "clear() and optimizer.averages.clear() forget it, or build a new optimizer"
        )


def diagnose(stepper: Stepper, steps: Sequence[TakenStep], losses: np.ndarray) -> tuple[DivergenceError, int]:
    """Take steps again one by one until a number is not finite. Returns the error, and the number of steps before it.

    The caller has gone back to before the first step; model and optimizer are left as before the step that failed.
    losses: those of the steps when they were first taken.
    """
    store, model, kept = stepper.store, stepper.model, None
    for good, (step, loss) in enumerate(zip(steps, losses, strict=True)):
        kept = store.snapshot(kept)
        stepper.step(step.rows, step.number)
        again = float(stepper.take()[0][0])
        found = _fault_of_kernels(stepper, again)
        repeats = again == loss or (math.isnan(again) and math.isnan(loss))
        if repeats and not found:
            continue
        store.wait()
        store.restore(kept)
        where = f"step {step.number + 1} (epoch {step.epoch}, batch {step.batch})"
        if not repeats:
            return _unrepeatable(where, loss, again), good
        batch = [stepper.lib.to_device(part) for part in stepper.batches.gather(step.rows)]
        by_ops = _first_fault(stepper, step, batch)
        store.restore(kept)
        model.forget()
        fault = f"{where}: {_explained(stepper, found, by_ops, math.isfinite(again))}"
        error = DivergenceError(f"{fault}. {_advice(stepper, step, batch, by_ops)}")
        error.fault = fault
        return error, good
    return _unrepeatable("the steps before the last look", math.nan, math.nan), len(steps)


def _unrepeatable(where: str, loss: float, again: float) -> DivergenceError:
    found = (
        f" had the loss {loss:g} at first and {again:g}" if loss == loss or again == again else " were finite"
    )
    return DivergenceError(
        f"a number is not finite, and {where}{found} when taken again, so that the cause is not known: data or "
        "something that a schedule or a layer reads have changed meanwhile, or the library does not repeat its "
        "results. The weights are those from before this step; train without what changes, or see xnn info --probe"
    )


def _fault_of_kernels(stepper: Stepper, loss: float) -> str:
    """What is not finite after a step; "" if everything is."""
    if not math.isfinite(loss):
        return f"the loss ({type(stepper.loss).__name__}) is {loss:g}"
    return "" if stepper.store.is_finite() else _fault_of_update(stepper)


def _fault_of_update(stepper: Stepper) -> str:
    """What is not finite of all that a step may have changed."""
    lib, model, optimizer = stepper.lib, stepper.model, stepper.optimizer
    for name, array in model.named_state():
        changes = not array.frozen or array in stepper.store.moving
        if not finite(lib, array.value) and (changes or has_nan(lib, array.value)):
            return f"the update made {name} not finite"
    for found in _faults_of_state(lib, model, optimizer):
        return f"after the update {found}, so that these weights would never learn again"
    return ""


def _faults_of_state(lib: Backend, model: Sequential, optimizer: Optimizer) -> Iterator[str]:
    """Say which arrays of the optimizer are not finite."""
    for name, parameter in model.named_parameters():
        for kind, array in optimizer.kept_for(parameter):
            if is_real(array) and not finite(lib, array):
                yield f"the {kind} of {name} in {type(optimizer).__name__} {_wrong(lib, array)}"


def _wrong(lib: Backend, array: Any) -> str:
    """Say which numbers of an array are not finite: "has 3 of 15 numbers infinite"."""
    host = lib.to_host(array)
    wrong = host[~np.isfinite(host)]
    kind = "NaN" if np.isnan(wrong).all() else "NaN or infinite" if np.isnan(wrong).any() else "infinite"
    return f"has {wrong.size} of {host.size} numbers {kind}"


def _explained(stepper: Stepper, by_kernels: str, by_ops: str, finite_loss: bool) -> str:
    """The fault in words. The ops see more of a step than the kernels show, if they agree that it failed."""
    if by_ops.startswith("the batch"):
        return by_ops
    early = not by_ops.startswith(("the update", "after the update", "the gradient"))
    if by_ops and early != finite_loss:
        return by_ops
    other = by_ops or "all numbers are finite"
    if stepper.table.name == "ops":
        return f"{by_kernels} in the program of the step, while layer by layer {other}"
    kernels = stepper.table.name
    return f"{by_kernels} by the {kernels} kernels, while by the ops alone {other}; kernels='ops' runs these"


def _advice(stepper: Stepper, step: TakenStep, batch: Sequence[Any], fault: str) -> str:
    """What to do: whether targets or rate may be the cause, and where to look in the data."""
    try:
        rate = stepper.optimizer.rate
    except Exception:  # a schedule that cannot be asked twice
        rate = math.nan
    x, y, *_ = batch
    first, where = "", ""
    if fault.startswith("the batch"):
        rate = math.nan
    else:
        size = far_from_unit(stepper.lib.to_host(y)) if is_real(y) else None
        if size is not None and size > 1.0:
            first = (
                f"the targets are far from unit size (typically {size:.3g} in this step): --scale-target (in Python, "
                "data.standardize(y)) scales them; or "
            )
        if is_real(x):
            where = _largest(stepper, step, stepper.lib.to_host(x))
    smaller = f"try a smaller learning_rate than {rate:g} (--lr), or " if 0.0 < rate < math.inf else ""
    return f"The weights are those from before this step: {first}{smaller}look at the data{where}"


def _largest(stepper: Stepper, step: TakenStep, samples: np.ndarray) -> str:
    """Where the largest number of a batch is, after the layers that scale it; "" if it is of a usual size."""
    with np.errstate(over="ignore", invalid="ignore"):
        seen = as_scaled(stepper.model, samples).reshape(len(step.rows), -1)
    sizes = np.abs(seen).max(axis=1, initial=0.0)
    row = int(sizes.argmax())
    if not sizes[row] > _USUAL:
        return ""
    given = np.abs(samples.reshape(len(step.rows), -1)[row]).max()
    scaled = "" if given == sizes[row] else " after the first layer has scaled it"
    return f", whose largest number in this step is {sizes[row]:.3g}{scaled}, in row {step.rows[row]}"


def _first_fault(stepper: Stepper, step: TakenStep, batch: list[Any]) -> str:
    """The first number that is not finite when a step is taken layer by layer, by the ops; "" if there is none."""
    lib, model, loss, optimizer = stepper.lib, stepper.model, stepper.loss, stepper.optimizer
    x, *targets = batch
    if lib.xp.isdtype(x.dtype, "real floating") and not finite(lib, x):
        wrong = ~np.isfinite(lib.to_host(x)).reshape(len(step.rows), -1).all(axis=1)
        return f"the batch itself holds NaN or infinities, in row {int(step.rows[wrong][0])} of the data"
    model.set_stream(stepper.batches.seed, step.number)
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
    return _fault_of_update(stepper)
