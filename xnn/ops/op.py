"""What an op is: a differentiable function as a stateless pair, forward and backward.

An op is the specification of its mathematics. It is written against `xp`, the Array API namespace of
its arrays (NumPy itself on the CPU), which its caller passes in, so the same lines run on every
backend. Inside an op: `+ - * /`, comparisons and `xp` functions, masks through `where`; no array
methods, no `@` or `**`, no writing in place, and creation functions pass `device=x.device`
(`tests/test_house.py` reads the syntax trees and says so).

An op of your own is three lines, and goes through every door: as a layer, in a graph, in autograd:

    import numpy as np, xnn
    from xnn import layers, ops

    class Square(xnn.Op):
        def forward(self, xp, x): return x * x, x
        def backward(self, xp, grad, x): return (2.0 * x * grad,)

    square, x = Square(), np.ones((2, 3))
    square(x)                                  # an array in, an array out
    xnn.grad(lambda x: ops.sum(square(x)))(x)  # autograd
    square(xnn.graph.Input())                  # a graph node
    layers.Function(square)                    # a layer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from xnn.errors import GraphError, OptionError, ShapeError, XnnError

__all__ = [
    "Array", "Boundary", "Namespace", "Op", "apply_rule", "backward_of", "batch_count", "batch_mean", "batch_sum",
    "check_gradients", "forward_of", "positive_axis", "size_of", "unbroadcast",
]  # fmt: skip

#: An array of any backend. The Array API has no common base class, hence Any.
Array: TypeAlias = Any
#: An Array API namespace, called `xp` everywhere.
Namespace: TypeAlias = Any

Applier: TypeAlias = Callable[["Op", tuple[Any, ...], dict[str, Any]], Any]


class Op:
    """A differentiable function: `forward` and the product with its Jacobian's transpose, `backward`.

    forward(xp, *inputs, **options) -> (output, saved)
        `saved` is whatever backward will need; options are keyword-only and are not differentiated.
    backward(xp, grad, saved) -> one gradient per input
        Each has its input's shape; None stands for an input without a gradient (labels, masks,
        Python numbers). Neither function modifies its inputs, `grad` or `saved`; what they return may be
        a view of them (reshape) or `grad` itself (add).
    """

    #: Whether it stands for a layer of the user's that is run as it is, and may draw random numbers.
    opaque = False
    #: Whether it takes arrays as they are stored and widens them itself, in a namespace with a boundary.
    takes_stored = False
    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., tuple[Array | None, ...]]

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Apply the op: arrays give an array, recorded values a recorded value, graph nodes a node."""
        return _apply(self, inputs, options)

    def __deepcopy__(self, memo: Any) -> Op:
        """Itself: there is no state to copy, and kernels, exact forms and files know an op by what it is."""
        return self

    def without_input_gradient(self, saved: Any) -> Any:
        """`saved`, less what only the gradient for the first input needs.

        backward may then return None in its place. The first layer of a network uses it: nobody reads
        the gradient with respect to the data, and it can cost as much as the weights' own.
        """
        return saved

    @property
    def name(self) -> str:
        """The class's name in lower case: `relu`, `softmaxcrossentropy`."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _not_installed(op: Op, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    raise NotImplementedError("xnn.graph.autograd says how an op is applied; import xnn first")


_apply: Applier = _not_installed


def install(applier: Applier) -> None:
    """Say how a called op is applied.

    The mathematics knows neither backends nor graphs; `xnn.graph.autograd` does.
    """
    global _apply
    _apply = applier


class Boundary:
    """A namespace whose ops compute with other numbers than are stored: exact numerics."""

    def enter(self, x: Any) -> Any:
        """A stored array as an op computes with it."""
        raise NotImplementedError

    def leave(self, y: Any) -> Any:
        """What an op returns as it is stored."""
        raise NotImplementedError

    def role(self, op: Op) -> Op:
        """The op's form in this namespace."""
        raise NotImplementedError

    def batch_sum(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        """The sum over `axis`, of which axis 0 is the batch's, wherever its shards are."""
        raise NotImplementedError

    def scatter_add(self, count: int, indices: Array, rows: Array, batch: bool = False) -> Array:
        """`count` rows of zeros to which rows[i] is added at indices[i]; batch: they are the whole batch's."""
        raise NotImplementedError

    def erf(self, x: Array) -> Array:
        """The error function."""
        raise NotImplementedError

    def batch_count(self, rows: int) -> int:
        """The rows of the whole batch, given those here."""
        raise NotImplementedError


def forward_of(op: Op, xp: Namespace, inputs: Sequence[Any], options: Mapping[str, Any]) -> tuple[Array, Any]:
    """op.forward, with a clear word for what it may stumble over; every door goes through here."""
    if isinstance(xp, Boundary):
        op = xp.role(op)
        if not op.takes_stored:
            inputs = [xp.enter(x) for x in inputs]
            options = {key: xp.enter(x) if _is_array(x) else x for key, x in options.items()}
    try:
        result = op.forward(xp, *inputs, **options)
    except (ValueError, IndexError) as error:
        if isinstance(error, XnnError):
            raise
        shapes = ", ".join(str(tuple(x.shape)) if hasattr(x, "shape") else repr(x) for x in inputs)
        raise ShapeError(f"{op.name} of {shapes}{_with(options)}: {error}") from error
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # from inside the op; a call that does not fit its signature never gets there
        raise OptionError(
            f"{op.name} of {len(inputs)} inputs{_with(options)}: inputs go by position, options by name, as in "
            f"ops.sum(x, axis=0): {error}"
        ) from error
    if type(result) is not tuple or len(result) != 2:
        raise GraphError(
            f"the forward of {op.name} must return a pair (output, saved), got {repr(result)[:60]}"
        )
    return (xp.leave(result[0]), result[1]) if isinstance(xp, Boundary) else result


def _with(options: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{k}={v!r}' for k, v in options.items())}" if options else ""


def backward_of(op: Op, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
    """op.backward; a gradient that was not put into a tuple would be taken apart row by row."""
    if isinstance(xp, Boundary):
        op = xp.role(op)
        grad = grad if op.takes_stored else xp.enter(grad)
    gradients = op.backward(xp, grad, saved)
    if type(gradients) is not tuple:
        raise GraphError(
            f"the backward of {op.name} must return a tuple, one gradient per input, got {repr(gradients)[:60]}"
        )
    if isinstance(xp, Boundary):
        return tuple(xp.leave(gradient) for gradient in gradients)
    return gradients


def check_gradients(
    name: str, gradients: Sequence[Array | None], shapes: Sequence[tuple[int, ...] | None]
) -> None:
    """Raise GraphError unless there is one gradient for each input, of its shape; None is a number's shape.

    Every door asks: where fewer are taken or smaller ones broadcast, training goes on with wrong numbers.
    """
    if len(gradients) != len(shapes):
        raise GraphError(
            f"the backward of {name} returned {len(gradients)} gradients for {len(shapes)} inputs; "
            "None stands for an input without one"
        )
    for number, (gradient, shape) in enumerate(zip(gradients, shapes, strict=True)):
        got = None if gradient is None else tuple(getattr(gradient, "shape", ()))
        if got is not None and shape is not None and got != tuple(shape):
            raise GraphError(
                f"the backward of {name} returned a gradient of shape {got} for input {number} of shape "
                f"{tuple(shape)}: each has its input's shape; ops.op.unbroadcast sums one that was broadcast"
            )


def apply_rule(
    rule: Callable[..., Any], xp: Namespace, arrays: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """rule(xp, *arrays, **options), for what is no op: an optimizer's update rule, a metric."""
    if not isinstance(xp, Boundary):
        return rule(xp, *arrays, **options)
    options = {key: xp.enter(x) if _is_array(x) else x for key, x in options.items()}
    result = rule(xp, *map(xp.enter, arrays), **options)
    return tuple(map(xp.leave, result)) if isinstance(result, tuple) else xp.leave(result)


def _is_array(x: Any) -> bool:
    """An option may also be a dtype, some of which are classes with an array's attributes."""
    return hasattr(x, "shape") and not isinstance(x, type)


def batch_sum(xp: Namespace, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """The sum over `axis`, of which axis 0 is the batch's: all workers' rows, where a batch is split over some.

    An op says with it that it reduces over the batch; for any other sum there is xp.sum.
    """
    own = xp.batch_sum if isinstance(xp, Boundary) else xp.sum
    return own(x, axis=axis, keepdims=keepdims)


def batch_count(xp: Namespace, shape: tuple[int, ...]) -> int:
    """The elements of the whole batch, given this worker's shape (rows, ...); of shape () there is one."""
    rows = xp.batch_count(shape[0]) if shape and isinstance(xp, Boundary) else size_of(shape[:1])
    return rows * size_of(shape[1:])


def batch_mean(xp: Namespace, x: Array) -> Array:
    """The mean over all elements of the whole batch."""
    if not isinstance(xp, Boundary):
        return xp.mean(x)
    return xp.batch_sum(x) / float(batch_count(xp, x.shape))


def size_of(shape: Sequence[int]) -> int:
    """The number of elements of an array of this shape."""
    size = 1
    for extent in shape:
        size *= extent
    return size


def positive_axis(axis: int, ndim: int) -> int:
    """An axis of an array of so many, counted from the first; raises ShapeError for one that it has not."""
    if not -ndim <= axis < ndim:
        raise ShapeError(f"axis {axis} of an array of {ndim} axes: it must lie in {-ndim} .. {ndim - 1}")
    return axis % ndim


def unbroadcast(xp: Namespace, grad: Array, like: Any) -> Array | None:
    """The gradient of broadcasting `like` to grad's shape: grad summed back to like's shape.

    `like` is the input itself or its shape; a Python number has no gradient, hence None.
    """
    shape = like if isinstance(like, tuple) else getattr(like, "shape", None)
    if shape is None:
        return None
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    stretched = tuple(
        axis + added for axis, extent in enumerate(shape) if extent == 1 and grad.shape[axis + added] != 1
    )
    return xp.reshape(xp.sum(grad, axis=(*range(added), *stretched)), shape)
