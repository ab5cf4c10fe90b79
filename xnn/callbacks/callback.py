"""Callback, the base class of all callbacks, and checks of their methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from inspect import getattr_static
from pathlib import Path
from typing import Any

from xnn.errors import OptionError
from xnn.graph.habits import Habitual, hint_for
from xnn.history import History
from xnn.layers import Sequential
from xnn.options import argument_names, attributes_of, explained_class, shown, takes, written

__all__ = ["Callback", "call_back", "sees_steps"]


class Callback(Habitual):
    """Methods that `Trainer.fit` calls while it trains. Derive a class from it and override some of them.

    model: the model in training; `fit` sets it before on_fit_start.
    needs_gradients: whether a method reads the gradients of parameters. Default False: plain SGD then does not keep
        them, which is faster.

    To end the run after the current epoch, set `history.stopped` to the reason, a string.

        >>> import numpy as np
        >>> from xnn import Sequential, Trainer, callbacks, layers, losses, optimizers
        >>> class Patience(callbacks.Callback):
        ...     def on_epoch_end(self, history, entry):
        ...         if entry["loss"] < 0.01:
        ...             history.stopped = "the loss is small enough"
        >>> x = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(64, 1)
        >>> model = Sequential(layers.Dense(1, 1), seed=0)
        >>> trainer = Trainer(model, losses.MSE(), optimizers.SGD(0.2), callbacks=[Patience()])
        >>> history = trainer.fit((x, 2.0 * x), epochs=100, progress=False)
        >>> history.stopped, len(history.epochs) < 100
        ('the loss is small enough', True)
    """

    _habits = "callback"
    model: Sequential
    needs_gradients = False
    #: Whether it changes nothing in a training, and keeps none of its arrays, so that a checkpoint goes on with or
    #: without it.
    bystander = False
    #: Whether all it does is to write or show something. Of processes that train together, only rank 0 calls it.
    first_rank_only = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _check_hooks(cls)
        if "__init__" in vars(cls) and cls.__module__.startswith("xnn.callbacks."):
            explained_class(cls)

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Called before the first step; history.plan says how the run is executed."""

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        """Called after every training step, with its loss; parameters and gradients are those after the step.

        epoch: the number of epochs that are finished, 0 in the first one.
        step: the step in this epoch, counted from 1.
        Overriding it makes training wait for the device, and look for NaN and infinity, at every step. What it
        assigns, and what it writes to arrays, counts from the next step.
        """

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        """Called every 100 steps and at the end of each epoch, after a check that all numbers are finite.

        epoch, step: as in on_step. loss, metrics: means over this epoch so far.
        """

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """Called after an epoch and its validation; `entry` is the last of history.epochs, and may be added to."""

    def on_lower_rate(self, history: History, entry: dict[str, Any]) -> None:
        """Called when a training that diverged went back to a checkpoint; `entry` is of history.lowered."""

    def on_fit_end(self, history: History) -> None:
        """Called after the last step, also when Ctrl-C or an error ended the run."""

    def disk_use(self, epochs: int, steps_per_epoch: int) -> Mapping[Path, int]:
        """The files that it will write, each with about its bytes at the end. Called before the first step.

        A line is printed if their disk has less room. Default: none.
        """
        return {}

    def state(self) -> Any:
        """What a checkpoint keeps of the callback; by default all its attributes but the model.

        Override it together with `restore` to keep less, or what a checkpoint cannot hold. Return numbers, texts,
        arrays, and lists and dicts of them, or None if there is nothing to keep.
        """
        return {name: value for name, value in vars(self).items() if name != "model"}

    def restore(self, state: Any) -> None:
        """Take in what `state` returned. A fit that goes on from a checkpoint calls it after on_fit_start.

        By default they are attributes.
        """
        vars(self).update(state)

    def __repr__(self) -> str:
        return written(self, attributes_of(self))


#: The hooks, with the arguments that fit gives them.
_HOOKS = {name: argument_names(hook) for name, hook in vars(Callback).items() if name.startswith("on_")}


def _check_hooks(kind: type[Callback]) -> None:
    """Raise OptionError for a hook that fit would not call, or that takes other arguments than fit gives it."""
    for name in dir(kind):
        method = getattr(kind, name)
        if not name.startswith("on_") or not callable(method):
            continue
        bound = [] if isinstance(getattr_static(kind, name), (staticmethod, classmethod)) else [None]
        if name not in _HOOKS:
            near = [f"xnn calls {hook}" for hook in get_close_matches(name, _HOOKS, 1, 0.8)]
            if instead := hint_for("callback", name) or "".join(near):
                raise OptionError(f"{kind.__name__}.{name} would never be called: {instead}")
        elif not takes(method, *bound, *_HOOKS[name]):
            raise OptionError(
                f"{kind.__name__}.{name} must take the arguments that fit gives it: write def {name}(self, "
                f"{', '.join(_HOOKS[name])})"
            )


def sees_steps(callback: Callback) -> bool:
    """Whether a callback has an `on_step`."""
    return type(callback).on_step is not Callback.on_step


def call_back(method: Callable[..., Any], *arguments: Any) -> None:
    """Call a method of a callback.

    Raises OptionError if it returns a value: nothing would be done with it.
    """
    returned = method(*arguments)
    if returned is not None:
        raise OptionError(
            f"{getattr(method, '__qualname__', method)} returned {shown(returned)}, and methods of callbacks "
            "return nothing: to end the training, set history.stopped to the reason, a string"
        )
