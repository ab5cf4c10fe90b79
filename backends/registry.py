"""Choosing the backend, and telling which backend an array belongs to.

The first of these that is set counts: an argument, a `with backend(...)` block, `use_backend`, the environment
variable XNN_BACKEND; the default is "numpy". The variable is read when it is needed, not at import.

Where there are several GPUs, "cupy:1" is the second one, and "cupy" the one with the number in XNN_DEVICE. By
default it is the first; of several processes that mpirun, mpiexec or srun has started, each has its own, in turn.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from xnn.backends.base import Backend
from xnn.backends.device_choice import device_number
from xnn.backends.numerics import current_numerics
from xnn.backends.row_sources import is_on_host
from xnn.errors import BackendUnavailableError, DTypeError, MixedArraysError, UnknownBackendError, XnnError
from xnn.ops.apply import explain_failures_by
from xnn.options import shown

__all__ = [
    "admit",
    "available_backends",
    "backend",
    "backend_names",
    "backend_of",
    "backend_variable",
    "backend_wanted",
    "current_backend",
    "explaining",
    "get_backend",
    "gpu_number",
    "is_device_array",
    "mixed_arrays",
    "use_backend",
    "widened",
]

# name -> (module, class, top-level module of its arrays' type). A new backend is one line here.
_REGISTRY = {
    "numpy": ("xnn.backends.numpy_backend", "NumpyBackend", "numpy"),
    "cupy": ("xnn.backends.cupy_backend", "CupyBackend", "cupy"),
    "array-api-strict": ("xnn.backends.strict_backend", "StrictBackend", "array_api_strict"),
}
#: Those of which there may be several devices.
_WITH_NUMBERS = {"cupy"}
_NAME_OF_MODULE = {module: name for name, (_, _, module) in _REGISTRY.items()}

_instances: dict[str, Backend] = {}
#: The backend of each type of arrays that was met; None for types of numbers.
_owners: dict[type, Backend | None] = {}
#: The backend's name of each type of arrays that may lie on one of several devices.
_numbered: dict[type, str] = {}
#: The names of the dtypes that ops compute with.
_COMPUTED_NAMES = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_COMPUTED_NAMES |= {"bool", "float32", "float64"}
_process_wide: str | None = None
_in_context: ContextVar[str | None] = ContextVar("xnn_backend", default=None)


def backend_names() -> tuple[str, ...]:
    """Return the names that XNN_BACKEND, --backend and `use_backend` accept; array-api-strict is for tests."""
    return tuple(_REGISTRY)


def get_backend(name: str | None = None) -> Backend:
    """Return a backend; it is loaded and checked at the first use.

    name: "numpy", "cupy", "cupy:1" (the GPU of this number) or "array-api-strict"; None for the current backend.

    Raises UnknownBackendError for any other name, and BackendUnavailableError, with the reason and a command that
    helps, if the backend does not run here.

    >>> import xnn
    >>> xnn.backends.get_backend("numpy")
    <backend numpy>
    """
    if name is None:
        return current_backend()
    return _load(name, "backend")


@functools.cache
def _class(kind: str) -> type[Backend]:
    module, name, _ = _REGISTRY[kind]
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _of_number(kind: str, x: Any) -> Backend:
    """The backend of the device on which an array lies. It becomes the one that this thread works with."""
    name = f"{kind}:{_class(kind).number_of(x)}"
    lib = _instances[name] if name in _instances else _load(name, "backend")
    lib.activate()
    return lib


def _load(name: str, source: str) -> Backend:
    if name not in _instances or name in _WITH_NUMBERS:
        _check_name(name, source)
        kind, _, digits = name.partition(":")
        given: tuple[int, ...] = ()
        if kind in _WITH_NUMBERS:
            given = (int(digits) if digits else device_number(),)
            name = f"{kind}:{given[0]}"
        if name not in _instances:
            _instances[name] = _class(kind)(*given)
            # There is one instance of each backend: copying or unpickling it gives that instance.
            copyreg.pickle(type(_instances[name]), lambda lib: (get_backend, (lib.address,)))
    return _instances[name]


def gpu_number() -> int:
    """Return the number of the GPU that "cupy" means: that of XNN_BACKEND="cupy:1", or else `device_number`.

    Raises UnknownBackendError or BackendUnavailableError if one of the two variables is wrong.
    """
    digits = backend_variable().partition(":")[2]
    return int(digits) if digits else device_number()


#: What other libraries call a device, and the backend that computes there.
_DEVICES = {"cuda": "cupy", "gpu": "cupy", "cpu": "numpy"}


def _check_name(name: str, source: str) -> None:
    kind, colon, digits = name.partition(":") if isinstance(name, str) else ("", "", "")
    if colon and kind in _WITH_NUMBERS and digits.isascii() and digits.isdecimal():
        return
    if name not in _REGISTRY:
        device = name.strip().lower().partition(":")[0] if isinstance(name, str) else ""
        meant = f"; for {device} write {_DEVICES[device]!r}" if device in _DEVICES else ""
        raise UnknownBackendError(
            f"{source}={shown(name)} is not a backend: choose numpy (the CPU), cupy (a GPU), cupy:1 (the second GPU) "
            f"or, for tests, array-api-strict{meant}"
        )


def backend_variable() -> str:
    """Return the backend's name in XNN_BACKEND, or "" if it is not set, without loading the backend.

    Raises UnknownBackendError if it is not the name of a backend.
    """
    name = os.environ.get("XNN_BACKEND", "").strip()
    if name:
        _check_name(name, "XNN_BACKEND")
    return name


def backend_wanted() -> str:
    """Return the backend's name in XNN_BACKEND, or "" if it is not set, after loading and checking the backend.

    Raises UnknownBackendError as `backend_variable` does, and BackendUnavailableError if it does not run here.
    """
    name = backend_variable()
    if name:
        _load(name, "XNN_BACKEND")
    return name


def current_backend() -> Backend:
    """Return the backend that a new model, or a call without arrays, uses now."""
    current_numerics()  # so that a wrong XNN_NUMERICS is reported as early as a wrong XNN_BACKEND
    for name, source in (
        (_in_context.get(), "backend"),
        (_process_wide, "use_backend"),
        (os.environ.get("XNN_BACKEND", "").strip() or None, "XNN_BACKEND"),
    ):
        if name is not None:
            return _load(name, source)
    return _load("numpy", "backend")


def use_backend(name: str | None) -> None:
    """Choose the backend for the whole process.

    name: "numpy" (the CPU), "cupy" (an NVIDIA GPU), "cupy:1" (the GPU of this number), "array-api-strict" (for
        tests), or None to go back to XNN_BACKEND, or "numpy" if it is not set.

    Raises UnknownBackendError for any other name, and BackendUnavailableError if the backend does not run here.

    >>> import xnn
    >>> xnn.use_backend("numpy")
    >>> xnn.backends.current_backend()
    <backend numpy>
    >>> xnn.use_backend(None)
    """
    global _process_wide
    if name is not None:
        _load(name, "use_backend")
    _process_wide = name


@contextmanager
def backend(name: str) -> Iterator[Backend]:
    """Choose the backend for a `with` block, in this thread or task only. The block's value is the backend.

    name: "numpy" (the CPU), "cupy" (an NVIDIA GPU), "cupy:1" (that of this number) or "array-api-strict" (for tests).

    Raises UnknownBackendError for any other name, and BackendUnavailableError if the backend does not run here.

    >>> import xnn
    >>> with xnn.backend("numpy") as lib:
    ...     model = xnn.Sequential(xnn.layers.Dense(3, 2))
    >>> model.backend is lib
    True
    """
    chosen = _load(name, "backend")
    token = _in_context.set(name)
    try:
        yield chosen
    finally:
        _in_context.reset(token)


def available_backends() -> dict[str, str]:
    """Return each backend's name with "" if it runs here, or else the reason why it does not.

    >>> import xnn
    >>> xnn.backends.available_backends()["numpy"]
    ''
    """
    reasons = {}
    for name in _REGISTRY:
        try:
            _load(name, "backend")
            reasons[name] = ""
        except BackendUnavailableError as error:
            reasons[name] = str(error)
    return reasons


def backend_of(*arrays: Any) -> Backend:
    """Return the backend to which arrays belong; the current backend if there is no array among `arrays`.

    Python numbers and None belong to any backend. Raises MixedArraysError if the arrays belong to two backends, and
    DTypeError for an object that is not an array, or an array of a dtype that nothing here computes with: float16,
    bfloat16, complex numbers, objects, text, dates.

    >>> import numpy as np, xnn
    >>> xnn.backends.backend_of(np.ones(3), 2.0)
    <backend numpy>
    """
    found: Backend | None = None
    for x in arrays:
        try:
            owner = _owners[type(x)]
        except KeyError:
            owner = _owner(x)
        if owner is None:
            continue
        if x.dtype not in owner.computed:
            owner.computed.add(_checked_dtype(x.dtype))
        if owner is found:
            continue
        if found is not None:
            raise mixed_arrays(found, owner)
        found = owner
    return found if found is not None else current_backend()


def _device_failure(error: Exception, arrays: Iterable[Any]) -> XnnError | None:
    """Explain what a GPU reported while something was computed from these arrays; None for any other error."""
    if not type(error).__module__.startswith("cupy"):
        return None
    try:
        return backend_of(*(x for x in arrays if hasattr(x, "dtype"))).explained(error)
    except Exception:  # the device does not even say which one it is
        return None


explain_failures_by(_device_failure)


@contextmanager
def explaining(*arrays: Any) -> Iterator[None]:
    """Run a block that computes from these arrays, and explain what a GPU reports meanwhile."""
    try:
        yield
    except Exception as error:
        said = _device_failure(error, arrays)
        if said is None:
            raise
        raise said from error


def mixed_arrays(one: Backend, other: Backend) -> MixedArraysError:
    """Make the error for arrays of two backends, or of two GPUs, in one operation."""
    return MixedArraysError(
        f"one operation got arrays of {one.address} and of {other.address}: operations never move arrays. Move "
        "the array with model.backend.to_device(x), or the model with model.to(...)"
    )


def admit(lib: Backend, x: Any) -> Any:
    """Return `x` if `fit` or `predict` of a model on `lib` can take it: a NumPy array or an array of `lib`.

    Raises MixedArraysError for an array of another backend.
    """
    if not is_on_host(x):
        owner = _owner(x)
        if owner is not None and owner is not lib:
            host = "a NumPy array" if lib.is_host else f"a NumPy array or one of {lib.address}"
            raise MixedArraysError(
                f"a model on {lib.address} got an array of {owner.address}: give it {host}, or "
                f"move the model with model.to({owner.address!r})"
            )
    return x


def widened(x: Any) -> Any:
    """A floating-point array of another size as float32 or float64; anything else as it is.

    float16, bfloat16 and the like become float32, which holds them all, and long double becomes float64.

    Raises DTypeError for finite numbers that are too large for float64.
    """
    dtype = getattr(x, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.name in _COMPUTED_NAMES:
        return x
    if dtype.kind == "f" and dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            wide = x.astype("float64")
        if (np.isinf(wide) & np.isfinite(x)).any():
            raise DTypeError(
                f"an array of {dtype} holds numbers that are too large for float64: scale it first"
            )
        return wide
    # An extension's dtype, such as those of ml_dtypes, has kind "V" and isbuiltin 2; a record has kind "V", too.
    if dtype.kind == "f" or (dtype.isbuiltin == 2 and np.can_cast(dtype, np.float32)):
        return x.astype("float32")
    return x


def is_device_array(x: Any) -> bool:
    """Return whether `x` is an array of a backend other than numpy, without loading that backend."""
    return _module_name(type(x)) not in (None, "numpy")


def _module_name(kind: type) -> str | None:
    """Return the name of the backend whose arrays have this type, or a type that it is derived from."""
    modules = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return next((_NAME_OF_MODULE[module] for module in modules if module in _NAME_OF_MODULE), None)


def _checked_dtype(dtype: Any) -> Any:
    """Return the dtype. Raises DTypeError unless ops compute with numbers of it."""
    name = str(getattr(dtype, "name", getattr(dtype, "__name__", dtype))).rpartition(".")[2]
    if name not in _COMPUTED_NAMES:
        raise DTypeError(
            f"got an array of {dtype}: computations are with numbers of float32 or float64, integers and booleans; "
            "convert it, as by x.astype('float32')"
        )
    return dtype


def _owner(x: Any) -> Backend | None:
    """Return the backend to which an array belongs, None for a number and None; and remember it for its type."""
    if type(x) in _numbered:
        return _of_number(_numbered[type(x)], x)
    if x is None or type(x) in (bool, int, float):
        _owners[type(x)] = None
        return None
    if type(x).__module__ == "xnn.backends.exact.scaled":
        return x.lib  # type: ignore[no-any-return]
    if isinstance(x, (np.ma.MaskedArray, np.matrix)):
        raise DTypeError(
            f"got a numpy {type(x).__name__}, in which numbers may be missing or * is another product: convert it "
            "with x.filled(...) or numpy.asarray(x)"
        )
    name = _module_name(type(x))
    if name in _WITH_NUMBERS:
        _numbered[type(x)] = name
        return _of_number(name, x)
    if name is None:
        by_rows = "model.predict(x) takes it, and numpy.asarray(x) reads it into memory"
        how = by_rows if is_on_host(x) else "convert lists with numpy.asarray(...)"
        allowed = f"an array of {', '.join(_REGISTRY)} or a number"
        raise DTypeError(f"got {type(x).__name__} in place of {allowed}: {how}")
    _owners[type(x)] = _load(name, "backend")
    return _owners[type(x)]
