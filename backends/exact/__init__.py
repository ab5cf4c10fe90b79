"""Exact numerics: the same bits on every backend, BLAS, number of threads and number of workers.

An exact run is the same ops in another namespace (`namespace.py`): numbers are stored as float32, computed with as
float64, and every sum and product is cut into slices whose sums are exact (`slices.py`). Ops whose operands have
roles, as weights and activations have, are cut by them (`ops.py`). Functions such as exp are composed of
correctly rounded operations (`functions.py`; of one Python number, `scalars.py`). A machine that breaks the
conditions is refused (`selfcheck.py`).
What is promised, and why it works: docs/numerics.md.
"""

from typing import Any

from xnn.backends.exact.namespace import ExactNamespace
from xnn.backends.exact.ops import ROLES
from xnn.backends.exact.scaled import ScaledIntegers
from xnn.backends.exact.selfcheck import check

__all__ = ["ExactNamespace", "ScaledIntegers", "enable"]


def enable(lib: Any) -> ExactNamespace:
    """The exact namespace of a backend, after a check of what it rests on. Raises NumericsError."""
    namespace = ExactNamespace(lib, ROLES)
    check(namespace)
    return namespace
