"""Axes of arrays as options of ops: checked, and counted from the first."""

from __future__ import annotations

from typing import Any

from xnn.errors import OptionError, ShapeError
from xnn.options import check_integer

__all__ = ["positive_axis", "reduced_axes"]


def positive_axis(axis: Any, ndim: int) -> int:
    """The axis counted from the first, as an int in 0 .. ndim - 1.

    Raises OptionError unless it is an integer (NumPy's too), ShapeError if there is no such axis.
    """
    number = check_integer("axis", axis)
    if not -ndim <= number < ndim:
        raise ShapeError(
            f"axis {number} of an array of {ndim} axes: it must lie in {-ndim} .. {ndim - 1}"
            if ndim
            else f"axis {number} of an array without axes, which is a single number: it has none"
        )
    return number % ndim


def reduced_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes of a reduction, counted from the first: of an integer, of a sequence of integers, or all for None.

    A single number has no axes. Axes 0 and -1 are allowed all the same, as in NumPy and PyTorch, and mean none.
    Raises OptionError for other things than integers and for an axis that comes twice; ShapeError if there is no such
    axis.

    >>> reduced_axes(-1, 3), reduced_axes(None, 2), reduced_axes(0, 0)
    ((2,), (0, 1), ())
    """
    if axis is None:
        return tuple(range(ndim))
    given = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    if ndim == 0 and len(given) == 1 and check_integer("axis", given[0]) in (0, -1):
        return ()
    axes = tuple(positive_axis(a, ndim) for a in given)
    if len(set(axes)) < len(axes):
        raise OptionError(f"axis {axis} names an axis twice: name each axis once")
    return axes
