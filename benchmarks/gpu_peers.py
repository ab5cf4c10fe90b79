"""Other libraries as contestants on a GPU, each in the forms that its users know.

They train what `peers.py` describes. The data are on the GPU, and so are the order of an epoch, which is copied there
once, and the losses, which are read at its end. TF32 is off: all multiply in float32. A library that sees no GPU
raises BackendUnavailableError, and the table says so in its line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.benchmarks.peers import Jax, JaxScan, Peer, Torch, batches_of, interleaved, need
from xnn.errors import BackendUnavailableError

__all__ = ["GPU_FORMS", "GPU_PEERS"]

_STEPS = 25  # steps in one of PyTorch's CUDA graphs; the rest of an epoch runs in a graph of one step


def _torch(place: str) -> Any:
    """PyTorch, if it can compute there, without TF32."""
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    torch = need("torch")
    if place == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(f"torch {torch.__version__} sees no GPU")
    torch.set_float32_matmul_precision("highest")
    return torch


class TorchGpu(Torch):
    """PyTorch in eager mode: nn.Sequential and the fused SGD."""

    place = "cuda"

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        _torch(self.place)
        super()._build(weights, biases, learning_rate)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        losses = []
        for rows in self.torch.from_numpy(batches_of(order, self.batch)).to(self.place):
            losses.append(self._step(rows).detach())
        return np.array(self.torch.stack(losses).cpu().numpy(), dtype=np.float64)

    def device_bytes(self) -> int | None:
        return int(self.torch.cuda.max_memory_reserved())


class TorchGpuGraph(Peer):
    """PyTorch with CUDA graphs: 25 steps in one graph, with the number of the step on the GPU."""

    place = "cuda"

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        torch = self.torch = _torch(self.place)
        self.rate = learning_rate
        self.x, self.y = torch.from_numpy(self.x).to(self.place), torch.tensor(self.y).to(self.place)
        self.p = [torch.from_numpy(a.T.copy()).to(self.place) for a in interleaved(weights, biases)]
        steps = len(self.y) // self.batch
        self.order = torch.zeros((steps, self.batch), dtype=torch.int64, device=self.place)
        self.number = torch.zeros(1, dtype=torch.int64, device=self.place)
        self.losses = torch.zeros(steps, device=self.place)
        self.graphs: dict[int, Callable[[], None]] = {}
        self.step = self._made_step()

    def _loss(self, p: list[Any], x: Any, y: Any) -> Any:
        functional = self.torch.nn.functional
        for i in range(0, len(p), 2):
            x = functional.linear(functional.relu(x) if i else x, p[i], p[i + 1])
        return functional.cross_entropy(x, y)

    def _made_step(self) -> Callable[[], None]:
        torch = self.torch
        for p in self.p:
            p.requires_grad_()

        def step() -> None:
            rows = self.order.index_select(0, self.number)[0]
            loss = self._loss(self.p, self.x.index_select(0, rows), self.y.index_select(0, rows))
            gradients = torch.autograd.grad(loss, self.p)
            with torch.no_grad():
                torch._foreach_add_(self.p, gradients, alpha=-self.rate)
                self.losses.index_copy_(0, self.number, loss.detach()[None])
                self.number.add_(1)

        return step

    def _captured(self, count: int) -> Callable[[], None]:
        """A function that runs this number of steps as one graph. Parameters are as before the capture."""
        torch = self.torch
        kept = [p.detach().clone() for p in self.p]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # a first run compiles and allocates, which a capture cannot
                self.number.zero_()
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                self.step()
        with torch.no_grad():
            for p, old in zip(self.p, kept, strict=True):
                p.copy_(old)
        replay: Callable[[], None] = graph.replay
        return replay

    def epoch(self, order: np.ndarray) -> np.ndarray:
        batches = batches_of(order, self.batch)
        steps = len(batches)
        self.order[:steps].copy_(self.torch.from_numpy(batches))
        runs = [_STEPS] * (steps // _STEPS) + [1] * (steps % _STEPS)
        for count in set(runs) - set(self.graphs):
            self.graphs[count] = self._captured(count)
        self.number.zero_()
        for count in runs:
            self.graphs[count]()
        return np.array(self.losses[:steps].cpu().numpy(), dtype=np.float64)

    def parameters(self) -> list[np.ndarray]:
        return [p.detach().cpu().numpy().T.copy() for p in self.p]

    def device_bytes(self) -> int | None:
        return int(self.torch.cuda.max_memory_reserved())


class TorchGpuCompile(TorchGpuGraph):
    """PyTorch with torch.compile: the whole step compiled, and 25 steps in one CUDA graph."""

    def _made_step(self) -> Callable[[], None]:
        torch, rate = self.torch, self.rate

        def step(p: list[Any], x: Any, y: Any, order: Any, number: Any, losses: Any) -> None:
            rows = order.index_select(0, number)[0]
            gradients, loss = torch.func.grad_and_value(self._loss)(p, x[rows], y[rows])
            for parameter, gradient in zip(p, gradients, strict=True):
                parameter.sub_(gradient, alpha=rate)
            losses.index_copy_(0, number, loss[None])
            number.add_(1)

        compiled = torch.compile(step, fullgraph=True, dynamic=False)
        return lambda: compiled(self.p, self.x, self.y, self.order, self.number, self.losses)


class JaxGpu(Jax):
    """JAX: a jitted step with donated parameters and losses in a Python loop."""

    place = "cuda"

    def _build(self, weights: list[np.ndarray], biases: list[np.ndarray], learning_rate: float) -> None:
        # By default JAX takes three quarters of the card's memory when it starts.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        super()._build(weights, biases, learning_rate)
        steps = len(self.y) // self.batch
        self.whole = np.zeros((steps, self.batch), np.int32)

        def numbered(state: Any, images: Any, labels: Any, batches: Any, number: Any) -> Any:
            p, losses = state
            p, loss = self.plain(p, images, labels, batches[number])
            return p, losses.at[number].set(loss)

        self.numbered = self.jax.jit(numbered, donate_argnums=0)

    def _import(self) -> Any:
        jax = super()._import()
        try:
            found = jax.devices()
        except Exception as error:  # RuntimeError, or AssertionError where there is no plugin
            raise BackendUnavailableError(
                f"jax {jax.__version__} sees no GPU: {str(error).partition(chr(10))[0] or type(error).__name__}"
            ) from error
        if found[0].platform != {"cuda": "gpu"}.get(self.place, self.place):
            raise BackendUnavailableError(f"jax {jax.__version__} sees no GPU, only {found[0].platform}")
        jax.config.update("jax_default_matmul_precision", "highest")
        return jax

    def epoch(self, order: np.ndarray) -> np.ndarray:
        jnp, batches = need("jax.numpy"), batches_of(order.astype(np.int32), self.batch)
        self.whole[: len(batches)] = batches  # always of one size: each new one would be compiled again
        there = jnp.array(self.whole)
        state = self.p, jnp.zeros(len(self.whole), jnp.float32)
        for number in range(len(batches)):
            state = self.numbered(state, self.x, self.y, there, np.int32(number))
        self.p, losses = state
        return np.array(losses, dtype=np.float64)[: len(batches)]

    def device_bytes(self) -> int | None:
        stats = self.jax.devices()[0].memory_stats() or {}
        return int(stats.get("peak_bytes_in_use", 0)) or None


class JaxGpuScan(JaxScan, JaxGpu):
    """JAX: a jitted lax.scan over an epoch."""


GPU_PEERS: dict[str, type[Peer]] = {
    "torch-gpu": TorchGpu,
    "torch-gpu-graph": TorchGpuGraph,
    "torch-gpu-compile": TorchGpuCompile,
    "jax-gpu": JaxGpu,
    "jax-gpu-scan": JaxGpuScan,
}
#: The contestants that a name of `--peers` stands for where a GPU is timed.
GPU_FORMS = {
    "torch": ("torch-gpu", "torch-gpu-graph", "torch-gpu-compile"),
    "jax": ("jax-gpu", "jax-gpu-scan"),
}
