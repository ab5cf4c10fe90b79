"""The networks of `networks.py` in JAX: one jitted lax.scan over an epoch, as in `peers.JaxScan`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from xnn.benchmarks.networks import NETWORKS, Description, has_adamw
from xnn.benchmarks.peers import Jax, batches_of, need

__all__ = ["JaxNetwork"]


class JaxNetwork(Jax):
    """JAX with one of these networks. Dropout draws from a key that each step splits."""

    def __init__(self, network: str, *given: Any) -> None:
        self.network = network
        super().__init__(*given)

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        jax = self.jax = self._import()
        self.nn, self.np = jax.nn, need("jax.numpy")
        self.p = [self.np.array(value) for value in weights]
        self.x, self.y = self.np.array(self.x.reshape(-1, 1, 28, 28)), self.np.array(self.y, self.np.int32)
        self.key = jax.random.key(0)
        zeros = jax.tree.map(self.np.zeros_like, self.p)
        self.state = (zeros, zeros, self.np.float32(0.0))
        rule = partial(self._adamw if has_adamw(self.network) else self._sgd, learning_rate)

        def loss(p: Any, x: Any, y: Any, key: Any) -> Any:
            logs = jax.nn.log_softmax(self._run(NETWORKS[self.network], iter(p), x, key))
            return -self.np.take_along_axis(logs, y[:, None], axis=1).mean()

        def step(state: Any, rows: Any) -> Any:
            p, kept, key, images, labels = state
            key, own = jax.random.split(key)
            value, gradients = jax.value_and_grad(loss)(p, images[rows], labels[rows], own)
            p, kept = rule(p, gradients, kept)
            return (p, kept, key, images, labels), value

        self.scan = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))

    def _sgd(self, rate: float, p: Any, gradients: Any, kept: Any) -> Any:
        return self.jax.tree.map(lambda a, g: a - rate * g, p, gradients), kept

    def _adamw(self, rate: float, p: Any, gradients: Any, kept: Any) -> Any:
        """One step of AdamW with its usual numbers. kept: both moving averages and the number of steps."""
        each, (m, v, steps) = self.jax.tree.map, kept
        m, v = (
            each(lambda m, g: 0.9 * m + 0.1 * g, m, gradients),
            each(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients),
        )
        steps += 1.0
        first, second = 1.0 - 0.9**steps, 1.0 - 0.999**steps

        def moved(a: Any, m: Any, v: Any) -> Any:
            return a * (1.0 - 0.01 * rate) - rate * (m / first) / (self.np.sqrt(v / second) + 1e-8)

        return each(moved, p, m, v), (m, v, steps)

    def _run(self, described: Description, p: Iterator[Any], x: Any, key: Any) -> Any:
        """The layers' outputs. p: the parameters, in order."""
        for kind, given, options in described:
            x = getattr(self, f"_{kind.lower()}", self._function)(kind, given, options, p, x, key)
        return x

    def _function(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        functions = {"ReLU": self.nn.relu, "SiLU": self.nn.silu, "Identity": lambda x: x}
        return functions[kind](x)

    def _gelu(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        return self.nn.gelu(x, approximate=False)

    def _flatten(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        return x.reshape(len(x), -1)

    def _dense(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        return x @ next(p) + next(p)

    def _conv2d(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        w, b, pad = next(p), next(p), (options["padding"],) * 2
        y = self.jax.lax.conv_general_dilated(x, w, (options["stride"],) * 2, (pad, pad))
        return y + b[:, None, None]

    def _maxpool2d(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        window = (1, 1, given[0], given[0])
        return self.jax.lax.reduce_window(x, -self.np.inf, self.jax.lax.max, window, window, "VALID")

    def _globalavgpool(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        return x.mean(axis=(2, 3))

    def _batchnorm(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return self._normalized(x, (0, *range(2, x.ndim))) * next(p).reshape(shape) + next(p).reshape(shape)

    def _layernorm(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        return self._normalized(x, -1) * next(p) + next(p)

    def _normalized(self, x: Any, axis: Any) -> Any:
        away = x - x.mean(axis=axis, keepdims=True)
        return away / self.np.sqrt((away * away).mean(axis=axis, keepdims=True) + 1e-5)

    def _dropout(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        keep = self.jax.random.bernoulli(key, 1.0 - given[0], x.shape)
        return self.np.where(keep, x / (1.0 - given[0]), 0.0)

    def _residual(self, kind: str, given: Any, options: Any, p: Any, x: Any, key: Any) -> Any:
        return self._run(given[0], p, x, key) + self._run(given[1], p, x, key)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        batches = batches_of(order.astype(np.int32), self.batch)
        state = self.p, self.state, self.key, self.x, self.y
        (self.p, self.state, self.key, *_), losses = self.scan(state, batches)
        return np.array(losses, dtype=np.float64)

    def parameters(self) -> list[np.ndarray]:
        return [np.array(a) for a in self.p]
