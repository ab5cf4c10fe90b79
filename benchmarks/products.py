"""The matrix products of a training step alone: the lower limit of a step's time, and so the machine's own rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends import get_backend
from xnn.backends.kernels.cuda.cublas import Product, cublas_of
from xnn.backends.kernels.cuda.launch import cupy
from xnn.benchmarks.peers import Peer

__all__ = ["DeviceGemm", "Gemm"]

_GRAPH = 100  # the most steps in a CUDA graph, as many as the trainer hands over at once


class Gemm(Peer):
    """The matrix products of a step alone, by NumPy's BLAS on random numbers: the lower limit of a step's time.

    It learns nothing; its losses are 0.
    """

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        rng = np.random.default_rng(0)
        self.first = [array.copy() for pair in zip(weights, biases, strict=True) for array in pair]
        widths = [weights[0].shape[0], *(w.shape[1] for w in weights)]
        self.w = [rng.standard_normal(w.shape, np.float32) for w in weights]
        self.a, self.da = (
            [rng.standard_normal((self.batch, n), np.float32) for n in widths] for _ in range(2)
        )
        self.dw, self.out = [np.empty_like(w) for w in self.w], [np.empty_like(a) for a in self.a]

    def epoch(self, order: np.ndarray) -> np.ndarray:
        w, a, da, out = self.w, self.a, self.da, self.out
        steps = len(order) // self.batch
        for _ in range(steps):
            for i in range(len(w)):
                np.matmul(a[i], w[i], out=out[i + 1])
            for i in reversed(range(len(w))):
                np.matmul(a[i].T, da[i + 1], out=self.dw[i])
                if i:
                    np.matmul(da[i + 1], w[i].T, out=out[i])
        return np.zeros(steps)

    def parameters(self) -> list[np.ndarray]:
        return [a.copy() for a in self.first]


class DeviceGemm(Peer):
    """The products of a step alone on a GPU, by cuBLAS in CUDA graphs of up to 100 steps: the card's own rate.

    The host launches one graph for 100 steps, so that calls cost nothing. It learns nothing; its losses are 0.
    """

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        biases: Any,
        images: Any,
        labels: Any,
        batch: int,
        learning_rate: float,
    ) -> None:
        self.lib, self.batch = get_backend("cupy"), batch
        widths = [weights[0].shape[0], *(w.shape[1] for w in weights)]
        rng = np.random.default_rng(0)

        def made(*shape: int) -> Any:
            return self.lib.to_device(rng.standard_normal(shape, np.float32))

        with self.lib.stream():
            self.w, self.dw = ([made(*w.shape) for w in weights] for _ in range(2))
            self.a, self.da, self.out = ([made(batch, n) for n in widths] for _ in range(3))
            self.products = self._products()
            for product in self.products:  # before a capture: cuBLAS then loads its kernels
                product()
        self.graphs: dict[int, Any] = {}

    def _products(self) -> list[Product]:
        """The products of a step, in its order; they read what no product writes."""
        cublas = cublas_of(cupy().cuda.get_current_stream())
        w, dw, a, da, out = self.w, self.dw, self.a, self.da, self.out
        found = [Product(cublas, a[i], w[i], out[i + 1]) for i in range(len(w))]
        for i in reversed(range(len(w))):
            found.append(Product(cublas, a[i], da[i + 1], dw[i], turned=(True, False)))
            if i:
                found.append(Product(cublas, da[i + 1], w[i], out[i], turned=(False, True)))
        return found

    def epoch(self, order: np.ndarray) -> np.ndarray:
        steps = len(order) // self.batch
        with self.lib.guard(), self.lib.stream():
            for start in range(0, steps, _GRAPH):
                self._graph(min(_GRAPH, steps - start)).launch()
        return np.zeros(steps)

    def _graph(self, steps: int) -> Any:
        """The CUDA graph of the products of this number of steps."""
        if steps not in self.graphs:
            stream = cupy().cuda.get_current_stream()
            stream.begin_capture()
            for _ in range(steps):
                for product in self.products:
                    product()
            self.graphs[steps] = stream.end_capture()
        return self.graphs[steps]

    def parameters(self) -> list[np.ndarray]:
        return [self.lib.to_host(w) for w in self.w]

    def device_bytes(self) -> int:
        return self.lib.memory()["peak"]
