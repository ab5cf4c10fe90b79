"""Backends: which array library runs the mathematics, where arrays live, random numbers, BLAS threads and timing.

Nothing here knows a layer, a loss or an optimizer. Read in this order: `base.py` (what every backend can do),
`numpy_backend.py` (the default one), `registry.py` and `numerics.py` (how a backend and a kind of arithmetic are
chosen), `random.py`, `threads.py`, `communicator.py`. Then the three rooms: `kernels/` (fast replacements of ops in a
training step), `exact/` (the same bits on every machine) and `ranks/` (processes that train together).

A new backend is one file beside `cupy_backend.py` and one line in `registry.py`.
"""

if __name__ != "xnn.backends":  # a second import name would make a second copy of every class
    raise ImportError(f"import xnn.backends, not {__name__!r}: the folder is one package under one name")

from xnn.backends.base import Backend, Timer
from xnn.backends.numerics import chosen_numerics, current_numerics, numerics, use_numerics
from xnn.backends.random import Purpose, Stream
from xnn.backends.registry import (
    admit,
    available_backends,
    backend,
    backend_names,
    backend_of,
    backend_variable,
    backend_wanted,
    current_backend,
    get_backend,
    mixed_arrays,
    use_backend,
)

__all__ = [
    "Backend",
    "Purpose",
    "Stream",
    "Timer",
    "admit",
    "available_backends",
    "backend",
    "backend_names",
    "backend_of",
    "backend_variable",
    "backend_wanted",
    "chosen_numerics",
    "current_backend",
    "current_numerics",
    "get_backend",
    "mixed_arrays",
    "numerics",
    "use_backend",
    "use_numerics",
]
