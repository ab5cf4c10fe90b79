"""Exact numerics: the same bits on every backend, BLAS, number of threads and number of workers.

An exact run is the same ops with another `xp`: numbers are stored as float32 and computed with as float64, and every
sum and product is split into slices, short numbers whose sums have no rounding error. `docs/numerics.md` says what is
promised and why it works. Read in this order:

    slices.py     splitting numbers, so that sums and products of them are exact
    functions.py  exp, log, sin and others from `+ - * /` and sqrt; scalars.py: the same for one Python float
    namespace.py  the `xp` of exact numerics
    scaled.py     pixels that are kept as integers
    ops.py        ops that split weights and activations differently: Dense, Conv2D and others
    selfcheck.py  tests of the machine's arithmetic, against the exact results of reference.py
    kernels/      the same computations as fast kernels, on the CPU and on a GPU
"""

from typing import Any

from xnn.backends.exact.namespace import ExactNamespace
from xnn.backends.exact.ops import ROLES
from xnn.backends.exact.scaled import ScaledIntegers
from xnn.backends.exact.selfcheck import check

__all__ = ["ExactNamespace", "ScaledIntegers", "enable"]


def enable(lib: Any) -> ExactNamespace:
    """Check this machine's arithmetic and make the exact namespace of a backend.

    Raises NumericsError if the arithmetic does not meet the conditions of exact numerics.
    """
    namespace = ExactNamespace(lib, ROLES)
    check(namespace)
    return namespace
