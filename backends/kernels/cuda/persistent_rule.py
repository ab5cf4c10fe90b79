"""When a program runs as one persistent kernel: the switch, and the rule from shapes and compute capability.

The kernel (persistent.cu) keeps a network in the shared memory of one cluster of blocks. It was not measured on a GPU
yet, so it is off unless the environment variable XNN_PERSISTENT is 1.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xnn.errors import OptionError
from xnn.options import shown

__all__ = ["FAST_ONLY", "OFF", "Cluster", "choose", "is_on", "said_of", "shared_bytes"]

#: Why the kernel does not run: by default, and in exact numerics.
OFF, FAST_ONLY = "XNN_PERSISTENT=1 turns it on", "it computes in fast numerics"
_THREADS = 512  # of a block
_MOST_ROWS, _MOST_LAYERS = 128, 8
_REAL, _INT = 4, 8  # bytes
#: By the major compute capability, from 9: the most blocks of a cluster, and the most shared memory of a block.
_LIMITS = {9: (16, 227 * 1024), 10: (16, 227 * 1024), 11: (16, 227 * 1024)}
_OTHER_LIMITS = (8, 99 * 1024)


def is_on() -> bool:
    """Whether XNN_PERSISTENT is 1; by default it is 0. Raises OptionError for another value."""
    text = os.environ.get("XNN_PERSISTENT", "").strip() or "0"
    if text not in ("0", "1"):
        raise OptionError(
            f"XNN_PERSISTENT={shown(text)} is not 0 or 1: 1 lets small networks on a GPU run in one kernel, which is "
            "not measured yet; 0, the default, does not"
        )
    return text == "1"


def said_of(plan: Mapping[str, Any]) -> str:
    """Say what XNN_PERSISTENT=1 does in a run of this execution plan; "" if the variable is not 1."""
    if not is_on():
        return ""
    because = plan.get("persistent_because", "it is for the kernels cuda on a GPU")
    if plan.get("persistent"):
        return f"XNN_PERSISTENT=1: one kernel ran all steps of a chunk, with {because}"
    return f"XNN_PERSISTENT=1 had no effect: {because}"


@dataclass(frozen=True)
class Cluster:
    """How the kernel is launched.

    blocks: of the cluster. threads: of a block. rows: the most in a batch. shared: bytes of a block's shared memory.
    """

    blocks: int
    threads: int
    rows: int
    shared: int

    def __str__(self) -> str:
        return f"{self.blocks} blocks, {self.shared} bytes of shared memory each"


def shared_bytes(widths: Sequence[int], rows: int, states: int, blocks: int) -> int:
    """The size of `Shared` in persistent.cu.

    widths: inputs, then the outputs of each layer. rows: of the largest batch. states: arrays of the optimizer's
    state.
    """

    def share(n: int) -> int:
        return -(-n // blocks)

    last, numbers = len(widths) - 1, 0
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths), 1):
        by_inputs = layer % 2 == 1
        columns = outputs if by_inputs else share(outputs)
        weights = columns * (share(inputs) if by_inputs else inputs) + columns
        width = outputs if layer == last else columns
        in_place = by_inputs and layer != last
        numbers += (1 + states) * weights + rows * width + (share(rows * width) if in_place else rows * width)
    sums = max([1, *(widths[layer] for layer in range(1, last, 2))])
    numbers += rows * (share(widths[0]) + 2 + sums + widths[-1])
    return -(-(2 * rows * _INT + numbers * _REAL) // _INT) * _INT


def choose(widths: Sequence[int], rows: int, states: int, capability: tuple[int, int]) -> Cluster | str:
    """The rule: the cluster for a network, or why there is none.

    widths: inputs, then the outputs of each layer. rows: of the largest batch. states: arrays of the optimizer's
    state. capability: the GPU's compute capability, such as (9, 0).

        >>> choose([784, 100, 200, 10], 32, 0, (9, 0)).blocks
        16
        >>> choose([784, 1000, 500, 10], 32, 0, (9, 0))
        'it needs 599 KB of shared memory a block, and there are 227 KB'
    """
    if capability < (9, 0):
        return f"the compute capability is {capability[0]}.{capability[1]}, and clusters need 9.0"
    if rows > _MOST_ROWS:
        return f"the batch has {rows} rows, and the most is {_MOST_ROWS}"
    if len(widths) - 1 > _MOST_LAYERS:
        return f"there are {len(widths) - 1} layers, and the most is {_MOST_LAYERS}"
    blocks, limit = _LIMITS.get(capability[0], _OTHER_LIMITS)
    shared = shared_bytes(widths, rows, states, blocks)
    if shared > limit:
        return f"it needs {-(-shared // 1024)} KB of shared memory a block, and there are {limit // 1024} KB"
    return Cluster(blocks, _THREADS, rows, shared)
