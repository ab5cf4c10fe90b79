"""Reads a checkpoint and puts everything back: before the fit the model and what trains it, then the fit itself.

`checkpoint.py` says what a checkpoint holds. All is checked before anything changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xnn.callbacks import checkpoints_in
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.files import notice
from xnn.layers.safetensors_file import CHECKPOINT, read_signed
from xnn.options import shown
from xnn.training.checkpoint import (
    FORMAT,
    arrays_of,
    attributes_of_parts,
    callbacks_of,
    hooks,
    identity,
    parts_of,
)
from xnn.training.state_tree import Unpacker, difference

__all__ = ["Checkpoint", "check_fit", "go_on", "newest", "read", "restore", "restore_history"]

#: What the plan of a run says beside the things that its bits follow from.
_REASONS = {"threads_because", "persistent_because", "data"}
#: The options of `xnn train` that add callbacks.
_OPTIONS = {
    "JsonLines": "--log",
    "TensorBoard": "--tensorboard",
    "Recorder": "--record",
    "EarlyStopping": "--patience",
}
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: the file's path, its description, and its arrays by name."""

    path: Path
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint. Raises DataNotFoundError, or CorruptFileError for a damaged file, or another one."""
    path, texts, tensors, signed = read_signed(path)
    if CHECKPOINT not in texts:
        model = "a model that model.save wrote" if "xnn" in texts else "not a checkpoint of xnn"
        raise CorruptFileError(f"{path} is {model}: Trainer.save and callbacks.Checkpoint write checkpoints")
    try:
        about = json.loads(texts[CHECKPOINT])
        kind = about["format"]
    except (*_WRONG,) as error:
        raise CorruptFileError(
            f"{path} has a description that no checkpoint has: use an older one"
        ) from error
    if kind != FORMAT:
        raise CorruptFileError(f"{path} has the format {shown(kind)}, this xnn reads {FORMAT}: update xnn")
    if not signed:
        raise CorruptFileError(f"{path} has no digest of the whole file, so it is damaged: use an older one")
    return Checkpoint(path, about, tensors)


def newest(
    trainer: Any, path: Path, put_back: Callable[[Any, Checkpoint], None] | None = None
) -> Checkpoint | None:
    """Restore the checkpoint in a file, or the newest undamaged one in a folder.

    put_back: restores one. Default `restore`.

    Returns it, or None for a folder that has none. A checkpoint that is damaged is reported, and the one before it is
    taken. Raises CorruptFileError if all are damaged.
    """
    put_back = put_back or restore
    if path.suffix == ".safetensors" and not path.is_dir():
        put_back(trainer, checkpoint := read(path))
        return checkpoint
    found = checkpoints_in(path)
    for number, name in enumerate(found):
        try:
            put_back(trainer, checkpoint := read(name))
        except (CorruptFileError, DataNotFoundError) as error:
            before = f"{found[number + 1].name} is used" if name != found[-1] else "there is none before it"
            if trainer.rank == 0:
                notice(f"xnn: {error}; {before}")
        else:
            return checkpoint
    if found:
        raise CorruptFileError(
            f"no checkpoint in {path} can be read: remove them to begin afresh, or resume from another folder"
        )
    return None


def restore(trainer: Any, checkpoint: Checkpoint) -> None:
    """Put everything back but the fit and the callbacks' state, which `go_on` puts back. All of it or nothing.

    Raises OptionError if model, loss, optimizer, metrics or callbacks were built differently, CorruptFileError for a
    description that no xnn wrote.
    """
    about, tensors = checkpoint.about, checkpoint.tensors
    try:
        now, then = trainer.built[0], about["built"]
        kinds = [_classes(all_, "layers.") for all_ in (now, then)]
        if len(kinds[0]) != len(kinds[1]):
            here, there = map(", ".join, kinds)
            raise _built_otherwise(checkpoint, f"the layers are {here}, and {there} in the checkpoint")
        kinds = [_classes(all_, "callbacks.") for all_ in (now, then)]
        if kinds[0] != kinds[1]:
            here, there = (", ".join(names) or "none" for names in kinds)
            options = [o for kind, o in _OPTIONS.items() if kinds[0].count(kind) != kinds[1].count(kind)]
            of_xnn_train = f" (of xnn train: {', '.join(options)})" if options else ""
            raise _built_otherwise(
                checkpoint, f"the callbacks are {here}, and {there} in the checkpoint{of_xnn_train}"
            )
        for name in dict.fromkeys((*then, *now)):
            if name not in then or name not in now:
                there = "only in the trainer" if name in now else "only in the checkpoint"
                raise _built_otherwise(checkpoint, f"{name} is {there}")
            if found := difference(then[name], now[name], name):
                raise _built_otherwise(checkpoint, found)
        unpacker = Unpacker(parts_of(trainer), tensors, trainer.model.backend)
        for name, (thing, attributes) in attributes_of_parts(trainer).items():
            unpacker.on_device = name == "optimizer"
            unpacker.attributes(thing, about["state"][name], attributes, name)
        unpacker.on_device = False
        named = arrays_of(trainer)
        frozen = set(about["frozen"])
        for name, array in named.items():
            value = tensors[name]
            if value.shape != array.shape or value.dtype != array.dtype:
                raise ValueError(f"{name} is {value.dtype}{list(value.shape)}")
        epoch, step = about["epoch"], about["step"]
        counts = all(type(number) is int and 0 <= number < 2**63 for number in (epoch, step))
        if not counts or not frozen <= named.keys():
            raise ValueError(
                "epoch and step must be integers from 0 to 2^63 - 1, and frozen parameters be there"
            )
        states = [] if about["fit"] is not None else _callback_states(trainer, checkpoint, unpacker)
    except OptionError:
        raise
    except _WRONG as error:
        raise _not_written(checkpoint, error) from error
    things = [thing for thing, _ in attributes_of_parts(trainer).values() if thing is not trainer.optimizer]
    layers = list(map(id, trainer.model.all_layers()))
    before, attributes_before = trainer.optimizer.snapshot(), [dict(vars(thing)) for thing in things]
    try:
        unpacker.commit()
        now_there = arrays_of(trainer)
        if list(map(id, now_there.values())) != list(map(id, named.values())):
            raise ValueError(f"the model has the parameters {', '.join(now_there)[:200]}")
        if list(map(id, trainer.model.all_layers())) != layers:
            raise ValueError("the model has other layers")
        _check_optimizer(trainer.optimizer)
    except _WRONG as error:  # an attribute got or refused a value that no run had
        unpacker.undo()
        trainer.optimizer.restore(before)
        for thing, attributes in zip(things, attributes_before, strict=True):
            vars(thing).update(attributes)
        raise _not_written(checkpoint, error) from error
    for name, array in named.items():
        array.value = trainer.model.backend.to_device(tensors[name])
        array.grad = None
        array.frozen = name in frozen
    trainer.epoch, trainer.step = epoch, step
    if states:
        for callback in callbacks_of(trainer):
            callback.model = trainer.model  # as fit does
        _give_back(trainer, checkpoint, states)


def _classes(built: Mapping[str, Any], begins: str) -> list[str]:
    return [part["class"] for name, part in built.items() if name.startswith(begins)]


def _check_optimizer(optimizer: Any) -> None:
    """Raise ValueError for states that the optimizer's rule cannot go on with."""
    for parameter, state in optimizer.state.items():
        if not optimizer.steps_itself:
            shapes = {tuple(array.shape) for array in state.arrays}
            numbers = [type(number) in (int, float) for number in state.numbers]
            if shapes - {parameter.shape} or len(numbers) != len(optimizer.first) or not all(numbers):
                raise ValueError(f"the optimizer's state of {parameter.name} is {shown(state)}")


def _not_written(checkpoint: Checkpoint, error: Exception) -> CorruptFileError:
    return CorruptFileError(f"{checkpoint.path} is no checkpoint that xnn wrote: {shown(error)}")


def _built_otherwise(checkpoint: Checkpoint, found: str) -> OptionError:
    return OptionError(
        f"{checkpoint.path} is a checkpoint of another training: {found}. Build model, loss, optimizer and callbacks "
        "as that run did, or give xnn train the same options; other options may be assigned after resume"
    )


def check_fit(
    trainer: Any, checkpoint: Checkpoint, fit: Any, plan: Mapping[str, Any], any_plan: bool
) -> None:
    """Raise OptionError unless a fit is the one that the checkpoint interrupted: its options, data and plan."""
    try:
        _check_fit(checkpoint, fit, plan, any_plan)
    except OptionError:
        raise
    except _WRONG as error:
        raise _not_written(checkpoint, error) from error


def _check_fit(checkpoint: Checkpoint, fit: Any, plan: Mapping[str, Any], any_plan: bool) -> None:
    then = checkpoint.about["fit"]
    for name in ("seed", "batch_size", "shuffle"):
        if then[name] != (now := getattr(fit.batches, name)):
            raise OptionError(
                f"fit got {name}={now!r}, and the fit that {checkpoint.path} interrupted had {then[name]!r}: give "
                "fit the same arguments to go on"
            )
    for key, role, arrays in (
        ("data", "training", fit.batches.arrays),
        ("validation", "validation", fit.held_out or ()),
    ):
        if difference(then[key], now := identity(arrays), key):
            shapes = [[tuple(array["shape"]) for array in known] for known in (now, then[key])]
            raise OptionError(
                f"the {role} data are not those of {checkpoint.path}: the shapes of the arrays are {shapes[0]}, "
                f"in the checkpoint {shapes[1]}"
                + (
                    ""
                    if shapes[0] != shapes[1]
                    else ", with other numbers in them, of another dtype, or in other windows"
                )
                + "; give fit the same data to go on"
            )
    before = then["plan"]
    if before["numerics"] == plan["numerics"] == "exact" or any_plan:
        return
    names = [name for name in dict.fromkeys((*before, *plan)) if name not in _REASONS]
    differs = [
        f"{n} {shown(plan.get(n))}, there {shown(before.get(n))}"
        for n in names
        if plan.get(n) != before.get(n)
    ]
    if differs:
        raise OptionError(
            f"in fast numerics the bits follow from the execution plan, which is not that of {checkpoint.path}: "
            f"{'; '.join(differs)}. Run it in the same way, or allow_different_plan=True (--allow-different-plan) "
            "goes on with other bits"
        )


def go_on(fit: Any, checkpoint: Checkpoint) -> None:
    """Put the state of a fit and of the callbacks back, after `on_fit_start` was called."""
    trainer, then = fit.trainer, checkpoint.about["fit"]
    try:
        unpacker = Unpacker(parts_of(trainer), checkpoint.tensors, trainer.model.backend)
        unpacker.unpack(then["loss"], fit.loss, "fit.loss")
        unpacker.unpack(then["counts"], fit.counts, "fit.counts")
        more = unpacker.unpack(then["more"], None, "fit.more")
        states = _callback_states(trainer, checkpoint, unpacker)
        fit.batch, fit.since_check = int(then["batch"]), int(then["since_check"])
        fit.goes_on = fit.batch > 0
        fit.seen = trainer.step
        fit.restore(more)
    except OptionError:
        raise
    except _WRONG as error:
        raise _not_written(checkpoint, error) from error
    unpacker.commit()
    _give_back(trainer, checkpoint, states)


def restore_history(trainer: Any, checkpoint: Checkpoint) -> None:
    """Give the history of a fit that goes on the numbers of the checkpoint's."""
    try:
        unpacker = Unpacker(parts_of(trainer), checkpoint.tensors, trainer.model.backend)
        trainer.history.restore(unpacker.unpack(checkpoint.about["fit"]["history"], None, "fit.history"))
    except _WRONG as error:
        raise _not_written(checkpoint, error) from error


def _callback_states(trainer: Any, checkpoint: Checkpoint, unpacker: Unpacker) -> list[Any]:
    """What each callback's `state` returned."""
    pairs = zip(callbacks_of(trainer), checkpoint.about["callbacks"], strict=True)
    return [
        None
        if trainer.rank and callback.first_rank_only
        else unpacker.unpack(packed, hooks(callback)[0](callback), f"callbacks.{n}.state")
        for n, (callback, packed) in enumerate(pairs)
    ]


def _give_back(trainer: Any, checkpoint: Checkpoint, states: list[Any]) -> None:
    for callback, state in zip(callbacks_of(trainer), states, strict=True):
        if state is None or (trainer.rank and callback.first_rank_only):
            continue
        try:
            hooks(callback)[1](callback, state)
        except _WRONG as error:
            if not type(callback).__module__.startswith("xnn."):
                raise
            raise _not_written(checkpoint, error) from error
