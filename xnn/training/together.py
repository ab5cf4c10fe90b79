"""Trains by several processes together: who they are, whether they were given the same, and when they end."""

from __future__ import annotations

import json
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xnn import __version__
from xnn.backends import Backend, current_numerics
from xnn.backends.ranks.group import Ranks, current_ranks, use_ranks
from xnn.backends.ranks.launch import launched
from xnn.backends.ranks.mpi import MPIRanks, in_words, world
from xnn.callbacks import Callback
from xnn.callbacks.callback import sees_steps
from xnn.errors import OptionError, RankError, XnnError
from xnn.history import History
from xnn.layers.files import weights_sha256
from xnn.options import is_one_of, shown
from xnn.training.checkpoint import identity
from xnn.training.interrupt import Ending
from xnn.training.sharing import Sharing

__all__ = [
    "SharedEnding",
    "Together",
    "agreed",
    "backend_fact",
    "check_alike",
    "check_same",
    "check_workers",
    "joined",
    "known",
    "watchers_here",
]

#: Arrays of up to so many bytes are compared as a whole, larger ones by a sample of their rows.
_WHOLE = 2**30


def check_workers(workers: str | None) -> str | None:
    """Raise OptionError unless it is None, "none", "auto" or "mpi"; MissingExtraError if mpi4py is needed."""
    if workers is not None and not is_one_of(workers, ("none", "auto", "mpi")):
        raise OptionError(
            "workers must be 'mpi', 'auto', 'none' or None (those of the `with` block, if any), got "
            f"{shown(workers)}"
        )
    if _asks_for_mpi(workers):
        world()
    return workers


def _asks_for_mpi(workers: str | None) -> bool:
    return workers == "mpi" or (workers == "auto" and launched() is not None)


class Together:
    """The processes with which a Trainer trains. workers: the Trainer's argument."""

    workers: str | None

    @property
    def ranks(self) -> Ranks | None:
        """The processes that train together, of which this is one; None if it trains alone."""
        workers = check_workers(self.workers)  # it may have been assigned since
        found = None if workers == "none" else current_ranks()
        if workers == "mpi" or (found is None and _asks_for_mpi(workers)):
            found = world()
        return None if found is None or found.size == 1 else found

    @property
    def rank(self) -> int:
        """The number of this process among those that train together; 0 if it trains alone. Rank 0 writes files."""
        return 0 if self.ranks is None else self.ranks.rank


@contextmanager
def joined(ranks: Ranks | None) -> Iterator[None]:
    """A `with` block in which a process works together with others.

    If it fails alone, the others would wait for it for ever: then all are ended, and a line names this one.
    """
    outermost = isinstance(ranks, MPIRanks) and current_ranks() is not ranks
    try:
        with use_ranks(ranks):
            yield
    except BaseException as error:
        if outermost and isinstance(ranks, MPIRanks):
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            ranks.failed(code, in_words(error))
        raise


def check_alike(ranks: Ranks, trainer: Any, batches: Any, held_out: Any, epochs: int) -> None:
    """Raise RankError, on all ranks, if they do not have the same program, options, data and first weights.

    Their backends may differ in exact numerics only, where that does not change a bit.
    """
    optimizer, shuffle, numerics = trainer.optimizer, batches.shuffle, current_numerics()
    facts = {
        "version of xnn": __version__,
        "numerics": numerics,
        **backend_fact(trainer.model.backend, numerics),
        "epochs": epochs,
        "batch_size": batches.batch_size,
        "seed": batches.seed,
        "shuffle": getattr(shuffle, "__qualname__", "function") if callable(shuffle) else shuffle,
        "model, loss, optimizer, metrics or callbacks": json.dumps(
            trainer.built[0], sort_keys=True, default=str
        ),
        "training data": known(batches.arrays),
        "validation data": known(held_out or ()),
        "weights before training": weights_sha256(trainer.model),
        "threads='auto'": trainer.threads == "auto",
        "number of callbacks with on_step": sum(sees_steps(watcher) for watcher in trainer.callbacks),
        "steps taken before": [trainer.epoch, trainer.step, optimizer.steps],
    }
    check_same(ranks, facts)


def agreed(ranks: Ranks | None, check: Callable[[], None]) -> None:
    """Call a check whose result may differ from rank to rank, such as one of the memory of its machine.

    If it raises an XnnError on some ranks, all raise that of the first of them, and name it unless all have failed.
    Without ranks it is just called.
    """
    if ranks is None:
        check()
        return
    fault: XnnError | None = None
    try:
        check()
    except XnnError as error:
        fault = error
    faults = ranks.gather_objects(fault)
    if failed := [(rank, found) for rank, found in enumerate(faults) if found is not None]:
        rank, first = failed[0]
        if len(failed) < ranks.size:
            first.args = (f"rank {rank} of {ranks.size}: {first}", *first.args[1:])
        raise first


def backend_fact(lib: Backend, numerics: str) -> dict[str, str]:
    """What `check_same` compares of a rank's backend: its kind, and nothing in exact numerics, where all may mix."""
    return (
        {} if numerics == "exact" else {"backend (only exact numerics mix them)": lib.name.partition(":")[0]}
    )


def check_same(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Raise RankError, on all ranks, unless they have the same facts. facts: what each is, by its name."""
    every = ranks.gather_objects((socket.gethostname(), facts))
    for rank, (host, others) in enumerate(every):
        for name, value in every[0][1].items():
            if others[name] != value:
                words = (
                    f" ({shown(others[name])} there, {shown(value)} on rank 0)"
                    if len(str(value)) < 60
                    else ""
                )
                raise RankError(
                    f"rank {rank} of {ranks.size} (on {host}) differs from rank 0 in: {name}{words}. Start all "
                    "processes with the same program, options and files"
                )


def known(arrays: Sequence[Any]) -> list[Any]:
    """What tells arrays from others."""
    whole = [type(x) is np.ndarray and x.nbytes <= _WHOLE for x in arrays]
    digests = [_crc32(x) if w else 0 for x, w in zip(arrays, whole, strict=True)]
    return [identity(arrays), digests]


def _crc32(array: np.ndarray, before: int = 0) -> int:
    """CRC-32 of an array's bytes, after others with this checksum."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, before)


def _checksum(model: Any) -> int:
    """CRC-32 of all parameters and buffers: it takes a third of the time of `weights_sha256`."""
    total = 0
    for part in (*model.parameters(), *model.buffers()):
        total = _crc32(model.backend.to_host(part.value), total)
    return total


class _Silent(Callback):
    """Stands for a callback that only rank 0 calls, since it writes or shows something."""

    def __init__(self, other: Callback) -> None:
        self.bystander = other.bystander


class _SilentAtSteps(_Silent):
    """The same for a callback that sees each step: training looks at the loss of each step on all ranks."""

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        """Do nothing."""


def watchers_here(ranks: Ranks | None, watchers: Sequence[Callback]) -> list[Callback]:
    """The callbacks that this rank calls."""
    if ranks is None or ranks.rank == 0:
        return [*watchers]
    return [
        w if not w.first_rank_only else _SilentAtSteps(w) if sees_steps(w) else _Silent(w) for w in watchers
    ]


class SharedEnding(Ending):
    """When ranks end together: after the step in which any of them was interrupted, or rank 0's time was over.

    sharing: carries the wishes of all ranks with each step. ending: this rank's own.
    """

    def __init__(self, sharing: Sharing, ending: Ending) -> None:
        vars(self).update(vars(ending))
        self._sharing, self._own = sharing, self._interrupted
        self._interrupted = lambda: sharing.agreed[0]
        sharing.wish = self._wish

    def _wish(self) -> tuple[bool, bool]:
        writing = max((checkpoint.slowest for checkpoint in self._checkpoints), default=0.0)

        def over(limit: Any) -> bool:
            return bool(limit.is_over(writing))

        return self._own(), any(list(map(over, self._limits)))

    def has_come(self) -> bool:
        if self._limits and self._sharing.agreed[1]:
            self._reached = self._limits[0]
        return self._reached is not None or self._interrupted()

    def settle(self, fit: Any) -> None:
        """Take rank 0's reason to end the training. Raises RankError if weights are not the same on all ranks."""
        ranks, history = self._sharing.ranks, fit.history
        every = ranks.gather_objects((history.stopped, _checksum(fit.trainer.model)))
        history.stopped = every[0][0]
        for rank, (_, weights) in enumerate(every):
            if weights != every[0][1]:
                raise RankError(
                    f"rank {rank} of {ranks.size} has other weights than rank 0 after epoch {fit.trainer.epoch}: a "
                    "callback changes them on some ranks only, or a machine or its memory is faulty"
                )
