"""Every error xnn raises on purpose, as one tree.

    XnnError
    ├── OptionError(ValueError)               an option or argument outside what is allowed
    ├── ShapeError(ValueError)                arrays whose shapes do not fit together
    ├── DTypeError(TypeError)                 an array of the wrong kind of number
    ├── LabelError(ValueError)                class labels outside 0 .. classes - 1
    ├── GraphError(ValueError)                a graph that cannot be sorted, fed or differentiated
    ├── DivergenceError(ArithmeticError)      a loss, gradient or weight became NaN or infinite
    ├── MissingExtraError(ImportError)        an optional package is not installed
    ├── NumericsError(ArithmeticError)        exact numerics cannot be kept, by this machine or at this size
    │   └── NoExactFormError(AttributeError)  a function of the array library that exact numerics do not have
    ├── BackendError
    │   ├── UnknownBackendError(ValueError)   XNN_BACKEND, --backend or use_backend names no backend
    │   ├── BackendUnavailableError           the backend exists but cannot run here; says why
    │   ├── MixedArraysError(TypeError)       arrays of two backends met in one operation
    │   └── DeviceMemoryError(MemoryError)    the device has no room left
    └── DataError
        ├── DataNotFoundError(LookupError)    a data set or file is not there and cannot be fetched
        └── CorruptFileError(ValueError)      a file is there but is not what it should be

Catching `XnnError` catches them all; each is also the built-in exception a Python user expects.
Every message says what was received, what is allowed and what to do next.
"""

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "CorruptFileError",
    "DTypeError",
    "DataError",
    "DataNotFoundError",
    "DeviceMemoryError",
    "DivergenceError",
    "GraphError",
    "LabelError",
    "MissingExtraError",
    "MixedArraysError",
    "NoExactFormError",
    "NumericsError",
    "OptionError",
    "ShapeError",
    "UnknownBackendError",
    "XnnError",
]


class XnnError(Exception):
    """The root of every error that xnn raises on purpose."""


class OptionError(XnnError, ValueError):
    """An option or argument lies outside what is allowed."""


class ShapeError(XnnError, ValueError):
    """Arrays whose shapes do not fit together."""


class DTypeError(XnnError, TypeError):
    """An array holds the wrong kind of number."""


class LabelError(XnnError, ValueError):
    """Class labels outside 0 .. classes - 1, or not integers."""


class GraphError(XnnError, ValueError):
    """A graph that cannot be sorted, fed or differentiated."""


class DivergenceError(XnnError, ArithmeticError):
    """A loss, gradient or weight became NaN or infinite during training.

    `history` is the xnn.history.History of what was done before.
    """

    history: object = None


class MissingExtraError(XnnError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""


class NumericsError(XnnError, ArithmeticError):
    """Exact numerics cannot be kept: this machine breaks their conditions, or a sum is too long for them."""


class NoExactFormError(NumericsError, AttributeError):
    """An op asked its namespace for a function that has no exact form; hasattr says that it is not there."""


class BackendError(XnnError):
    """Something about a backend: its name, its availability, its arrays."""


class UnknownBackendError(BackendError, ValueError):
    """No backend has this name."""


class BackendUnavailableError(BackendError):
    """The backend exists but cannot run on this machine; the message says why and what fixes it."""


class MixedArraysError(BackendError, TypeError):
    """Arrays of two backends met in one operation; nothing is moved behind the user's back."""


class DeviceMemoryError(BackendError, MemoryError):
    """The device has no room left for an array."""


class DataError(XnnError):
    """Something about a data set or a file."""


class DataNotFoundError(DataError, LookupError):
    """A data set or file is not there and cannot be fetched."""


class CorruptFileError(DataError, ValueError):
    """A file is there but is not what it should be."""
