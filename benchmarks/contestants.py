"""The contestants of the benchmark that are xnn itself, and the task that all contestants get."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn import losses, optimizers
from xnn.backends import Purpose, Stream, current_numerics
from xnn.backends import backend as use
from xnn.benchmarks import networks
from xnn.benchmarks.gpu_peers import GPU_PEERS
from xnn.benchmarks.jax_networks import JaxNetwork
from xnn.benchmarks.keras_networks import KerasNetwork
from xnn.benchmarks.peers import PEERS, Peer, set_threads
from xnn.benchmarks.products import DeviceGemm, Gemm
from xnn.data import Batches, load, synthetic_digits
from xnn.data.batches import Rows
from xnn.errors import OptionError
from xnn.history import History
from xnn.initializers import Glorot
from xnn.layers import Sequential
from xnn.runs.mlp import mlp
from xnn.training import Trainer
from xnn.training.fit import Fit

__all__ = ["Task", "make", "names", "network_flops", "on_gpu"]


@dataclass(frozen=True)
class Task:
    """The network, data and initial weights that every contestant gets.

    widths: the sizes of inputs, hidden layers and outputs. batch: the batch size. rows: the number of samples.
    dataset: "mnist" or "synthetic" (default). seed: of the weights. learning_rate: 0.1 by default. network: one of
    `networks.NETWORKS`, in place of the dense layers that `widths` describes; "" (default) for those.
    """

    widths: tuple[int, ...]
    batch: int
    rows: int
    dataset: str = "synthetic"
    seed: int = 0
    learning_rate: float = 0.1
    network: str = ""

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 images (rows, inputs) and int64 labels (rows,). Images repeat if the data set has fewer."""
        if self.dataset == "synthetic":
            x, y = synthetic_digits(min(self.rows, 10_000))
        else:
            found = load(self.dataset)
            x, y = found.x_train, found.y_train
        rows = np.arange(self.rows) % len(x)
        return np.ascontiguousarray(x[rows]), y[rows].astype(np.int64)

    def weights(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Glorot normal weights (inputs, outputs) and zero biases, both float32, a list of each.

        For one of `networks.NETWORKS` the first list holds all parameters.
        """
        if self.network:
            return networks.weights(self.network, self.seed), []
        shapes = list(itertools.pairwise(self.widths))
        draw = Glorot()
        w = [
            draw(Stream(self.seed, Purpose.WEIGHTS, i), shape).astype(np.float32)
            for i, shape in enumerate(shapes)
        ]
        return w, [np.zeros(n, np.float32) for _, n in shapes]

    def flops(self) -> int:
        """The floating-point operations of the products of a training step."""
        return (
            networks.flops(self.network, self.batch)
            if self.network
            else network_flops(self.widths, self.batch)
        )


def network_flops(widths: Sequence[int], batch: int) -> int:
    """The floating-point operations of the matrix products of one training step.

    It counts the forward pass, the gradients of the weights, and the gradients of all layers' inputs except the
    first layer's.
    """
    products = [2 * batch * a * b for a, b in itertools.pairwise(widths)]
    return 3 * sum(products) - products[0]


class _Given(Batches):
    """Batches whose order is set by the attribute `given`, and not drawn."""

    given: np.ndarray

    def order(self, epoch: int) -> np.ndarray:
        return self.given

    def numbers(self, epoch: int, done: int = 0) -> Rows:
        yield from self.given.reshape(-1, self.batch_size)[done:]

    def __len__(self) -> int:
        return len(self.given) // self.batch_size


@dataclass
class _Losses(History):
    """A history that keeps the loss of every step."""

    losses: list[np.ndarray] = field(default_factory=list)

    def add(self, losses: np.ndarray, samples: int, seconds: float) -> None:
        self.losses.append(losses)


def _dense(weights: Sequence[np.ndarray]) -> Sequential:
    widths = [weights[0].shape[0], *(w.shape[1] for w in weights)]
    return mlp(widths[0], widths[1:-1], widths[-1], rescale=(1 / 255, 0.0))


class Xnn(Peer):
    """xnn's Trainer, without metrics, on one backend and with one table of kernels."""

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        batch: int,
        learning_rate: float,
        backend: str = "numpy",
        kernels: str = "auto",
        optimizer: optimizers.Optimizer | None = None,
        network: str = "",
    ) -> None:
        with use(backend):
            self.model = networks.in_xnn(network) if network else _dense(weights)
        self.lib = self.model.backend
        pairs = zip(weights, biases, strict=True)
        arrays = weights if network else [array for pair in pairs for array in pair]
        for parameter, array in zip(self.model.parameters(), arrays, strict=True):
            parameter.value = self.lib.to_device(np.array(array))
        rule = optimizer or optimizers.SGD(learning_rate)
        self.trainer = Trainer(self.model, losses.SoftmaxCrossEntropy(), rule, metrics=[], kernels=kernels)
        self.data = tuple(self.lib.to_device(part) for part in (images, labels))
        self.batches = _Given(self.data, batch)
        with self.lib.stream():
            self.stepper = self.trainer.stepper(self.batches)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        size = self.batches.batch_size
        self.batches.given = order[: len(order) // size * size]
        history = _Losses()
        with self.lib.guard(), self.lib.stream():
            Fit(self.trainer, self.stepper, self.batches, None, (), lambda: False, dict, history).epoch()
        self.lib.synchronize()
        return np.concatenate(history.losses)

    def parameters(self) -> list[np.ndarray]:
        return [np.array(self.lib.to_host(p.value)) for p in self.model.parameters()]

    def device_bytes(self) -> int | None:
        return None if self.lib.is_host else self.lib.memory()["peak"]

    def plan(self) -> dict[str, Any]:
        """Numerics, backend, kernels; the functions that a step calls; the steps that are handed over at once."""
        program, table = self.stepper.program(self.batches.batch_size), self.stepper.table
        return {
            "numerics": current_numerics(),
            "backend": self.lib.address,
            **self.lib.describe(),
            "kernels": table.name,
            "calls_per_step": program.calls_per_step,
            "steps_at_once": program.most,
            **self.stepper.plan,
        }


#: xnn's contestants: backend and table of kernels.
_OWN = {
    "xnn-ops": ("numpy", "ops"),
    "xnn-numpy": ("numpy", "numpy"),
    "xnn-fast": ("numpy", "compiled"),
    "xnn-cupy": ("cupy", "auto"),
}


def names() -> tuple[str, ...]:
    """The names of all contestants."""
    return (*_OWN, "gemm", "gemm-cupy", *PEERS, *GPU_PEERS)


def on_gpu(name: str) -> bool:
    """Whether a contestant computes on the GPU."""
    return "-cupy" in name or "-gpu" in name


def make(name: str, task: Task, threads: int, data: tuple[np.ndarray, np.ndarray] | None = None) -> Peer:
    """Make a contestant.

    name: one of `names()`. task: what it trains. threads: the number of its threads.
    data: `task.data()`, if the caller has it already.
    Raises OptionError for an unknown name, MissingExtraError if its library is not installed, and
    BackendUnavailableError if its backend cannot run.
    """
    given = (*task.weights(), *(data or task.data()), task.batch, task.learning_rate)
    if name in _OWN:
        backend, kernels = _OWN[name]
        rule = networks.optimizer(task.network, task.learning_rate)
        return Xnn(*given, backend=backend, kernels=kernels, optimizer=rule, network=task.network)
    if task.network:
        if name not in networks.NETWORK_PEERS:
            raise OptionError(
                f"{name} does not train {task.network}: choose {', '.join((*_OWN, *networks.NETWORK_PEERS))}"
            )
        set_threads(name, threads)
        if name == "jax-scan":
            return JaxNetwork(task.network, *given)
        if name == "keras-jax":
            return KerasNetwork(task.network, *given)
        return networks.TorchNetwork(task.network, name, *given)
    if name == "gemm":
        return Gemm(*given)
    if name == "gemm-cupy":
        return DeviceGemm(*given)
    others = PEERS | GPU_PEERS
    if name not in others:
        raise OptionError(f"no contestant is called {name!r}; choose {', '.join(names())}")
    set_threads(name, threads)
    return others[name](*given)
