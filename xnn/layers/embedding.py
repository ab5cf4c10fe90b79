"""Embedding: learned vectors for integers such as words."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import backend_of
from xnn.errors import DTypeError, LabelError
from xnn.initializers import Initializer, Normal
from xnn.layers.layer import Layer
from xnn.layers.parameter import Parameter
from xnn.ops import Array
from xnn.options import check_count, check_dtype

__all__ = ["Embedding"]


class Embedding(Layer):
    """A learned vector for each integer, such as the number of a word: (n, ...) becomes (n, ..., embedding_dim).

    num_embeddings: how many integers there are, 0 .. num_embeddings - 1.
    embedding_dim: the length of a vector.
    weight_init: how `weight` (num_embeddings, embedding_dim), the table of vectors, starts; N(0, 1) by default, as in
        PyTorch.
    dtype: "float32" (the default) or "float64".
    seed: an integer, from which the weights are drawn, whatever its place in a model. By default the model's seed
        draws them; outside a model the seed is 0.

    Raises OptionError for sizes below 1, DTypeError for inputs that are not integers, and LabelError for integers
    outside the table, on the host: before training, before prediction, and for an array that the layer is given. On a
    device such an integer gives NaN, which training reports.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Embedding(1000, 16)(np.array([[3, 1, 4]])).shape
        (1, 3, 16)
    """

    op = ops.embedding
    takes_integers = True

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        weight_init: Initializer = Normal(1.0),
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.num_embeddings = check_count("num_embeddings", num_embeddings)
        self.embedding_dim = check_count("embedding_dim", embedding_dim)
        self.dtype = check_dtype(dtype)
        self.weight = Parameter("weight", (self.num_embeddings, self.embedding_dim), weight_init, dtype)
        super().__init__(self.weight, seed=seed)

    def check(self, x: Array) -> None:
        if not backend_of(x, self.weight.array).xp.isdtype(x.dtype, "integral"):
            raise DTypeError(
                f"{self!r} takes integers, got {x.dtype}: x.astype('int64') if they are whole numbers"
            )
        if isinstance(x, np.ndarray):
            self.check_integers(x)

    def check_integers(self, x: np.ndarray) -> None:
        if not x.size:
            return
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= self.num_embeddings:
            raise LabelError(
                f"{self!r} got integers from {low} to {high}: they must lie in 0 .. {self.num_embeddings - 1}; "
                "number them from 0, or take a larger num_embeddings"
            )

    def config(self) -> dict[str, Any]:
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": self.dtype,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.embedding_dim)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 0
