"""Checks the parts that a Trainer is built of: model, loss, optimizer, metrics and callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xnn.callbacks import Callback
from xnn.errors import OptionError
from xnn.layers import Layer, Sequential
from xnn.losses import Lambda, Loss
from xnn.metrics import Metric
from xnn.metrics import get as get_metric
from xnn.optimizers import Optimizer
from xnn.options import shown
from xnn.training.trace import check_reduces

__all__ = ["check_parts"]


def check_parts(trainer: Any) -> None:
    """Raise OptionError for parts that do not go together: when they are given, and before each use of them."""
    given: Any = trainer.loss
    if callable(given) and not isinstance(given, (Loss, type)):
        trainer.loss = Lambda(given)
    model, loss = trainer.model, trainer.loss
    for name, value, kind, example in (
        ("model", model, Sequential, "a Sequential, such as xnn.Sequential(layers.Dense(784, 10))"),
        ("loss", loss, Loss, "a Loss, such as losses.MSE(), or a function of outputs and targets"),
        (
            "optimizer",
            trainer.optimizer,
            Optimizer,
            "an Optimizer, such as optimizers.SGD(learning_rate=0.1)",
        ),
    ):
        if not isinstance(value, kind):
            hint = ": wrap it, as in xnn.Sequential(Net())" if isinstance(value, Layer) else ""
            raise OptionError(f"Trainer needs {example}, as {name}, got {shown(value)}{hint}")
    trainer.optimizer.check_begun()
    check_reduces(loss)
    if loss.already_includes is not None and model.last_op is loss.already_includes:
        raise OptionError(
            f"the model ends in {model.last_op.name}, which {type(loss).__name__} computes itself from logits: "
            "remove that layer"
        )
    trainer.metrics = _metrics(loss, model, trainer.metrics)
    trainer.callbacks = _callbacks(trainer.callbacks)


def _metrics(loss: Loss, model: Sequential, metrics: Any) -> list[Metric]:
    """Turn names, functions and objects into Metric objects. Raises OptionError if two have the same name."""
    chosen = loss.usual_metrics if metrics is None else metrics
    given = chosen if isinstance(chosen, Iterable) and not isinstance(chosen, str) else (chosen,)
    found = [get_metric(m, loss.binary, model.threshold) for m in given]
    names = [metric.name for metric in found]
    if len({*names, "loss", "epoch"}) < len(names) + 2:
        raise OptionError(
            f"metrics must have different names, got {', '.join(names)}: give an object name=..., or define "
            "the function with def"
        )
    if taken := [name for name in names if name.startswith("val_")]:
        raise OptionError(
            f"the metric's name {taken[0]!r} begins with val_, as results on validation data do: rename it"
        )
    return found


def _callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks as a list. Raises OptionError for anything else."""
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        if not isinstance(callbacks, (list, tuple)) or not isinstance(callback, Callback):
            raise OptionError(
                f"callbacks must be a list of xnn.callbacks.Callback objects, got {shown(callback)}"
            )
    return list(callbacks)
