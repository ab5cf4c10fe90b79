"""Activation functions, and the layers that only change a sample's shape: one op each, no parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from xnn import ops
from xnn.errors import OptionError, ShapeError
from xnn.layers.layer import Layer
from xnn.ops import Namespace
from xnn.ops.op import size_of
from xnn.options import check_integer, check_real, checked, is_one_of, shown

__all__ = [
    "ELU", "GELU", "SELU", "Flatten", "LeakyReLU", "LogSoftmax", "ReLU", "Reshape", "SiLU", "Sigmoid", "Softmax",
    "Softplus", "Tanh", "elementwise",
]  # fmt: skip


class _Activation(Layer):
    """An op of one input. Its options are attributes of the same names."""

    #: Whether each element of the output depends on one element of the input.
    by_element: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    def config(self) -> dict[str, Any]:
        return dict(self.options(None))


def elementwise() -> dict[str, type[Layer]]:
    """The activations that work element by element, under the names of their ops: {"relu": ReLU, ...}.

    The command line and the networks of the digests find new activations here.
    """
    kinds = [kind for kind in _Activation.__subclasses__() if kind.by_element]
    return {name: kind for kind in kinds for name in ops.__all__ if getattr(ops, name) is kind.op}


class ReLU(_Activation):
    """Rectified linear unit: y = max(x, 0), element by element.

    NaN stays NaN. The input is left as it is.
    Source: Nair and Hinton, ICML 2010.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.ReLU()(np.array([[-1.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """

    op = ops.relu


class LeakyReLU(_Activation):
    """Leaky rectified linear unit: y = x where x > 0, else negative_slope * x.

    negative_slope: a finite number; 0.01 by default.

    Raises OptionError for any other negative_slope.
    Source: Maas, Hannun and Ng, ICML 2013.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.LeakyReLU(0.5)(np.array([[-1.0, 2.0]])).tolist()
        [[-0.5, 2.0]]
    """

    op = ops.leaky_relu
    negative_slope: float = checked(check_real)

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"negative_slope": self.negative_slope}


class ELU(_Activation):
    """Exponential linear unit: y = x where x > 0, else alpha (e^x - 1).

    alpha: a finite number; 1 by default.

    Raises OptionError for any other alpha.
    Source: Clevert, Unterthiner and Hochreiter, ICLR 2016.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.ELU()(np.array([[0.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """

    op = ops.elu
    alpha: float = checked(check_real)

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"alpha": self.alpha}


class SELU(_Activation):
    """Scaled exponential linear unit: y = 1.0507... elu(x) with alpha = 1.6732...

    With these two numbers, mean 0 and variance 1 are a fixed point from layer to layer, provided that the weights
    start as `xnn.initializers.LeCun()`.
    Source: Klambauer et al., NeurIPS 2017.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.SELU()(np.array([[0.0, 1.0]])).round(4).tolist()
        [[0.0, 1.0507]]
    """

    op = ops.selu


class GELU(_Activation):
    """Gaussian error linear unit: y = x P(x), where P is the distribution function of the normal distribution.

    approximate: "none" (the default) computes P with the error function; "tanh" uses the approximation
        P(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.

    Raises OptionError for any other approximate.
    Source: Hendrycks and Gimpel, 2016 (arXiv 1606.08415).

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.GELU("tanh")(np.array([[0.0, 1.0]])).round(3).tolist()
        [[0.0, 0.841]]
    """

    op = ops.gelu

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        if not is_one_of(approximate, ("none", "tanh")):
            raise OptionError(f"GELU: approximate must be 'none' or 'tanh', got {shown(approximate)}")
        self.approximate = approximate

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"approximate": self.approximate}


class SiLU(_Activation):
    """Sigmoid linear unit, also called swish: y = x sigmoid(x).

    Source: Elfwing, Uchibe and Doya, 2017 (arXiv 1702.03118).

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.SiLU()(np.array([[0.0, 1.0]])).round(3).tolist()
        [[0.0, 0.731]]
    """

    op = ops.silu


class Softplus(_Activation):
    """A smooth ReLU: y = ln(1 + e^(beta x)) / beta.

    beta: a finite number above 0; 1 by default. The larger it is, the closer the function is to ReLU.

    Raises OptionError for a beta that is not a finite number; a beta of 0 or below raises it in `forward`.
    Source: Dugas et al., NIPS 2000.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Softplus()(np.array([[0.0]])).round(4).tolist()  # ln 2
        [[0.6931]]
    """

    op = ops.softplus
    beta: float = checked(check_real)

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"beta": self.beta}


class Sigmoid(_Activation):
    """Logistic sigmoid: y = 1 / (1 + e^-x), element by element; no exponential overflows.

    A model that trains with `losses.BinaryCrossEntropy` ends without it: that loss takes logits.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Sigmoid()(np.array([[0.0]])).tolist()
        [[0.5]]
    """

    op = ops.sigmoid


class Tanh(_Activation):
    """Hyperbolic tangent: y = (e^x - e^-x) / (e^x + e^-x), element by element.

    >>> import numpy as np
    >>> from xnn import layers
    >>> layers.Tanh()(np.array([[0.0]])).tolist()
    [[0.0]]
    """

    op = ops.tanh


class Softmax(_Activation):
    """Probabilities from logits: y_i = e^(x_i) / sum over j of e^(x_j), along one axis.

    axis: an integer, the axis along which the outputs sum to 1; -1, the last, by default.

    A model that trains with `losses.SoftmaxCrossEntropy` ends without it: that loss takes logits.
    Raises OptionError for an axis that is not an integer.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Softmax()(np.array([[1.0, 1.0]])).tolist()
        [[0.5, 0.5]]
    """

    op = ops.softmax
    by_element = False

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = check_integer("Softmax: axis", axis)

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"axis": self.axis}


class LogSoftmax(_Activation):
    """The logarithm of Softmax: y_i = x_i - ln(sum over j of e^(x_j)), along one axis.

    axis: an integer, the axis along which the exponentials of the outputs sum to 1; -1, the last, by default.

    `losses.KLDivergence` takes its outputs. Raises OptionError for an axis that is not an integer.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.LogSoftmax()(np.array([[1.0, 1.0]])).round(4).tolist()  # -ln 2
        [[-0.6931, -0.6931]]
    """

    op = ops.log_softmax
    by_element = False

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = check_integer("LogSoftmax: axis", axis)

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"axis": self.axis}


class Flatten(_Activation):
    """Each sample as one row: (n, ...) becomes (n, the number of elements of a sample).

    >>> import numpy as np
    >>> from xnn import layers
    >>> layers.Flatten()(np.ones((2, 3, 4))).shape
    (2, 12)
    """

    op = ops.flatten
    by_element = False

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 0


class Reshape(Layer):
    """Each sample in another shape: (n, ...) becomes (n, *shape).

    shape: the shape of one sample, an integer or a sequence of integers of at least 1. One of them may be -1: it
        becomes whatever makes the number of elements fit.

    Raises OptionError for other shapes; ShapeError for samples that have another number of elements.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Reshape((1, 28, 28))(np.ones((5, 784))).shape
        (5, 1, 28, 28)
    """

    op = ops.reshape

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        given = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        self.shape = tuple(check_integer("Reshape: each extent", extent) for extent in given)
        if not self.shape or min(self.shape) < -1 or 0 in self.shape or self.shape.count(-1) > 1:
            raise OptionError(f"Reshape takes extents of at least 1, one of which may be -1, got {given}")

    def compute(self, x: Any) -> Any:
        shape = tuple(x.shape)
        return self.op(x, shape=(shape[0], *self.output_shape(shape[1:])))

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        size, known = size_of(shape), math.prod(extent for extent in self.shape if extent != -1)
        missing = size // known
        if size % known or (-1 not in self.shape and size != known):
            raise ShapeError(
                f"Reshape{self.shape} cannot take samples of shape {shape}: they have {size} elements"
            )
        return tuple(missing if extent == -1 else extent for extent in self.shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 0
