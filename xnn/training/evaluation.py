"""Measures a model: the loss and the metrics over batches, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import zip_longest
from typing import Any

import numpy as np

from xnn.backends.threads import limit_threads
from xnn.data import Batches
from xnn.data.reader import read_batches
from xnn.graph.scope import Scope
from xnn.layers.parts import Parts
from xnn.losses import LossOverBatches
from xnn.metrics import Totals, count_on_device

__all__ = ["EVALUATION_BATCH", "evaluated"]

EVALUATION_BATCH = 1024


def evaluated(trainer: Any, batches: Batches) -> dict[str, Any]:
    """The loss and the metrics of a trainer over these batches, by name."""
    lib = trainer.model.backend
    mean, counts = LossOverBatches(trainer.loss), Totals(trainer.metrics)
    even = trainer.loss.counts_samples(weighted=len(batches.arrays) > 2)
    sizes: list[int] = []
    parts, ranks = Parts(trainer.model, trainer.kernels), trainer.ranks

    def numbers() -> Iterator[Any]:
        """Of each batch the loss, what it was divided by unless that is the number of rows, and the counts."""
        turn = (0, 1) if ranks is None else (ranks.rank, ranks.size)  # processes take batches in turn
        with closing(read_batches(batches, 0, *turn)) as read:
            for x, *rest in read:
                sizes.append(x.shape[0])
                outputs = parts.together(x)
                targets, *weights = map(lib.to_device, rest)
                trainer.loss.recognize(outputs, targets, *weights)
                yield trainer.loss.run(outputs, targets, *weights)
                if not even:
                    yield lib.number_on_device(trainer.loss.total(outputs, targets, *weights))
                yield from count_on_device(lib, trainer.metrics, outputs, targets)

    with limit_threads(trainer.choose_threads_for(batches).count), Scope(records=False):
        found = iter(lib.to_host_all(numbers()))  # read once, at the end
    own = [
        (size, next(found), size if even else next(found), [next(found) for _ in trainer.metrics])
        for size in sizes
    ]
    for size, value, total, counted in own if ranks is None else _in_turn(ranks.gather_objects(own)):
        mean.add(value, total)
        counts.add([number.astype(np.float64) for number in counted], size)
    return {"loss": mean.value, **counts.results()}


def _in_turn(parts: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """One item of each part, then the second of each, and so on: the batches in their order."""
    for turn in zip_longest(*parts):
        yield from (item for item in turn if item is not None)
