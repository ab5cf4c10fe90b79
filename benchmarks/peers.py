"""Other libraries as contestants of the benchmark, each in the form that is fastest on a CPU.

All train the same network: dense layers with ReLU between them, softmax cross-entropy, plain SGD, float32, whole
batches in a given order. A contestant imports its library when it is made, so that a process holds one library only.
Slower variants that a reader might try are named beside the one that is used.

Threads: PyTorch's are set by set_threads(). The others read an environment variable when their process starts:
OMP_NUM_THREADS and OPENBLAS_NUM_THREADS (NumPy, scikit-learn, Thinc), NPROC (JAX). tinygrad uses one thread.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.errors import MissingExtraError

__all__ = ["PEERS", "Jax", "JaxScan", "Peer", "Torch", "batches_of", "interleaved", "need", "set_threads"]


class Peer:
    """Base class of contestants.

    weights: initial weights, (inputs, outputs) each. biases: initial biases. Both are copied.
    images: uint8 (n, inputs); they are divided by 255 once, here. labels: int64 (n,).
    batch: the batch size. learning_rate: of SGD.
    """

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        batch: int,
        learning_rate: float,
    ) -> None:
        self.x: Any = np.divide(images, 255, dtype=np.float32)
        self.y: Any = labels
        self.batch = batch
        self._build(list(weights), list(biases), learning_rate)

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        raise NotImplementedError

    def epoch(self, order: np.ndarray) -> np.ndarray:
        """Train on the whole batches of the rows `order`. Returns the loss of every step, float64."""
        raise NotImplementedError

    def parameters(self) -> list[np.ndarray]:
        """Copies of the parameters w0, b0, w1, b1, ...; weights are (inputs, outputs)."""
        raise NotImplementedError

    def device_bytes(self) -> int | None:
        """The most bytes that were taken from the GPU's memory, or None for a contestant on the CPU."""
        return None

    def plan(self) -> dict[str, Any]:
        """How a step runs, for contestants of xnn."""
        return {}


def set_threads(name: str, threads: int) -> None:
    """Set the number of PyTorch's threads. Call it before the contestant is made; for others it does nothing."""
    if name.startswith("torch"):
        need("torch").set_num_threads(threads)


def need(module: str, package: str = "") -> Any:
    """Import a contestant's library. Raises MissingExtraError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        raise MissingExtraError(f"{package} is not installed: pip install {package}") from error


def interleaved(weights: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
    """The parameters w0, b0, w1, b1, ..."""
    return [array for pair in zip(weights, biases, strict=True) for array in pair]


def batches_of(order: np.ndarray, batch: int) -> np.ndarray:
    """The rows of all whole batches, (steps, batch)."""
    steps = len(order) // batch
    return order[: steps * batch].reshape(steps, batch)


class Torch(Peer):
    """PyTorch in eager mode: nn.Sequential and the fused SGD. Slower variants: foreach and the plain loop."""

    place = "cpu"

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        torch = self.torch = need("torch")
        stack: list[Any] = []
        for w, b in zip(weights, biases, strict=True):
            dense = torch.nn.Linear(*w.shape)
            with torch.no_grad():
                dense.weight.copy_(torch.from_numpy(w.T.copy()))
                dense.bias.copy_(torch.from_numpy(b.copy()))
            stack += [dense, torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*stack[:-1]).to(self.place)
        self.loss = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=learning_rate, fused=True)
        self.x, self.y = torch.from_numpy(self.x).to(self.place), torch.tensor(self.y).to(self.place)

    def _step(self, rows: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.net(self.x.index_select(0, rows)), self.y.index_select(0, rows))
        loss.backward()
        self.optimizer.step()
        return loss

    def epoch(self, order: np.ndarray) -> np.ndarray:
        return np.array(
            [self._step(rows).item() for rows in self.torch.from_numpy(batches_of(order, self.batch))]
        )

    def parameters(self) -> list[np.ndarray]:
        return [p.detach().cpu().numpy().T.copy() for p in self.net.parameters()]


class TorchCompile(Peer):
    """PyTorch with torch.compile: the whole step as one graph with a wrapper in C++.

    Slower variants: the default wrapper in Python; a compiled module with backward() and an optimizer.
    max_autotune is equally fast and compiles longer.
    """

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        torch = self.torch = need("torch")
        functional = torch.nn.functional
        self.x, self.y = torch.from_numpy(self.x), torch.tensor(self.y)
        self.p = [torch.from_numpy(a.T.copy()) for a in interleaved(weights, biases)]

        def loss(p: list[Any], x: Any, y: Any) -> Any:
            for i in range(0, len(p), 2):
                x = functional.linear(functional.relu(x) if i else x, p[i], p[i + 1])
            return functional.cross_entropy(x, y)

        def step(p: list[Any], images: Any, labels: Any, rows: Any) -> Any:
            gradients, value = torch.func.grad_and_value(loss)(p, images[rows], labels[rows])
            for parameter, gradient in zip(p, gradients, strict=True):
                parameter.sub_(gradient, alpha=learning_rate)
            return value

        self.step = torch.compile(step, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})

    def epoch(self, order: np.ndarray) -> np.ndarray:
        rows = self.torch.from_numpy(batches_of(order, self.batch))
        return np.array([self.step(self.p, self.x, self.y, r).item() for r in rows])

    def parameters(self) -> list[np.ndarray]:
        return [p.numpy().T.copy() for p in self.p]


class Jax(Peer):
    """JAX: a jitted step with donated parameters in a Python loop. Losses are fetched at the end of an epoch."""

    place = "cpu"

    def _import(self) -> Any:
        """Import JAX for one kind of device: by default it takes a GPU if there is one, with most of its memory."""
        os.environ["JAX_PLATFORMS"] = self.place
        return need("jax")

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        jax = self.jax = self._import()
        jnp = need("jax.numpy")
        self.p = [(jnp.array(w), jnp.array(b)) for w, b in zip(weights, biases, strict=True)]
        self.x, self.y = jnp.array(self.x), jnp.array(self.y, jnp.int32)

        def loss(p: Any, x: Any, y: Any) -> Any:
            for w, b in p[:-1]:
                x = jax.nn.relu(x @ w + b)
            logs = jax.nn.log_softmax(x @ p[-1][0] + p[-1][1])
            return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()

        def step(p: Any, images: Any, labels: Any, rows: Any) -> Any:
            value, gradients = jax.value_and_grad(loss)(p, images[rows], labels[rows])
            return jax.tree.map(lambda a, g: a - learning_rate * g, p, gradients), value

        def scan(p: Any, images: Any, labels: Any, batches: Any) -> Any:
            return jax.lax.scan(lambda p, rows: step(p, images, labels, rows), p, batches)

        self.plain = step
        self.step, self.scan = jax.jit(step, donate_argnums=0), jax.jit(scan, donate_argnums=0)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        losses = []
        for rows in batches_of(order.astype(np.int32), self.batch):
            self.p, loss = self.step(self.p, self.x, self.y, rows)
            losses.append(loss)
        return np.array(self.jax.device_get(losses), dtype=np.float64)

    def parameters(self) -> list[np.ndarray]:
        return [np.array(a) for pair in self.p for a in pair]


class JaxScan(Jax):
    """JAX: a jitted lax.scan over an epoch. It is compiled again for each new number of batches."""

    def epoch(self, order: np.ndarray) -> np.ndarray:
        batches = batches_of(order.astype(np.int32), self.batch)
        self.p, losses = self.scan(self.p, self.x, self.y, batches)
        return np.array(losses, dtype=np.float64)


class Sklearn(Peer):
    """scikit-learn's MLPClassifier with partial_fit. It returns only an epoch's mean loss."""

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        self.model = need("sklearn.neural_network", "scikit-learn").MLPClassifier(
            [w.shape[1] for w in weights[:-1]],
            solver="sgd",
            momentum=0,
            nesterovs_momentum=False,
            alpha=0,
            learning_rate="constant",
            learning_rate_init=learning_rate,
            batch_size=self.batch,
            shuffle=False,
        )
        classes, n = np.arange(weights[-1].shape[1]), self.batch
        self.model.partial_fit(self.x[:n], self.y[:n], classes=classes)  # makes coefs_ and intercepts_
        for made, given in zip(self.model.coefs_ + self.model.intercepts_, [*weights, *biases], strict=True):
            made[...] = given

    def epoch(self, order: np.ndarray) -> np.ndarray:
        batches = batches_of(order, self.batch)
        self.model.partial_fit(self.x[batches.ravel()], self.y[batches.ravel()])
        return np.full(len(batches), self.model.loss_)

    def parameters(self) -> list[np.ndarray]:
        return [a.copy() for a in interleaved(self.model.coefs_, self.model.intercepts_)]


class Thinc(Peer):
    """Thinc: a chain of layers on NumpyOps. The loss is computed here, because Thinc's returns the gradient only.

    It uses NumPy's BLAS. Thinc's default, BLIS on one thread, is faster at batch size 32 and slower above.
    """

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        thinc = need("thinc.api")
        shapes = [w.shape for w in weights]
        with thinc.use_ops("numpy", use_blis=False):
            hidden = [thinc.Relu(nI=n, nO=m) for n, m in shapes[:-1]]
            self.model = thinc.chain(*hidden, thinc.Softmax(nI=shapes[-1][0], nO=shapes[-1][1])).initialize()
        for layer, w, b in zip(self.model.layers, weights, biases, strict=True):
            layer.set_param("W", w.T.copy())
            layer.set_param("b", b.copy())
        self.optimizer = thinc.SGD(learning_rate, L2=0.0, grad_clip=0.0, use_averages=False)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        losses, columns = [], np.arange(self.batch)
        for rows in batches_of(order, self.batch):
            labels = self.y[rows]
            p, backprop = self.model.begin_update(self.x[rows])
            losses.append(-np.log(p[columns, labels]).mean())
            p[columns, labels] -= 1
            p /= self.batch
            backprop(p)
            self.model.finish_update(self.optimizer)
        return np.array(losses, dtype=np.float64)

    def parameters(self) -> list[np.ndarray]:
        return [layer.get_param(name).T.copy() for layer in self.model.layers for name in ("W", "b")]


class Tinygrad(Peer):
    """tinygrad on its CPU device, which needs clang: a TinyJit step with the batch's number as a Variable.

    Slower variants: rows passed to each step as a tensor with a loss fetched from each take twice as long; BEAM=2
    gains nothing.
    """

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        tinygrad, nn = need("tinygrad"), need("tinygrad.nn")
        if shutil.which(clang := os.environ.get("CC", "clang")) is None:
            raise MissingExtraError(
                f"tinygrad's CPU device needs the C compiler {clang}, which was not found: apt install clang"
            )
        need("tinygrad.helpers").DEV.value = "CPU"
        tensor = self.tensor = tinygrad.Tensor
        batch, steps = self.batch, len(self.y) // self.batch
        self.x, self.y = tensor(self.x).realize(), tensor(self.y.astype(np.int32)).realize()
        self.layers = [nn.Linear(*w.shape) for w in weights]
        for layer, w, b in zip(self.layers, weights, biases, strict=True):
            layer.weight, layer.bias = tensor(w.T.copy()).realize(), tensor(b.copy()).realize()
        optimizer = nn.optim.SGD(nn.state.get_parameters(self.layers), lr=learning_rate)
        self.order = tensor.zeros(steps * batch, dtype="int").contiguous().realize()
        self.losses = tensor.zeros(steps).contiguous().realize()
        self.number = tinygrad.Variable("number", 0, steps - 1)

        def step(k: Any) -> None:
            with tinygrad.Context(TRAINING=1):
                rows = self.order.shrink(((k * batch, k * batch + batch),)).contiguous()
                x = self.layers[0](self.x[rows])
                for layer in self.layers[1:]:
                    x = layer(x.relu())
                optimizer.zero_grad()
                loss = x.sparse_categorical_crossentropy(self.y[rows]).backward()
                kept = self.losses.shrink(((k, k + 1),)).assign(loss.reshape(1))
                kept.realize(*optimizer.schedule_step())

        self.step = tinygrad.TinyJit(step)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        rows = batches_of(order.astype(np.int32), self.batch)
        self.order.shrink(((0, rows.size),)).assign(self.tensor(rows.ravel())).realize()
        for k in range(len(rows)):
            self.step(self.number.bind(k))
        return np.array(self.losses.numpy()[: len(rows)], dtype=np.float64)

    def parameters(self) -> list[np.ndarray]:
        return [a.numpy().T.copy() for layer in self.layers for a in (layer.weight, layer.bias)]


class Numpy(Peer):
    """NumPy without a library: almost no allocation in a step, all parameters in one array with one update.

    Logits are (classes, batch), so that reductions run along contiguous vectors. The gradient of the logits is scaled
    by learning_rate / batch, so that the gradients of the parameters are the updates to subtract.
    """

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        batch, self.scale = self.batch, np.float32(learning_rate / self.batch)
        first = interleaved(weights, biases)
        self.flat = np.concatenate([a.ravel() for a in first])
        self.update, cuts = np.empty_like(self.flat), np.cumsum([a.size for a in first])[:-1]
        self.p, d = (
            [part.reshape(a.shape) for part, a in zip(np.split(flat, cuts), first, strict=True)]
            for flat in (self.flat, self.update)
        )
        self.w, self.b, self.dw, self.db = self.p[::2], self.p[1::2], d[::2], d[1::2]
        self.a = [np.empty((batch, len(w)), np.float32) for w in weights]
        self.da, self.zeros = [np.empty_like(a) for a in self.a], [np.zeros_like(a) for a in self.a]
        self.mask = [np.empty(a.shape, np.bool) for a in self.a]
        self.wt, self.at = [w.T for w in self.w], [a.T for a in self.a]
        self.z = np.empty((weights[-1].shape[1], batch), np.float32)
        self.total, self.picked, self.ones = (np.ones(batch, np.float32) for _ in range(3))
        self.columns, self.labels = np.arange(batch), np.empty(batch, np.int64)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        return np.array([self._step(rows) for rows in batches_of(order, self.batch)])

    def _step(self, rows: np.ndarray) -> float:
        w, a, wt, at, z, total = self.w, self.a, self.wt, self.at, self.z, self.total
        self.x.take(rows, axis=0, out=a[0], mode="clip")  # "raise" would buffer the output
        for i in range(1, len(w)):
            np.matmul(a[i - 1], w[i - 1], out=a[i])
            np.add(a[i], self.b[i - 1], out=a[i])
            np.maximum(a[i], self.zeros[i], out=a[i])  # a scalar 0 takes three times as long
        np.matmul(wt[-1], at[-1], out=z)
        np.add(z, self.b[-1][:, None], out=z)
        np.subtract(z, np.maximum.reduce(z, axis=0, out=total), out=z)
        flat, labels = z.reshape(-1), self.y.take(rows, out=self.labels, mode="clip")
        np.add(np.multiply(labels, self.batch, out=labels), self.columns, out=labels)
        flat.take(labels, out=self.picked, mode="clip")
        np.add.reduce(np.exp(z, out=z), axis=0, out=total)
        np.multiply(z, self.scale / total, out=z)
        flat[labels] -= self.scale
        np.subtract(np.log(total, out=total), self.picked, out=total)
        g = z.T
        for i in range(len(w) - 1, -1, -1):
            np.matmul(at[i], g, out=self.dw[i])
            np.matmul(self.ones, g, out=self.db[i])
            if i:
                g = np.matmul(g, wt[i], out=self.da[i])
                np.multiply(g, np.greater(a[i], 0, out=self.mask[i]), out=g)
        np.subtract(self.flat, self.update, out=self.flat)
        return float(total.dot(self.ones)) / self.batch

    def parameters(self) -> list[np.ndarray]:
        return [a.copy() for a in self.p]


PEERS: dict[str, type[Peer]] = {
    "torch": Torch,
    "torch-compile": TorchCompile,
    "jax": Jax,
    "jax-scan": JaxScan,
    "sklearn": Sklearn,
    "thinc": Thinc,
    "tinygrad": Tinygrad,
    "numpy": Numpy,
}
