"""What an op is: a differentiable function, as a stateless pair `forward` and `backward`.

An op is the definition of its mathematics. It is written for `xp`, the Array API namespace of its arrays (NumPy
itself on the CPU), which the caller passes in. So the same lines run on every backend. Inside an op there are only
`+ - * /`, comparisons and functions of `xp`, with `xp.where` for masks. There are no array methods, no `@` or `**`,
no writing in place, and functions that create arrays are given `device=x.device`. A test reads the source of all ops
and checks these rules.

Your own op is a class with two methods. It can be called with arrays, used in a graph, differentiated, and used as a
layer:

>>> import numpy as np, xnn
>>> from xnn import layers, ops
>>> class Square(xnn.Op):
...     def forward(self, xp, x):
...         return x * x, x
...     def backward(self, xp, grad, x):
...         return (2.0 * x * grad,)
>>> square, x = Square(), np.array([1.0, 2.0])
>>> square(x)
array([1., 4.])
>>> xnn.grad(lambda x: ops.sum(square(x)))(x)
array([2., 4.])
>>> node = square(xnn.graph.Input())
>>> layer = layers.Function(square)

How xnn runs an op, and what exact numerics change, is in `xnn/ops/apply.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from xnn.errors import OptionError
from xnn.ops.sums import size_of, sum_over_axes

__all__ = ["Array", "Namespace", "Op", "install", "size_of", "unbroadcast"]

#: An array of any backend. The Array API has no common base class, hence Any.
Array: TypeAlias = Any
#: An Array API namespace, called `xp` everywhere.
Namespace: TypeAlias = Any

Applier: TypeAlias = Callable[["Op", tuple[Any, ...], dict[str, Any]], Any]


class Op:
    """A differentiable function: the base class of all ops.

    A subclass defines two methods:

    forward(xp, *inputs, **options) -> (output, saved)
        Computes the output. `saved` is anything that `backward` will need. Options are keyword-only and are not
        differentiated.
    backward(xp, grad, saved) -> (gradient of input 0, gradient of input 1, ...)
        Computes the gradients of the inputs, given the gradient of the output. Each has its input's shape. None
        stands for an input without a gradient: labels, masks, Python numbers.

    Neither method changes its inputs, `grad` or `saved`. What they return may be a view of these (as reshape does) or
    `grad` itself (as add does).

    When the op is called, options are given by name. Those that are listed in `positional` may also be given by
    position, after the inputs:

    >>> import numpy as np, xnn
    >>> class Scaled(xnn.Op):
    ...     positional = ("factor",)
    ...     def forward(self, xp, x, *, factor):
    ...         return x * factor, factor
    ...     def backward(self, xp, grad, factor):
    ...         return (grad * factor,)
    >>> Scaled()(np.ones(2), 3.0)
    array([3., 3.])
    """

    #: Options that may also be given by position, in this order, after the inputs.
    positional: ClassVar[tuple[str, ...]] = ()
    #: The number of inputs; only for an op that has `positional` options.
    arity: ClassVar[int] = 1
    #: Whether the op stands for a user's layer, which may draw random numbers. A program runs it as it is.
    opaque = False
    #: Whether no input ever gets a gradient, as from a comparison.
    flat = False
    #: For exact numerics: whether the op is given arrays as they are stored, and converts them itself.
    takes_stored = False
    #: For exact numerics: whether the op returns its output as it is to be stored.
    gives_stored = False
    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., tuple[Array | None, ...]]

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Apply the op. Arrays give an array, recorded values give a recorded value, graph nodes give a node."""
        if self.positional and len(inputs) > self.arity:
            inputs, options = self._name_options(inputs, options)
        return _apply(self, inputs, options)

    def check_options(self, **options: Any) -> None:
        """Raise OptionError for options that are out of range. A subclass with such options overrides it.

        It is called before `forward` whenever there are options, and by the classes that keep them, such as losses.
        """

    def _name_options(
        self, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs and options, when options were given by position."""
        given = inputs[self.arity :]
        named = dict(zip(self.positional, given, strict=False))
        if len(given) > len(self.positional) or not named.keys().isdisjoint(options):
            twice = ", ".join(name for name in named if name in options)
            got = f"{twice} twice" if twice else f"{len(inputs)} positional arguments"
            inputs_of = "its input" if self.arity == 1 else f"its {self.arity} inputs"
            raise OptionError(
                f"{self.name} got {got}: by position it takes {inputs_of} and {', '.join(self.positional)}, each "
                "once, and other options by name"
            )
        return inputs[: self.arity], {**options, **named}

    def __deepcopy__(self, memo: Any) -> Op:
        """Return the op itself: it has no state to copy, and kernels, exact forms and files find it by identity."""
        return self

    def without_input_gradient(self, saved: Any) -> Any:
        """`saved` without what only the gradient of the first input needs.

        `backward` may then return None for the first input. It is used for the first layer of a network: nobody reads
        the gradient of the data, and it can cost as much as the gradient of the weights.
        """
        return saved

    @property
    def name(self) -> str:
        """The class's name in lower case: `relu`, `softmaxcrossentropy`."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _not_installed(op: Op, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    raise NotImplementedError("no way to apply an op is installed yet: import xnn before calling an op")


_apply: Applier = _not_installed


def install(applier: Applier) -> None:
    """Set the function that is called when an op is called.

    `xnn.graph.value` calls this. The ops themselves know neither backends nor graphs.
    """
    global _apply
    _apply = applier


def unbroadcast(xp: Namespace, grad: Array, like: Any) -> Array | None:
    """Sum the gradient over the axes along which `like` was broadcast, so that it has like's shape.

    `like` is an op's input or its shape. A Python number gets None, since it has no gradient.

    >>> import numpy as np
    >>> unbroadcast(np, np.ones((2, 3)), (3,))
    array([2., 2., 2.])
    """
    shape = like if isinstance(like, tuple) else getattr(like, "shape", None)
    if shape is None:
        return None
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    stretched = [
        axis + added for axis, extent in enumerate(shape) if extent == 1 and grad.shape[axis + added] != 1
    ]
    total = sum_over_axes(xp, grad, (*range(added), *stretched))
    return xp.reshape(total, shape) if stretched or not shape else total
