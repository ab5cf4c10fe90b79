"""The errors that xnn raises on purpose, as one tree.

    XnnError
    ├── OptionError(ValueError)               an option or argument outside what is allowed
    ├── ShapeError(ValueError)                arrays whose shapes do not fit together
    ├── DTypeError(TypeError)                 an array of the wrong kind of number
    ├── LabelError(ValueError)                class labels outside 0 .. classes - 1
    ├── GraphError(ValueError)                a graph that cannot be sorted, fed or differentiated
    ├── DivergenceError(ArithmeticError)      a loss, gradient or weight became NaN or infinite
    ├── ScaleWarning(UserWarning)             samples or targets are badly scaled, or unlike those of training
    ├── MissingExtraError(ImportError)        an optional package is not installed
    ├── NumericsError(ArithmeticError)        exact numerics are impossible on this machine or at this size
    │   └── NoExactFormError(AttributeError)  an array function that exact numerics do not have
    ├── BackendError
    │   ├── UnknownBackendError(ValueError)   XNN_BACKEND, --backend or use_backend names no backend
    │   ├── BackendUnavailableError           the backend cannot run on this machine; says why
    │   ├── MixedArraysError(TypeError)       arrays of two backends in one operation
    │   ├── DeviceMemoryError(MemoryError)    the device has no memory left
    │   └── DeviceError(RuntimeError)         the device refused a call, or a kernel failed
    │       └── DeviceLostError               the device does not answer this process any more
    ├── RankError(RuntimeError)               processes that train together differ from one another
    ├── WeightWarning(UserWarning)            weights of samples or classes that have no effect; a warning
    └── DataError
        ├── DataNotFoundError(LookupError)    a data set or file is not there and cannot be fetched
        ├── CorruptFileError(ValueError)      a file is damaged, or not of the expected kind
        └── DiskError(OSError)                a file cannot be written: the disk is full, or there is no permission

`except XnnError` catches all of them. Each is also the built-in exception that a Python user expects. A message says
what was received, what is allowed and what to do. ScaleWarning is a warning, not an error:
`warnings.filterwarnings("ignore", category=xnn.errors.ScaleWarning)` turns it off.

    >>> import xnn
    >>> try:
    ...     xnn.optimizers.SGD(learning_rate=-1)
    ... except xnn.errors.OptionError as error:
    ...     print(error)
    learning_rate must be a finite number at least 0, got -1
"""

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "CorruptFileError",
    "DTypeError",
    "DataError",
    "DataNotFoundError",
    "DeviceError",
    "DeviceLostError",
    "DeviceMemoryError",
    "DiskError",
    "DivergenceError",
    "GraphError",
    "LabelError",
    "MissingExtraError",
    "MixedArraysError",
    "NoExactFormError",
    "NumericsError",
    "OptionError",
    "RankError",
    "ScaleWarning",
    "ShapeError",
    "UnknownBackendError",
    "WeightWarning",
    "XnnError",
]


class XnnError(Exception):
    """The base of all errors that xnn raises on purpose."""


class OptionError(XnnError, ValueError):
    """An option or argument is outside what is allowed."""


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

    history: the xnn.history.History of the training before that.
    fault: the part of the message that says what became NaN or infinite, and in which step; "" if that is not known.
    """

    history: object = None
    fault = ""


class MissingExtraError(XnnError, ImportError):
    """An optional package is needed and not installed. The message has the command that installs it."""


class NumericsError(XnnError, ArithmeticError):
    """Exact numerics are impossible: the machine does not meet their conditions, or a sum has too many terms."""


class NoExactFormError(NumericsError, AttributeError):
    """An op uses an array function that exact numerics do not have. hasattr then returns False."""


class RankError(XnnError, RuntimeError):
    """Processes that train together have other options, data or weights than one another."""


class BackendError(XnnError):
    """The base of errors of backends: their names, their availability, their arrays."""


class UnknownBackendError(BackendError, ValueError):
    """There is no backend of this name."""


class BackendUnavailableError(BackendError):
    """The backend cannot run on this machine. The message says why, and how to fix it."""


class MixedArraysError(BackendError, TypeError):
    """Arrays of two backends in one operation. Arrays are never moved without being asked."""


class DeviceMemoryError(BackendError, MemoryError):
    """The device has no memory left for an array."""


class DeviceError(BackendError, RuntimeError):
    """The device refused a call, or a kernel failed."""


class DeviceLostError(DeviceError):
    """The device does not answer this process any more. Arrays there are lost; a new process may use it again."""


class DataError(XnnError):
    """The base of errors of data sets and files."""


class DataNotFoundError(DataError, LookupError):
    """A data set or file is not there and cannot be fetched."""


class CorruptFileError(DataError, ValueError):
    """A file is damaged, or not of the expected kind."""


class DiskError(DataError, OSError):
    """A file cannot be written: the disk is full or read-only, or there is no permission."""


class ScaleWarning(XnnError, UserWarning):  # noqa: N818 - a warning
    """A warning about the scale of data.

    Training samples are far too large for the first weights of a model, or were scaled twice; training targets are
    far from unit size; or samples of validation or evaluation are 20 times larger or smaller than those of training.
    """


class WeightWarning(XnnError, UserWarning):  # noqa: N818 - a warning
    """Weights of samples or classes that have no effect. A warning."""
