"""What a checkpoint holds: everything that a training needs to go on as if it had never stopped.

It is a .safetensors file. Its tensors are the model's arrays (`model.0.weight`), the optimizer's and those of
callbacks. One entry of its metadata, `xnn_checkpoint`, is JSON:

    format, xnn     the format of this description, and the version of xnn
    built           the model, loss, optimizer, metrics and callbacks as the first fit found them
    state           the attributes of all of them now, as `state_tree.py` packs them
    fit             of a fit that goes on: where it is, its options, history, plan, and the identity of its data
    callbacks       what each callback's `state` returned

A digest covers every byte of the file (`layers/safetensors_file.py`). No pickle is written or read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from xnn import __version__
from xnn.callbacks import Callback, checkpoints_in
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.files import notice, write_atomically
from xnn.layers.safetensors_file import CHECKPOINT, read_signed, signed_bytes
from xnn.options import attributes_of, shown, takes
from xnn.training.state_tree import Packer, Unpacker, difference, sample_sha256

__all__ = [
    "Checkpoint",
    "built",
    "check_fit",
    "checkpoint_bytes",
    "go_on",
    "history_state",
    "read",
    "restore",
    "save",
]

FORMAT = 1
#: Attributes that a forward pass sets, or that name the arrays and layers which are saved by themselves.
_PASSING = {"_tape", "_there", "_at", "_pass", "_parameters", "_others", "_given", "_without_buffers"}
#: Attributes that say what a layer, loss or metric was used for, and not how it was built.
_USED = {"numerics", "_recognized", "_in_a_graph", "_state", "_totals", "_samples"}
#: What an optimizer remembers of its steps. All else was given when it was built.
_REMEMBERED = {"state", "averages", "steps", "_rate", "_decays", "_averaged"}
#: What the plan of a run says beside the things that its bits follow from.
_REASONS = {"threads_because", "persistent_because", "data"}
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: the file's path, its description, and its arrays by name."""

    path: Path
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]


def _parts(trainer: Any) -> dict[str, Any]:
    """The parts of a training by the names that stand for them in a file."""
    parts: dict[str, Any] = {"trainer": trainer, "loss": trainer.loss, "optimizer": trainer.optimizer}
    parts |= {f"layers.{n}": layer for n, layer in enumerate(_layers(trainer))}
    parts |= {f"arrays.{name}": array for name, array in trainer.model.named_state()}
    parts |= {f"metrics.{n}": metric for n, metric in enumerate(trainer.metrics)}
    parts |= {f"callbacks.{n}": callback for n, callback in enumerate(_callbacks(trainer))}
    return parts if trainer.history is None else {**parts, "history": trainer.history}


def _callbacks(trainer: Any) -> list[Any]:
    """The callbacks that a checkpoint names."""
    return [callback for callback in trainer.callbacks if not callback.bystander]


def _layers(trainer: Any) -> list[Any]:
    return [*dict.fromkeys(trainer.model.all_layers())]


def _attributes(trainer: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each object whose attributes are saved, and its attributes, by the object's name."""
    things = {
        name: part for name, part in _parts(trainer).items() if name.startswith(("layers.", "metrics."))
    }
    things |= {"loss": trainer.loss, "optimizer": trainer.optimizer}
    return {
        name: (thing, {key: value for key, value in vars(thing).items() if key not in _PASSING})
        for name, thing in things.items()
    }


def built(trainer: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """How model, loss, optimizer, metrics and callbacks were built, as JSON; and the classes of objects in them."""
    packer = Packer(_parts(trainer), describes=True)
    found: dict[str, Any] = {}
    for name, (thing, attributes) in _attributes(trainer).items():
        given = {
            key: value
            for key, value in attributes.items()
            if key not in (_REMEMBERED if name == "optimizer" else _USED)
        }
        found[name] = {"class": type(thing).__qualname__, **packer.named(given, name)}
        packer.named({key: value for key, value in attributes.items() if key not in given}, name)
    for n, callback in enumerate(_callbacks(trainer)):
        given = {"class": type(callback).__qualname__}
        if (
            _hook(callback, "state") is Callback.state
        ):  # which keeps options, so that other ones would be lost
            given |= attributes_of(callback)
            packer.named(Callback.state(callback), f"callbacks.{n}.state")
        found[f"callbacks.{n}"] = packer.named(given, f"callbacks.{n}")
    for name, array in trainer.model.named_state():
        found[f"model.{name}"] = f"{type(array).__name__} {array.dtype}{list(array.shape)}"
    return found, packer.objects


def _hook(callback: Any, name: str) -> Any:
    """A method of a callback, or Callback's own where the class has something else of that name."""
    hook = getattr_static(type(callback), name)
    return hook if isinstance(hook, FunctionType) else getattr(Callback, name)


def hooks(callback: Any) -> tuple[Any, Any]:
    """The methods `state` and `restore` of a callback.

    Raises OptionError for methods that cannot be called as a checkpoint calls them.
    """
    found = []
    for name, arguments in (("state", (None,)), ("restore", (None, None))):
        hook = _hook(callback, name)
        if not takes(hook, *arguments):
            text = "state(self)" if name == "state" else "restore(self, state)"
            raise OptionError(
                f"{type(callback).__name__}.{name} is what a checkpoint calls to keep and restore a callback: "
                f"write def {text}, or give the method another name"
            )
        found.append(hook)
    return found[0], found[1]


def identity(batches: Any) -> list[dict[str, Any]]:
    """What tells the data of a fit from others: the shape and dtype of each array, and the digest of a sample."""
    return [
        {
            "shape": list(map(int, array.shape)),
            "dtype": str(array.dtype).rpartition(".")[2],
            "sha256": sample_sha256(array),
        }
        for array in batches.arrays
    ]


def checkpoint_bytes(trainer: Any, fit: Any = None) -> bytes:
    """The file of a checkpoint. fit: the Fit that is going on; None between two fits.

    Raises OptionError for something that a checkpoint cannot hold.
    """
    lib, model = trainer.model.backend, trainer.model
    described, objects = trainer.built
    packer = Packer(_parts(trainer))
    packer.tensors = {f"model.{name}": array.array for name, array in model.named_state()}
    state: dict[str, Any] = {
        name: packer.named(attributes, name) for name, (_, attributes) in _attributes(trainer).items()
    }
    about = {
        "format": FORMAT,
        "xnn": __version__,
        "built": described,
        "state": state,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "frozen": [name for name, array in model.named_state() if array.frozen],
        "fit": None if fit is None else _of_fit(fit, packer),
    }
    about["callbacks"] = [
        packer.pack(hooks(callback)[0](callback), f"callbacks.{n}.state")
        for n, callback in enumerate(_callbacks(trainer))
    ]
    for place, kind in packer.objects.items():
        if not place.startswith("fit.") and objects.get(place) != kind:
            raise OptionError(
                f"{place} is a {kind} that came during the training, and a checkpoint cannot make it again: keep "
                "numbers, texts, arrays and lists or dicts of them there"
            )
    there = {name: array for name, array in packer.tensors.items() if not isinstance(array, np.ndarray)}
    there = dict(zip(there, lib.to_host_all(there.values()), strict=True))
    arrays = {name: np.asarray(there.get(name, array)) for name, array in packer.tensors.items()}
    return signed_bytes(arrays, {CHECKPOINT: json.dumps(about)})


def save(trainer: Any, path: str | os.PathLike[str], fit: Any = None) -> None:
    """Write a checkpoint, whole or not at all. Raises as `checkpoint_bytes` and `write_atomically` do."""
    write_atomically(path, checkpoint_bytes(trainer, fit), (".safetensors",))


def _of_fit(fit: Any, packer: Packer) -> dict[str, Any]:
    """Where a fit is, how it runs, and what it has done."""
    batches, history = fit.batches, fit.history
    return {
        "seed": batches.seed,
        "batch_size": batches.batch_size,
        "shuffle": batches.shuffle,
        "batch": fit.batch,
        "since_check": fit.since_check,
        "plan": history.plan,
        "data": identity(batches),
        "loss": packer.pack(fit.loss, "fit.loss"),
        "counts": packer.pack(fit.counts, "fit.counts"),
        "history": packer.pack(history.state(), "fit.history"),
        "more": packer.pack(fit.state(), "fit.more"),
    }


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


def newest(trainer: Any, path: Path) -> Checkpoint | None:
    """Put back a checkpoint (`restore`): that of a file, or the newest one of a folder that is whole.

    Returns it, or None for a folder that has none. A checkpoint that is damaged is reported, and the one before it is
    taken. Raises CorruptFileError if all are damaged.
    """
    if path.suffix == ".safetensors" and not path.is_dir():
        restore(trainer, checkpoint := read(path))
        return checkpoint
    found = checkpoints_in(path)
    for number, name in enumerate(found):
        try:
            restore(trainer, checkpoint := read(name))
        except (CorruptFileError, DataNotFoundError) as error:
            before = f"{found[number + 1].name} is used" if name != found[-1] else "there is none before it"
            notice(f"xnn: {error}; {before}")
        else:
            return checkpoint
    if found:
        raise CorruptFileError(f"no checkpoint in {path} can be read: remove them to begin afresh")
    return None


def restore(trainer: Any, checkpoint: Checkpoint) -> None:
    """Put everything back but the fit and the callbacks' state, which `go_on` puts back. All of it or nothing.

    Raises OptionError if model, loss, optimizer, metrics or callbacks were built differently, CorruptFileError for a
    description that no xnn wrote.
    """
    about, tensors = checkpoint.about, checkpoint.tensors
    try:
        now, then = trainer.built[0], about["built"]
        kinds = [
            [part["class"] for name, part in all_.items() if name.startswith("callbacks.")]
            for all_ in (now, then)
        ]
        if kinds[0] != kinds[1]:
            here, there = (", ".join(names) or "none" for names in kinds)
            raise _built_otherwise(checkpoint, f"the callbacks are {here}, and {there} in the checkpoint")
        for name in dict.fromkeys((*then, *now)):
            if name not in then or name not in now:
                there = "only in the trainer" if name in now else "only in the checkpoint"
                raise _built_otherwise(checkpoint, f"{name} is {there}")
            if found := difference(then[name], now[name], name):
                raise _built_otherwise(checkpoint, found)
        unpacker = Unpacker(_parts(trainer), tensors, trainer.model.backend)
        for name, (thing, attributes) in _attributes(trainer).items():
            unpacker.attributes(thing, about["state"][name], attributes, name)
        named = dict(trainer.model.named_state())
        frozen = set(about["frozen"])
        for name, array in named.items():
            value = tensors[f"model.{name}"]
            if value.shape != array.shape or value.dtype != array.dtype:
                raise ValueError(f"model.{name} is {value.dtype}{list(value.shape)}")
        epoch, step = about["epoch"], about["step"]
        if type(epoch) is not int or type(step) is not int or not frozen <= named.keys():
            raise ValueError("epoch and step must be integers, and frozen parameters must be there")
        states = [] if about["fit"] is not None else _callback_states(trainer, checkpoint, unpacker)
    except OptionError:
        raise
    except _WRONG as error:
        raise _not_written(checkpoint, error) from error
    for name, array in named.items():
        array.value = trainer.model.backend.to_device(tensors[f"model.{name}"])
        array.grad = None
        array.frozen = name in frozen
    unpacker.commit()
    trainer.epoch, trainer.step = epoch, step
    if states:
        for callback in _callbacks(trainer):
            callback.model = trainer.model  # as fit does
        _give_back(trainer, states)


def _not_written(checkpoint: Checkpoint, error: Exception) -> CorruptFileError:
    return CorruptFileError(f"{checkpoint.path} is no checkpoint that xnn wrote: {shown(error)}")


def _built_otherwise(checkpoint: Checkpoint, found: str) -> OptionError:
    return OptionError(
        f"{checkpoint.path} is a checkpoint of another training: {found}. Build model, loss, optimizer and callbacks "
        "as that run did; options may be assigned after resume"
    )


def check_fit(
    trainer: Any, checkpoint: Checkpoint, batches: Any, plan: Mapping[str, Any], any_plan: bool
) -> None:
    """Raise OptionError unless a fit is the one that the checkpoint interrupted: its options, data and plan."""
    then = checkpoint.about["fit"]
    for name in ("seed", "batch_size", "shuffle"):
        if then[name] != (now := getattr(batches, name)):
            raise OptionError(
                f"fit got {name}={now!r}, and the fit that {checkpoint.path} interrupted had {then[name]!r}: give "
                "fit the same arguments to go on"
            )
    if difference(then["data"], data := identity(batches), "data"):
        shapes = [[tuple(array["shape"]) for array in arrays] for arrays in (data, then["data"])]
        raise OptionError(
            f"the training data are not those of {checkpoint.path}: arrays of {shapes[0]}, there {shapes[1]}"
            + ("" if shapes[0] != shapes[1] else ", with other numbers in them")
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
            f"{'; '.join(differs)}. Run it in the same way, or allow_different_plan=True goes on with other bits"
        )


def go_on(fit: Any, checkpoint: Checkpoint) -> None:
    """Put the state of a fit and of the callbacks back, after `on_fit_start` was called."""
    trainer, then = fit.trainer, checkpoint.about["fit"]
    try:
        unpacker = Unpacker(_parts(trainer), checkpoint.tensors, trainer.model.backend)
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
    _give_back(trainer, states)


def history_state(checkpoint: Checkpoint, trainer: Any) -> Any:
    """What `History.restore` takes."""
    unpacker = Unpacker(_parts(trainer), checkpoint.tensors, trainer.model.backend)
    return unpacker.unpack(checkpoint.about["fit"]["history"], None, "fit.history")


def _callback_states(trainer: Any, checkpoint: Checkpoint, unpacker: Unpacker) -> list[Any]:
    """What each callback's `state` returned."""
    pairs = zip(_callbacks(trainer), checkpoint.about["callbacks"], strict=True)
    return [
        unpacker.unpack(packed, hooks(callback)[0](callback), f"callbacks.{n}.state")
        for n, (callback, packed) in enumerate(pairs)
    ]


def _give_back(trainer: Any, states: list[Any]) -> None:
    for callback, state in zip(_callbacks(trainer), states, strict=True):
        if state is not None:
            hooks(callback)[1](callback, state)
