"""How an op is run: the checks around `forward` and `backward`, and the conversions of exact numerics.

Every way of running an op comes through `forward_of` and `backward_of`: plain calls, graphs, autograd and programs.

In exact numerics, ops compute in float64 with functions of their own, and arrays are stored as float32. The namespace
`xp` is then a `Boundary`. It converts what goes into an op (`enter`) and what comes out (`leave`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from xnn.errors import DTypeError, GraphError, OptionError, ShapeError, XnnError
from xnn.ops.boundary import Boundary, SharedBatch
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.ops.portable import check_portable
from xnn.ops.sums import pairwise_mean, pairwise_sum
from xnn.options import shown

__all__ = [
    "Boundary", "SharedBatch", "apply_rule", "backward_of", "batch_count", "batch_largest", "batch_mean",
    "batch_part", "batch_sum", "batch_sums",
    "check_gradients", "explain_failures_by", "forward_of", "fresh_arrays", "may_look", "plain_number",
]  # fmt: skip


def _no_device(error: Exception, arrays: Iterable[Any]) -> XnnError | None:
    return None


_explain: Callable[[Exception, Iterable[Any]], XnnError | None] = _no_device


def explain_failures_by(function: Callable[[Exception, Iterable[Any]], XnnError | None]) -> None:
    """Set the function that turns a device's exception into xnn's error; for any other exception it returns None.

    `xnn.backends` calls this: which devices there are is not known here.
    """
    global _explain
    _explain = function


def forward_of(op: Op, xp: Namespace, inputs: Sequence[Any], options: Mapping[str, Any]) -> tuple[Array, Any]:
    """Run op.forward(xp, *inputs, **options) and return (output, saved).

    Raises ShapeError or OptionError, naming the op, its shapes and its options, for an array library's error about
    shapes and for arguments that the op does not have; GraphError if the op does not return a pair.
    """
    if options:
        options = {name: plain_number(option) for name, option in options.items()}
    if isinstance(xp, Boundary):
        op = xp.role(op)
        check_portable(op.forward, f"the forward of {op.name}")
        if not op.takes_stored:
            inputs = [xp.enter(x) for x in inputs]
            options = {key: xp.enter(x) if _is_array(x) else x for key, x in options.items()}
    try:
        if options:
            op.check_options(**options)
        result = op.forward(xp, *inputs, **options)
    except (ValueError, IndexError) as error:
        if isinstance(error, XnnError):
            raise
        shapes = ", ".join(str(tuple(x.shape)) if hasattr(x, "shape") else repr(x) for x in inputs)
        raise ShapeError(f"{op.name} of {shapes}{_with(options)}: {error}") from error
    except TypeError as error:
        inside = error.__traceback__ is None or error.__traceback__.tb_next is not None
        if (
            inside
            and options
            and type(op).__module__.partition(".")[0] == "xnn"
            and not isinstance(error, XnnError)
        ):
            raise OptionError(f"{op.name} cannot compute{_with(options)}: {error}") from error
        if inside:
            raise  # it comes from inside a user's op; arguments that do not fit the signature never get there
        raise OptionError(
            f"{op.name} got {len(inputs)} inputs{_with(options)}: {error}. Give inputs by position and options by "
            "name, as in ops.sum(x, axis=0)"
        ) from error
    except Exception as error:
        said = _explain(error, inputs)
        if said is None:
            raise
        raise said from error
    if type(result) is not tuple or len(result) != 2:
        raise GraphError(
            f"the forward of {op.name} returned {shown(result)}: it must return a pair (output, saved)"
        )
    if isinstance(xp, Boundary) and not op.gives_stored:
        return xp.leave(result[0]), result[1]
    return result


def plain_number(x: Any) -> Any:
    """A number of NumPy's as Python's, since a float64 would widen what it is multiplied with; else x itself."""
    if type(x).__module__ != "numpy" or getattr(x, "shape", None) != () or not hasattr(x, "dtype"):
        return x
    own = {"f": float, "i": int, "u": int, "b": bool}
    return own[x.dtype.kind](x) if x.dtype.kind in own else x


def _with(options: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{k}={v!r}' for k, v in options.items())}" if options else ""


def backward_of(op: Op, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
    """Run op.backward(xp, grad, saved) and return the gradients of the inputs. GraphError unless it is a tuple."""
    if isinstance(xp, Boundary):
        op = xp.role(op)
        grad = grad if op.takes_stored else xp.enter(grad)
    if not hasattr(op, "backward"):
        raise GraphError(
            f"{op.name} has no backward, so that there is no gradient: write backward(xp, grad, saved), or take its "
            "result as a constant with ops.stop_gradient"
        )
    if isinstance(xp, Boundary):
        check_portable(op.backward, f"the backward of {op.name}")
    try:
        gradients = op.backward(xp, grad, saved)
    except Exception as error:
        said = _explain(error, (grad,))
        if said is None:
            raise
        raise said from error
    if type(gradients) is not tuple:  # a bare array would be taken for one gradient per row
        raise GraphError(
            f"the backward of {op.name} returned {shown(gradients)}: it must return a tuple with one gradient "
            "per input"
        )
    if isinstance(xp, Boundary):
        return tuple(xp.leave(gradient) for gradient in gradients)
    return gradients


def check_gradients(
    op: Op, gradients: Sequence[Array | None], shapes: Sequence[tuple[int, ...] | None]
) -> None:
    """Raise GraphError unless there is one gradient per input and each has its input's shape.

    The shape of a Python number is None. Without this check, training would go on with wrong numbers: a missing
    gradient would be skipped, and one of another shape broadcast.
    """
    if len(gradients) != len(shapes):
        raise GraphError(
            f"the backward of {op.name} returned {len(gradients)} gradients for {len(shapes)} inputs: return one for "
            "each, None for an input without a gradient"
        )
    for number, (gradient, shape) in enumerate(zip(gradients, shapes, strict=True)):
        if gradient is not None and shape is not None and getattr(gradient, "shape", ()) != shape:
            raise GraphError(
                f"the backward of {op.name} returned a gradient of shape {getattr(gradient, 'shape', ())} for input "
                f"{number} of shape {shape}: the shapes must be equal. xnn.ops.op.unbroadcast sums the gradient of "
                "an input that was broadcast"
            )


def apply_rule(
    rule: Callable[..., Any], xp: Namespace, arrays: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """Run rule(xp, *arrays, **options), for functions that are not ops: an optimizer's update, a metric."""
    if not isinstance(xp, Boundary):
        try:
            return rule(xp, *arrays, **options)
        except Exception as error:
            said = _explain(error, arrays)
            if said is None:
                raise
            raise said from error
    check_portable(rule, _name(rule))
    options = {key: xp.enter(x) if _is_array(x) else x for key, x in options.items()}
    result = rule(xp, *map(xp.enter, arrays), **options)
    return tuple(map(xp.leave, result)) if isinstance(result, tuple) else xp.leave(result)


def fresh_arrays(
    rule: Callable[..., Any],
    xp: Namespace,
    arrays: Sequence[Any],
    options: Mapping[str, Any],
    changing: Sequence[Any],
) -> Sequence[Any]:
    """Run rule(xp, *arrays, **options), which returns new arrays for those in `changing`, in the same order.

    An optimizer's update is such a rule, and what `Layer.keep` is given. None may follow them, as for a state that is
    not kept. Raises OptionError unless it is a tuple of as many arrays, each of the old one's shape, and DTypeError
    for another dtype: a bare array would be taken for a row for each, and another shape would be broadcast.
    """
    fresh = apply_rule(rule, xp, arrays, options)
    many = len(changing)
    if type(fresh) is not tuple or len(fresh) < many or [x for x in fresh[many:] if x is not None]:
        got = f"a tuple of {len(fresh)}" if isinstance(fresh, tuple) else type(fresh).__name__
        what = "(new parameter, *new state)" if many > 1 else "(new array,)"
        raise OptionError(
            f"the rule {_name(rule)} returned {got}, and must return a tuple with a new array for each of the "
            f"{many} that it changes, as in {what}: an optimizer's `array_names` say what state it keeps"
        )
    for number, (old, new) in enumerate(zip(changing, fresh, strict=False)):
        if not hasattr(new, "dtype") or new.shape != old.shape:
            shape = tuple(new.shape) if hasattr(new, "dtype") else type(new).__name__
            raise OptionError(
                f"the rule {_name(rule)} returned {shape} as array {number}, whose shape is {tuple(old.shape)}: "
                "they must be equal"
            )
        if new.dtype != old.dtype:
            raise DTypeError(
                f"the rule {_name(rule)} made {new.dtype} of {old.dtype} in array {number}: compute with Python "
                "numbers, since NumPy's widen arrays, or convert by xp.astype(y, x.dtype)"
            )
    return fresh[:many]


def _name(rule: Callable[..., Any]) -> str:
    return getattr(rule, "__name__", "") or shown(rule)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and not isinstance(x, type)  # some dtypes are classes that have a `shape`


def may_look(xp: Namespace, x: Array) -> bool:
    """Whether an op may choose its way by the numbers of an array: on the host, if there are any.

    A device would have to be waited for. Workers that share the batch all have to go the same way.
    """
    return x.device == "cpu" and not isinstance(xp, SharedBatch) and 0 not in x.shape


def batch_sum(xp: Namespace, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """The sum over `axis`, where axis 0 is the batch. If workers share the batch, the rows of all are added.

    An op uses it for sums over the batch, and `pairwise_sum` or xp.sum for all others.
    """
    if isinstance(xp, SharedBatch):
        return xp.batch_sum(x, axis=axis, keepdims=keepdims)
    return pairwise_sum(xp, x, axis=axis, keepdims=keepdims)


def batch_sums(xp: Namespace, terms: Sequence[Array], axis: tuple[int, ...]) -> list[Array]:
    """`batch_sum` of several arrays of one shape over the same axes, which stay with extent 1."""
    if isinstance(xp, SharedBatch) and 0 in axis:
        return xp.batch_sums(terms, axis)
    return [pairwise_sum(xp, x, axis=axis, keepdims=True) for x in terms]


def batch_part(xp: Namespace, x: Array, axis: Any = None) -> Array:
    """As `batch_sum`, for a loss and for gradients of parameters.

    If workers share the batch, in fast numerics it is the part of this worker's rows: a training adds the parts of
    all losses and gradients at the end of the step, by one message.
    """
    return batch_sum(xp, x, axis) if isinstance(xp, Boundary) else pairwise_sum(xp, x, axis=axis)


def batch_largest(xp: Namespace, sizes: Array) -> Array:
    """Numbers of at least 0; if workers share the batch, for each element the largest of all workers'."""
    return xp.batch_largest(sizes) if isinstance(xp, SharedBatch) else sizes


def batch_count(xp: Namespace, shape: tuple[int, ...]) -> int:
    """The number of elements of the whole batch, given the shape (rows, ...) of this worker's part."""
    rows = xp.batch_count(shape[0]) if shape and isinstance(xp, SharedBatch) else size_of(shape[:1])
    return rows * size_of(shape[1:])


def batch_mean(xp: Namespace, x: Array) -> Array:
    """The mean over all elements of the whole batch, where axis 0 of x is the batch."""
    if not isinstance(xp, SharedBatch):
        return pairwise_mean(xp, x)
    return xp.batch_sum(x) / float(batch_count(xp, x.shape))
