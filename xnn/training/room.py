"""Finds a batch size for which a GPU's memory is enough, after one for which it was not."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from xnn.backends import current_numerics, numerics
from xnn.data import Batches
from xnn.errors import DeviceMemoryError, XnnError
from xnn.training.inputs import prepare

__all__ = ["with_batch_size"]

_SHARE = 0.9  # of the free memory: captured graphs need some, and not every gap between arrays can be used
_PLENTY = 0.5  # of the free memory


def with_batch_size(
    trainer: Any, error: DeviceMemoryError, data: Any, batch_size: int, sample_weight: Any
) -> DeviceMemoryError:
    """The error of a fit whose memory was not enough, with a batch size that would fit if one is found.

    Steps on a few rows are taken and undone, and the memory that they needed is measured. Without such a batch size
    the error is returned as it is. error: what the fit raised. data, batch_size, sample_weight: what it was given.
    """
    lib = trainer.model.backend
    if lib.is_host or trainer.optimizer.steps_itself:
        return error
    chain: list[BaseException | None] = [error]
    for one in chain:  # grows
        if one is not None:  # the arrays of the fit are local variables of functions in the traceback
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]
    trainer.model.forget()
    gc.collect()
    try:
        with numerics(trainer.numerics or current_numerics()), lib.guard(), lib.stream():
            room = lib.free_memory()
            if room is None:
                return error
            given = prepare(trainer.model, trainer.loss, trainer.metrics, data, "training", sample_weight)
            fits = _fitting(trainer, given, min(batch_size, len(given[0])), room)
    except XnnError:
        return error
    if not fits:
        return error
    what = str(error).removesuffix(lib.memory_advice)
    return DeviceMemoryError(
        f"{what}Of the {_mebibytes(room)} that are free, a batch of {batch_size} is too much: batch_size={fits} "
        f"(--batch-size {fits}) would fit"
    )


def _fitting(trainer: Any, given: Any, rows: int, room: int) -> int:
    """The largest power of two below `rows` for which the memory is enough.

    0 if there is none, if it is unknown, or if half of the memory should be enough for `rows`: then what was full
    was not full because of the batch.
    """
    size, need = rows // 2, 0
    while size and not need:
        try:
            need = _need(trainer, given, size)
        except MemoryError:
            size //= 2
    if size < 2:
        return size
    each = (need - _need(trainer, given, size // 2)) / (size - size // 2)  # bytes a row
    if each <= 0 or need + (rows - size) * each < _PLENTY * room:
        return 0
    most = min(rows - 1, max(0, int(size + (_SHARE * room - need) / each)))
    return int(2 ** (most.bit_length() - 1)) if most else 0


def _need(trainer: Any, given: Any, rows: int) -> int:
    """The bytes that a fit in batches of this size needs at most, measured at its first step, which is undone."""
    lib = trainer.model.backend
    gc.collect()  # programs refer to themselves
    with lib.measured() as measured:
        stepper = trainer.stepper(Batches(given, rows))
        stepper.refresh()
        try:
            for _ in range(2):  # in the second one, results of the first are still there
                stepper.step(np.arange(rows), trainer.step)
            stepper.take()
            stepper.store.is_finite()
        finally:
            stepper.restore()
            stepper.store.hand_out()
            trainer.model.forget()
    return int(measured.peak)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
