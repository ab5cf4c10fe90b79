"""Layers made of an op (Function) or of a function of your own (Lambda)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from xnn.errors import OptionError
from xnn.layers.hidden import hidden_in
from xnn.layers.layer import Layer, tried_shape
from xnn.ops import Namespace, Op
from xnn.options import check_known, shown

__all__ = ["Function", "Lambda"]


class Function(Layer):
    """An op of one input as a layer.

    op: an op of `xnn.ops`, or one of your own.
    options: the op's options by name, such as axis=1.

    A model file keeps the name and the options of xnn's own ops; of a model with an op of your own it keeps the
    weights alone. Raises OptionError for an object that is not an op, and for options that the op does not have.

        >>> import numpy as np
        >>> from xnn import layers, ops
        >>> layers.Function(ops.softmax, axis=1)(np.array([[1.0, 1.0]])).tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, op: Op, **options: Any) -> None:
        super().__init__()
        if not isinstance(op, Op):
            raise OptionError(f"Function needs an op such as ops.exp or your own, got {shown(op)}")
        takes = inspect.signature(op.forward).parameters.values()
        if all(p.kind is not p.VAR_KEYWORD for p in takes):
            check_known(f"Function({op.name})", options, [p.name for p in takes if p.kind is p.KEYWORD_ONLY])
        self.op = op
        #: The op's options. A model file holds lists, where ops take tuples.
        self._chosen = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}

    def options(self, xp: Namespace) -> dict[str, Any]:
        return self._chosen

    def config(self) -> dict[str, Any]:
        return {"op": self.op.name, **self._chosen}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tried_shape(self, shape)

    def flops(self, shape: tuple[int, ...]) -> int | None:
        own = type(self.op).__module__.startswith("xnn.")
        return math.prod(self.output_shape(shape)) if own else None

    def __repr__(self) -> str:
        return f"Function({', '.join([self.op.name, *(f'{k}={v!r}'[:60] for k, v in self._chosen.items())])})"


class Lambda(Layer):
    """A function of your own as a layer, without weights.

    function: takes the layer's input and returns its output, computed with ops. A Trainer runs it as `Layer` says of
        `compute`.

    Its code is not saved with a model: `save` keeps the weights of the other layers, and `load_weights` puts them
    into a model that your code builds. A function with weights is a subclass of Layer.
    Raises OptionError for something that is not a function, and for a function that uses layers or parameters that
    are not frozen: they would stay untrained and unsaved.

        >>> import numpy as np
        >>> from xnn import layers, ops
        >>> double = layers.Lambda(lambda x: ops.tanh(x) * 2.0)
        >>> double(np.array([[0.0]])).tolist()
        [[0.0]]
    """

    buildable = False
    _takes_arrays = False  # the function is the user's

    def __init__(self, function: Callable[[Any], Any]) -> None:
        if not callable(function) or isinstance(function, (Layer, type)):
            raise OptionError(f"Lambda needs a function of one value, got {shown(function)}")
        super().__init__()
        self.function = function
        for path, item in hidden_in(function):
            raise OptionError(
                f"the function of a Lambda uses {path}, {shown(item)}, which would stay untrained and unsaved: "
                "write a Layer with it as an attribute, or freeze its parameters"
            )

    def compute(self, x: Any) -> Any:
        return self.function(x)

    def flops(self, shape: tuple[int, ...]) -> int | None:
        return None

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', getattr(self.function, 'name', 'function'))})"
