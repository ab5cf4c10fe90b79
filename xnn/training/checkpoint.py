"""What a checkpoint holds: everything that a training needs to go on as if it had never stopped.

It is a .safetensors file. Its tensors are the model's arrays (`model.0.weight`), the optimizer's and those of
callbacks. One entry of its metadata, `xnn_checkpoint`, is JSON:

    format, xnn     the format of this description, and the version of xnn
    about           what callbacks.Checkpoint was given; for `xnn train` the data set, the options and the layers
    built           the model, loss, optimizer, metrics and callbacks as the first fit found them
    state           the attributes of all of them now, as `state_tree.py` packs them
    fit             of a fit that goes on: where it is, its options, history, plan, and the identities of its training
                    and validation data
    callbacks       what each callback's `state` returned

A digest covers every byte of the file (`layers/safetensors_file.py`). No pickle is written or read.
"""

from __future__ import annotations

import json
import os
from inspect import getattr_static
from types import FunctionType
from typing import Any

import numpy as np

from xnn import __version__
from xnn.callbacks import Callback
from xnn.data.stream import StreamRows
from xnn.errors import OptionError
from xnn.files import write_atomically
from xnn.layers import Parameter
from xnn.layers.safetensors_file import CHECKPOINT, signed_bytes
from xnn.layers.state import Stateful
from xnn.options import attributes_of, shown, takes
from xnn.training.state_tree import Packer, sample_sha256

__all__ = [
    "FORMAT", "arrays_of", "attributes_of_parts", "built", "callbacks_of", "checkpoint_bytes", "described", "hooks",
    "identity", "parts_of", "save",
]  # fmt: skip

FORMAT = 1
#: The attributes of parts that do not say how they were built, and whether a checkpoint has them. It has neither
#: those of a forward pass, nor those that name arrays and layers: these are saved by themselves.
_NOT_BUILT = {
    **dict.fromkeys(("_tape", "_there", "_at", "_pass", "_parameters", "_others", "_given"), False),
    "_without_buffers": False,
    **dict.fromkeys(("numerics", "_recognized", "_in_a_graph", "_state", "_totals", "_samples"), True),
    **{f"optimizer.{name}": True for name in ("state", "averages", "steps", "rate_factor")},
    **{f"optimizer.{name}": True for name in ("_rate", "_decays", "_averaged")},
}


def parts_of(trainer: Any) -> dict[str, Any]:
    """Return the objects of a training whose state a checkpoint holds, by their names in the checkpoint file."""
    parts: dict[str, Any] = {"trainer": trainer, "loss": trainer.loss, "optimizer": trainer.optimizer}
    parts |= {f"layers.{n}": layer for n, layer in enumerate(_layers(trainer))}
    parts |= arrays_of(trainer)
    parts |= {f"metrics.{n}": metric for n, metric in enumerate(trainer.metrics)}
    parts |= {f"callbacks.{n}": callback for n, callback in enumerate(callbacks_of(trainer))}
    return parts if trainer.history is None else {**parts, "history": trainer.history}


def callbacks_of(trainer: Any) -> list[Any]:
    """The callbacks that a checkpoint names."""
    return [callback for callback in trainer.callbacks if not callback.bystander]


def _models(trainer: Any) -> dict[str, Stateful]:
    """The model, and other layers that the loss or a callback has as attributes, such as a target network."""
    found: dict[str, Stateful] = {"model": trainer.model}
    owners = {"loss": trainer.loss} | {f"callbacks.{n}": c for n, c in enumerate(callbacks_of(trainer))}
    for owner, thing in owners.items():
        found |= {
            f"{owner}.{key}": value for key, value in vars(thing).items() if isinstance(value, Stateful)
        }
    return found


def _layers(trainer: Any) -> list[Any]:
    return [*dict.fromkeys(layer for model in _models(trainer).values() for layer in model.all_layers())]


def arrays_of(trainer: Any) -> dict[str, Parameter]:
    """The parameters and buffers that are saved, by their names in a file, such as model.0.weight."""
    found: dict[int, tuple[str, Parameter]] = {}
    for owner, model in _models(trainer).items():
        for name, array in model.named_state():
            found.setdefault(id(array), (f"{owner}.{name}", array))
    return dict(found.values())


def attributes_of_parts(trainer: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each object whose attributes are saved, and its attributes, by the object's name."""
    things = {
        name: part for name, part in parts_of(trainer).items() if name.startswith(("layers.", "metrics."))
    }
    things |= {"loss": trainer.loss, "optimizer": trainer.optimizer}
    return {
        name: (thing, {key: value for key, value in vars(thing).items() if _NOT_BUILT.get(key, True)})
        for name, thing in things.items()
    }


def built(trainer: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """How model, loss, optimizer, metrics and callbacks were built, as JSON; and the classes of objects in them."""
    packer = Packer(parts_of(trainer), describes=True)
    found: dict[str, Any] = {}
    for name, (thing, attributes) in attributes_of_parts(trainer).items():
        given = {
            key: value
            for key, value in attributes.items()
            if key not in _NOT_BUILT and f"{name}.{key}" not in _NOT_BUILT
        }
        found[name] = {"class": type(thing).__qualname__, **packer.named(given, name)}
        packer.named({key: value for key, value in attributes.items() if key not in given}, name)
    for n, callback in enumerate(callbacks_of(trainer)):
        given = {"class": type(callback).__qualname__}
        if (
            _hook(callback, "state") is Callback.state
        ):  # which keeps options, so that other ones would be lost
            given |= attributes_of(callback)
            packer.named(Callback.state(callback), f"callbacks.{n}.state")
        found[f"callbacks.{n}"] = packer.named(given, f"callbacks.{n}")
    for name, array in arrays_of(trainer).items():
        found[f"arrays.{name}"] = f"{type(array).__name__} {array.dtype}{list(array.shape)}"
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


def _state(callback: Any) -> Any:
    """What a callback keeps. Raises OptionError for what it could not take back."""
    state, restore = hooks(callback)
    kept = state(callback)
    attributes = isinstance(kept, dict) and all(isinstance(name, str) for name in kept)
    if restore is Callback.restore and kept is not None and not attributes:
        raise OptionError(
            f"{type(callback).__name__}.state returned {shown(kept)}, and it has no method restore: write def "
            "restore(self, state), or return a dict of attributes"
        )
    return kept


def identity(arrays: Any) -> list[dict[str, Any]]:
    """What tells data from others: the shape and dtype of each array, and the digest of a sample of its rows.

    arrays: samples, targets and perhaps sample weights. Of a data.Stream the first window is the sample. A Stream
    that is read once has no sample, since its first window may be that of a later epoch.
    """
    found = []
    for array in arrays:
        about: dict[str, Any] = {
            "shape": list(map(int, array.shape)),
            "dtype": str(array.dtype).rpartition(".")[2],
        }
        if isinstance(array, StreamRows):
            stream, first = array.windows.stream, array.windows.first[array.place]
            about |= {"window": stream.window, "sha256": "" if stream.once else sample_sha256(first)}
        else:
            about |= {"sha256": sample_sha256(array)}
        found.append(about)
    return found


def described(trainer: Any, fit: Any = None) -> tuple[str, dict[str, Any]]:
    """The description of a checkpoint as JSON, and the arrays that it names, where they are.

    fit: the Fit that is going on; None between two fits. Raises OptionError for something that a checkpoint cannot
    hold.
    """
    parts, objects = trainer.built
    packer = Packer(parts_of(trainer))
    packer.tensors = {name: array.array for name, array in arrays_of(trainer).items()}
    state: dict[str, Any] = {
        name: packer.named(attributes, name) for name, (_, attributes) in attributes_of_parts(trainer).items()
    }
    about = {
        "format": FORMAT,
        "xnn": __version__,
        "about": [checkpoint.about for checkpoint in fit.checkpoints] if fit is not None else [],
        "built": parts,
        "state": state,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "frozen": [name for name, array in arrays_of(trainer).items() if array.frozen],
        "fit": None if fit is None else _of_fit(fit, packer),
    }
    about["callbacks"] = [
        packer.pack(_state(callback), f"callbacks.{n}.state")
        for n, callback in enumerate(callbacks_of(trainer))
    ]
    for place, kind in packer.objects.items():
        if not place.startswith("fit.") and objects.get(place) != kind:
            raise OptionError(
                f"{place} is a {kind} that came during the training, and a checkpoint cannot make it again: keep "
                "numbers, texts, arrays and lists or dicts of them there"
            )
    try:
        return json.dumps(about), packer.tensors
    except (TypeError, ValueError, RecursionError) as error:  # all else was packed
        raise OptionError(f"about of callbacks.Checkpoint must be JSON values: {error}") from None


def checkpoint_bytes(trainer: Any, fit: Any = None) -> bytes:
    """The file of a checkpoint. The arguments, and what it raises, are those of `described`."""
    text, tensors = described(trainer, fit)
    there = {name: array for name, array in tensors.items() if not isinstance(array, np.ndarray)}
    there = dict(zip(there, trainer.model.backend.to_host_all(there.values()), strict=True))
    arrays = {name: np.asarray(there.get(name, array)) for name, array in tensors.items()}
    return signed_bytes(arrays, {CHECKPOINT: text})


def save(trainer: Any, path: str | os.PathLike[str], fit: Any = None) -> None:
    """Write a checkpoint, whole or not at all. Raises as `checkpoint_bytes` and `write_atomically` do."""
    write_atomically(path, checkpoint_bytes(trainer, fit), (".safetensors",))


def _of_fit(fit: Any, packer: Packer) -> dict[str, Any]:
    """Where a fit is, how it runs, and what it has done."""
    batches, history = fit.batches, fit.history
    return {
        "seed": batches.seed,
        "batch_size": batches.batch_size,
        "shuffle": bool(batches.shuffle),  # whether, not the function
        "batch": fit.batch,
        "since_check": fit.since_check,
        "plan": history.plan,
        "data": identity(batches.arrays),
        "validation": identity(fit.held_out or ()),
        "loss": packer.pack(fit.loss, "fit.loss"),
        "counts": packer.pack(fit.counts, "fit.counts"),
        "history": packer.pack(history.state(), "fit.history"),
        "more": packer.pack(fit.state(), "fit.more"),
    }
