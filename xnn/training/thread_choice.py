"""How many threads a training's matrix products get, by the rule of `xnn.backends.threads`."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.threads import Threads, blas_threads, choose_threads, limit_threads, threads_of_rank
from xnn.data import Batches
from xnn.training.steps import Stepper

__all__ = ["threads_for"]


def threads_for(trainer: Any, batches: Batches, stepper: Stepper | None = None) -> Threads:
    """How many threads for batches of this size. Of several processes, each has its share of a batch.

    stepper: takes the steps of a training, which are measured if they can be undone; None for an evaluation.

    With threads="auto" all processes measure together, and the slowest one's time counts, so that all choose the
    same number: at most the cores of a machine divided by its processes, on the machine that has the fewest. If a GPU
    computes on one of them, none measures, and each takes one thread.
    """
    work = sum(p.size for p in trainer.model.parameters() if len(p.shape) > 1)
    if stepper is not None:
        work += stepper.at_other_places
    work *= min(batches.batch_size, batches.rows)
    ranks, on_host = trainer.ranks, trainer.model.backend.is_host
    work //= 1 if ranks is None else ranks.size

    def measure(threads: int) -> float:
        assert stepper is not None
        with limit_threads(threads, stepper.product_threads):
            seconds = stepper.seconds_per_step(trainer.step)
        return seconds if ranks is None else float(ranks.gather(np.array([seconds])).max())

    can_measure = stepper is not None and not stepper.store.asks_optimizer
    least = None
    if ranks is not None and trainer.threads in (None, "auto"):
        least = threads_of_rank(ranks.on_this_machine)
        if trainer.threads == "auto" and can_measure:
            with limit_threads(least):
                least = int(ranks.gather(np.array([(on_host and blas_threads()) or 0])).min())
            can_measure, least = least > 0, max(1, least)
    with limit_threads(least):
        found = choose_threads(trainer.threads, work, measure if can_measure else None, on_host)
    if ranks is None:
        return found
    return Threads(
        found.count, f"{found.reason}, for each of {ranks.on_this_machine} processes on this machine"
    )
