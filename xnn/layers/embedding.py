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
    """A vector for each of the integers 0 .. num_embeddings - 1: (n, ...) becomes (n, ..., embedding_dim).

    weight (num_embeddings, embedding_dim) starts as N(0, 1), PyTorch's default, unless told otherwise. Nothing is
    differentiated with respect to the integers. Integers outside the range raise LabelError on the host, when a model
    is given data or the layer an array; on a device they give NaN, which training reports. Raises OptionError for
    sizes below 1, DTypeError for inputs that are no integers.
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
        """An array of integers on the weights' backend; on the host also their range."""
        if not backend_of(x, self.weight.array).xp.isdtype(x.dtype, "integral"):
            raise DTypeError(
                f"Embedding({self.num_embeddings}, {self.embedding_dim}) takes integers, got {x.dtype}: "
                "x.astype('int64') if they are whole numbers"
            )
        if isinstance(x, np.ndarray):
            self.check_integers(x)

    def check_integers(self, x: np.ndarray) -> None:
        """Raise LabelError for integers outside the table."""
        if not x.size:
            return
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= self.num_embeddings:
            raise LabelError(
                f"Embedding({self.num_embeddings}, {self.embedding_dim}) got integers from {low} to {high}: they "
                f"must lie in 0 .. {self.num_embeddings - 1}; number them from 0 or take a larger num_embeddings"
            )

    def config(self) -> dict[str, Any]:
        """Sizes and dtype."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": self.dtype,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One axis more."""
        return (*shape, self.embedding_dim)

    def flops(self, shape: tuple[int, ...]) -> int:
        """Nothing is computed."""
        return 0
