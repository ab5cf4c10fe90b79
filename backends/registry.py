"""Which backend: argument > `with` block > `use_backend` > XNN_BACKEND > numpy, read when first needed."""

from __future__ import annotations

import copyreg
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from xnn.backends.base import Backend
from xnn.backends.numerics import current_numerics
from xnn.errors import BackendUnavailableError, DTypeError, MixedArraysError, UnknownBackendError

__all__ = [
    "admit",
    "available_backends",
    "backend",
    "backend_names",
    "backend_of",
    "backend_variable",
    "current_backend",
    "get_backend",
    "mixed_arrays",
    "use_backend",
]

# name -> (module, class, top-level module its arrays come from). A new backend is one line here.
_REGISTRY = {
    "numpy": ("xnn.backends.numpy_backend", "NumpyBackend", "numpy"),
    "cupy": ("xnn.backends.cupy_backend", "CupyBackend", "cupy"),
    "array-api-strict": ("xnn.backends.strict_backend", "StrictBackend", "array_api_strict"),
}
_NAME_OF_MODULE = {module: name for name, (_, _, module) in _REGISTRY.items()}

_instances: dict[str, Backend] = {}
_owners: dict[type, Backend | None] = {}
_process_wide: str | None = None
_in_context: ContextVar[str | None] = ContextVar("xnn_backend", default=None)


def backend_names() -> tuple[str, ...]:
    """The names XNN_BACKEND, --backend and use_backend accept; array-api-strict is for tests."""
    return tuple(_REGISTRY)


def get_backend(name: str | None = None) -> Backend:
    """The backend of this name, loaded and checked once; the current one without a name.

    Raises UnknownBackendError, or BackendUnavailableError with the reason and the command that mends it.
    """
    if name is None:
        return current_backend()
    return _load(name, "backend")


def _load(name: str, source: str) -> Backend:
    if name not in _instances:
        _check_name(name, source)
        module, cls, _ = _REGISTRY[name]
        _instances[name] = getattr(importlib.import_module(module), cls)()
        copyreg.pickle(
            type(_instances[name]), lambda lib: (get_backend, (lib.name,))
        )  # copies and pickles are it
    return _instances[name]


def _check_name(name: str, source: str) -> None:
    if name not in _REGISTRY:
        raise UnknownBackendError(
            f"{source}={name!r} is not a backend; choose numpy (the CPU), cupy (a GPU) or, for tests, "
            "array-api-strict"
        )


def backend_variable() -> str:
    """What XNN_BACKEND says, "" if nothing; nothing is loaded. Raises UnknownBackendError for what is no name."""
    name = os.environ.get("XNN_BACKEND", "").strip()
    if name:
        _check_name(name, "XNN_BACKEND")
    return name


def current_backend() -> Backend:
    """The backend that a new model, or a call without arrays, uses now."""
    current_numerics()  # a wrong XNN_NUMERICS is heard of as early as a wrong XNN_BACKEND
    for name, source in (
        (_in_context.get(), "backend"),
        (_process_wide, "use_backend"),
        (os.environ.get("XNN_BACKEND", "").strip() or None, "XNN_BACKEND"),
    ):
        if name is not None:
            return _load(name, source)
    return _load("numpy", "backend")


def use_backend(name: str | None) -> None:
    """Choose the backend for the whole process; None goes back to XNN_BACKEND or numpy."""
    global _process_wide
    if name is not None:
        _load(name, "use_backend")
    _process_wide = name


@contextmanager
def backend(name: str) -> Iterator[Backend]:
    """Choose the backend for a `with` block, in this thread or task alone."""
    chosen = _load(name, "backend")
    token = _in_context.set(name)
    try:
        yield chosen
    finally:
        _in_context.reset(token)


def available_backends() -> dict[str, str]:
    """Every backend's name with "" if it runs here, else the reason why it does not."""
    reasons = {}
    for name in _REGISTRY:
        try:
            _load(name, "backend")
            reasons[name] = ""
        except BackendUnavailableError as error:
            reasons[name] = str(error)
    return reasons


def backend_of(*arrays: Any) -> Backend:
    """The backend whose arrays these are; Python numbers and None belong to any.

    With no array among them, the current backend. Raises MixedArraysError if they belong to two:
    ops and layers never move data, `to_device`, `to_host` and `model.to` do.
    """
    found: Backend | None = None
    for x in arrays:
        try:
            owner = _owners[type(x)]
        except KeyError:
            owner = _owner(x)
        if owner is None or owner is found:
            continue
        if found is not None:
            raise mixed_arrays(found, owner)
        found = owner
    return found if found is not None else current_backend()


def mixed_arrays(one: Backend, other: Backend) -> MixedArraysError:
    """The error for arrays of two backends in one operation."""
    return MixedArraysError(
        f"one operation got arrays of {one.name} and of {other.name}; nothing is moved behind "
        "your back: use model.to(...), or a backend's to_device and to_host"
    )


def admit(lib: Backend, x: Any) -> Any:
    """What may enter through a door (fit, predict): host arrays and the model's backend's own."""
    if not isinstance(x, np.ndarray):
        owner = backend_of(x)
        if owner is not lib:
            raise MixedArraysError(
                f"the model lives on {lib.name} and got an array of {owner.name}: give it a numpy array or one "
                f"of {lib.name}, or move the model with model.to({owner.name!r})"
            )
    return x


def _owner(x: Any) -> Backend | None:
    if x is None or type(x) in (bool, int, float):
        _owners[type(x)] = None
        return None
    if type(x).__module__ == "xnn.backends.exact.scaled":
        return x.lib  # type: ignore[no-any-return]
    modules = (base.__module__.partition(".")[0] for base in type(x).__mro__)  # subclasses of arrays too
    name = next((_NAME_OF_MODULE[module] for module in modules if module in _NAME_OF_MODULE), None)
    if name is None:
        raise DTypeError(
            f"expected an array of {', '.join(_REGISTRY)} or a number, got {type(x).__name__}; "
            "numpy.asarray(...) makes one of a list"
        )
    _owners[type(x)] = _load(name, "backend")
    return _owners[type(x)]
