"""The networks of `networks.py` in Keras on JAX, trained by `fit`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xnn.benchmarks.networks import NETWORKS, Description, has_adamw
from xnn.benchmarks.peers import Peer, batches_of, need

__all__ = ["KerasNetwork"]

_ACTIVATIONS = {"ReLU": "relu", "SiLU": "silu", "GELU": "gelu"}


class KerasNetwork(Peer):
    """Keras with one of these networks. `fit` returns only an epoch's mean loss.

    Images are (28, 28, 1), Keras's own order. Before a Flatten they are brought into xnn's order, so that the weights
    of the dense layer after it are the same.
    """

    def __init__(self, network: str, *given: Any) -> None:
        self.network = network
        super().__init__(*given)

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
        keras = self.keras = need("keras")
        self.layers = keras.layers
        self.parts: list[Any] = []
        images = keras.Input((28, 28, 1))
        self.model = keras.Model(images, self._run(NETWORKS[self.network], images))
        given = iter(weights)
        for part in self.parts:
            part.set_weights([_turned(next(given)), next(given), *part.get_weights()[2:]])
        optimizers = keras.optimizers
        if has_adamw(self.network):
            rule = optimizers.AdamW(learning_rate, weight_decay=0.01, epsilon=1e-8)
        else:
            rule = optimizers.SGD(learning_rate)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(rule, loss, jit_compile=True)
        self.x = self.x.reshape(-1, 28, 28, 1)

    def _run(self, described: Description, x: Any) -> Any:
        """The layers' output for a symbolic input."""
        for kind, given, options in described:
            x = getattr(self, f"_{kind.lower()}", self._function)(kind, given, options, x)
        return x

    def _with_weights(self, layer: Any) -> Any:
        self.parts.append(layer)
        return layer

    def _function(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self.layers.Activation(_ACTIVATIONS[kind])(x)

    def _gelu(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self.layers.Activation(lambda x: self.keras.activations.gelu(x, approximate=False))(x)

    def _identity(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return x

    def _flatten(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self.layers.Flatten()(self.layers.Permute((3, 1, 2))(x))

    def _dense(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self._with_weights(self.layers.Dense(given[1]))(x)

    def _conv2d(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        if options["padding"]:
            x = self.layers.ZeroPadding2D(options["padding"])(x)
        return self._with_weights(self.layers.Conv2D(given[1], given[2], options["stride"]))(x)

    def _maxpool2d(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self.layers.MaxPooling2D(given[0])(x)

    def _globalavgpool(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self.layers.GlobalAveragePooling2D()(x)

    def _batchnorm(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self._with_weights(self.layers.BatchNormalization(momentum=0.9, epsilon=1e-5))(x)

    def _layernorm(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self._with_weights(self.layers.LayerNormalization(epsilon=1e-5))(x)

    def _dropout(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        return self.layers.Dropout(given[0])(x)

    def _residual(self, kind: str, given: Any, options: Any, x: Any) -> Any:
        main = self._run(given[0], x)
        return self.layers.Add()([main, self._run(given[1], x)])

    def epoch(self, order: np.ndarray) -> np.ndarray:
        batches = batches_of(order, self.batch)
        rows = batches.ravel()
        done = self.model.fit(
            self.x[rows], self.y[rows], batch_size=self.batch, epochs=1, shuffle=False, verbose=0
        )
        return np.full(len(batches), done.history["loss"][0])

    def parameters(self) -> list[np.ndarray]:
        found = []
        for part in self.parts:
            weight, bias = part.get_weights()[:2]
            found += [weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight, bias]
        return [np.ascontiguousarray(p) for p in found]


def _turned(weight: np.ndarray) -> np.ndarray:
    """A kernel (outputs, inputs, height, width) in Keras's order (height, width, inputs, outputs)."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight
