"""Memory for training: says before the first step when it will not do, and finds a batch size for which it will."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from xnn.backends import Backend, current_numerics, numerics
from xnn.backends.row_sources import is_mapped
from xnn.data import Batches
from xnn.errors import DeviceMemoryError, XnnError
from xnn.optimizers.rule import check_kept
from xnn.training.inputs import prepare

__all__ = ["check_room", "most_memory", "with_batch_size"]

_SHARE = 0.9  # of the free memory: captured graphs need some, and not every gap between arrays can be used
_SHARE_OF_HOST = 0.75  # where other things of the process need memory, too
_PLENTY = 0.5  # of the free memory
_FEW = 1 / 16  # of the free memory: what is measured on the host takes no more
#: A step rarely takes more than this many times the bytes of its samples and of the numbers that layers put out.
_MOST_COPIES = 128
_LITTLE = 2**26  # bytes: of less it is not asked whether they are free


def check_room(trainer: Any, batches: Batches) -> None:
    """Raise DeviceMemoryError if the host's memory will not do for the steps of a fit.

    An allocation of more memory than there is may succeed, and the system then ends the process at some later step.
    If the batch is so large that it may be too much, steps on fewer rows are measured and undone. Otherwise,
    and for data of which the first rows cannot be read beforehand, nothing is done. Of several processes, each looks
    at its own memory and rows, without the others.
    """
    lib, optimizer = trainer.model.backend, trainer.optimizer
    arrays = batches.arrays
    if not lib.is_host or optimizer.steps_itself or not all(isinstance(part, np.ndarray) for part in arrays):
        return
    check_kept(optimizer)
    ranks = trainer.ranks
    rows = _own(ranks, min(batches.batch_size, batches.rows))
    fixed, most = _bounds(trainer, arrays, rows)
    if most < _LITTLE or most < (room := lib.free_memory()):
        return
    needed = float(fixed)
    if fixed < room and rows > 8:
        try:
            size, need, each_row = _measured_small(trainer, arrays, rows, room)
        except DeviceMemoryError:
            raise
        except XnnError:  # the fit itself says what does not fit together
            return
        needed = need + (rows + _own(ranks, _last(batches.rows, batches.batch_size)) - size) * each_row
    if needed > room:
        raise DeviceMemoryError(
            f"{lib.name}: training in batches of {rows}{'' if ranks is None else ' rows for this process'} needs "
            f"about {_mebibytes(needed)}, and {_mebibytes(room)} are free. {lib.memory_advice}"
        )


def _own(ranks: Any, rows: int) -> int:
    """The most rows of a batch that one process computes: all of a batch with fewer rows than processes."""
    return rows if ranks is None or rows < ranks.size else -(-rows // ranks.size)


def _bounds(trainer: Any, arrays: Any, rows: int) -> tuple[int, int]:
    """The bytes that training needs whatever the batch is, and how many it takes at most with this many rows."""
    weights = trainer.model.parameters()
    copies = 3 + 2 * trainer.optimizer.arrays  # also gradients, and what to go back to
    fixed = copies * sum(p.nbytes for p in weights)
    each = sum(part[:1].nbytes for part in arrays) + 8 * sum(p.shape[-1] for p in weights if p.shape)
    return fixed, fixed + rows * _MOST_COPIES * each


def most_memory(trainer: Any, data: Any, rows: int) -> int:
    """The bytes that a fit takes at most, with its data. data: arrays. rows: of a batch."""
    return _bounds(trainer, data, rows)[1] + sum(int(part.nbytes) for part in data)


def with_batch_size(
    trainer: Any, error: DeviceMemoryError, data: Any, batch_size: int, sample_weight: Any
) -> DeviceMemoryError:
    """The error of a fit whose memory was not enough, with a batch size that would fit if one is found.

    Steps on a few rows are taken and undone, and the memory that they needed is measured. If not even one row has
    room, the error says so. If nothing is found out, it is returned as it is. error: what the fit raised. data,
    batch_size, sample_weight: what it was given.
    """
    lib: Backend = trainer.model.backend
    if trainer.optimizer.steps_itself or trainer.ranks is not None:  # each would find another number
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
            rows = min(batch_size, len(given[0]))
            if lib.is_host and _bounds(trainer, given, rows)[1] < _PLENTY * room:
                return error  # it was not the batch
            fits, batch = _fitting(trainer, given, rows, room)
    except (XnnError, MemoryError):
        return error
    if fits is None:
        return lib.without_room(error, "training with batches of one sample")
    if not fits:
        return error
    what = str(error).removesuffix(lib.memory_advice)
    return DeviceMemoryError(
        f"{what}{_held(trainer, given)}, and a batch needs {_mebibytes(batch)}. Now {_mebibytes(room)} are free, "
        f"and a batch of {rows} is too much: batch_size={fits} (--batch-size {fits}) would fit"
    )


def _fitting(trainer: Any, given: Any, rows: int, room: int) -> tuple[int | None, float]:
    """The largest power of two below `rows` for which the memory is enough; None if there is none.

    0 if it is unknown, or if half of the memory should be enough for `rows`: then what was full
    was not full because of the batch. Also returns the bytes that a batch of `rows` needs.
    """
    size, need, each = rows // 2, 0, 0.0
    while size and not need:
        try:
            if trainer.model.backend.is_host and rows > 8:
                size, need, each = _measured_small(trainer, given, rows, room)
            else:
                need = _need(trainer, given, size)
        except MemoryError:
            rows, size = (8, 4) if trainer.model.backend.is_host and rows > 8 else (rows, size // 2)
    if size < 2:
        return size or None, 0.0
    each = each or (need - _need(trainer, given, size // 2)) / (size - size // 2)  # bytes a row
    if each <= 0 or need + (rows - size) * each < _PLENTY * room:
        return 0, 0.0
    room = int(room * (_SHARE_OF_HOST if trainer.model.backend.is_host else _SHARE))
    most = min(rows - 1, max(0, int(size + (room - need) / each)))
    fits = int(2 ** (most.bit_length() - 1)) if most else 0
    while fits and need + (fits + _last(len(given[0]), fits) - size) * each > room:
        fits //= 2
    return fits, rows * each


def _last(samples: int, rows: int) -> int:
    """The rows of a last batch that is smaller than the others. Its steps have memory of their own."""
    return samples % rows if samples > rows else 0


def _measured_small(trainer: Any, given: Any, rows: int, room: int) -> tuple[int, int, float]:
    """Some number of rows whose step takes a small part of the memory, the bytes that it needs, and those a row."""
    first = before = _need(trainer, given, 2)
    size, need = 8, _need(trainer, given, 8)
    while 8 * size <= rows and need - first < _FEW * room:
        size, before, need = 4 * size, need, _need(trainer, given, 4 * size)
    return size, need, (need - before) / (size - size // 4)


def _held(trainer: Any, given: Any) -> str:
    """What already holds memory, in words."""
    optimizer, weights = trainer.optimizer, sum(p.nbytes for p in trainer.model.parameters())
    data = sum(part.nbytes for part in given if isinstance(part, np.ndarray) and not is_mapped(part))
    held = {
        "The data hold": data,
        "the weights": weights,
        "the optimizer's state": optimizer.arrays * weights,
    }
    return ", ".join(f"{name} {_mebibytes(size)}" for name, size in held.items())


def _need(trainer: Any, given: Any, rows: int) -> int:
    """The bytes that a fit in batches of this size needs at most, measured at two steps, which are undone."""
    lib = trainer.model.backend
    gc.collect()  # programs refer to themselves
    with lib.measured() as measured, _apart(trainer):
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


@contextmanager
def _apart(trainer: Any) -> Iterator[None]:
    """A `with` block in which a trainer takes steps without the processes that train together with it."""
    workers, trainer.workers = trainer.workers, "none"
    try:
        yield
    finally:
        trainer.workers = workers


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
