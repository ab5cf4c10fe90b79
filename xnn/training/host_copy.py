"""Keeps the state of a training on the host, since a GPU may stop answering: what lies in its memory is lost then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from xnn.backends import Backend
from xnn.errors import DeviceLostError
from xnn.training.placement import with_arrays

__all__ = ["HostCopy", "kept_on_host"]


class HostCopy:
    """A copy on the host of everything that a trainer's steps change: `take`, and after a loss `put_back`.

    On a backend whose device cannot be lost it does nothing.
    """

    def __init__(self, lib: Backend, trainer: Any) -> None:
        self.lib, self.trainer = lib, trainer
        self._kept: Any = None

    def take(self) -> None:
        """Copy the model's arrays and the optimizer's. Waits for the device, once.

        Called when a fit begins and after each epoch: parameters and optimizer have the arrays of the last step then.
        """
        if not self.lib.can_be_lost:
            return
        model, optimizer = self.trainer.model, self.trainer.optimizer
        arrays = [array for _, array in model.named_state()]
        optimized = [(p, name, array) for p in model.parameters() for name, array in optimizer.kept_for(p)]
        found = self.lib.to_host_all([*(a.array for a in arrays), *(array for _, _, array in optimized)])
        values = dict(zip(arrays, found, strict=False))
        there = {id(array): copy for (_, _, array), copy in zip(optimized, found[len(arrays) :], strict=True)}
        numbers = optimizer.snapshot() | {
            "state": {p: with_arrays(state, there) for p, state in optimizer.state.items()},
            "averages": {p: with_arrays(array, there) for p, array in optimizer.averages.items()},
        }
        self._kept = self.trainer.epoch, self.trainer.step, values, numbers

    def put_back(self, error: DeviceLostError) -> DeviceLostError:
        """Move model and optimizer to the host as they were at the last `take`. Returns the error that says so."""
        if self._kept is None:
            return error  # which advises to load the model's last file
        trainer = self.trainer
        trainer.epoch, trainer.step, values, numbers = self._kept
        for array, value in values.items():
            array.value = value
        for parameter in trainer.model.parameters():
            parameter.grad = None
        trainer.model.forget()
        trainer.optimizer.restore(numbers)
        what = str(error).removesuffix(self.lib.lost_advice)
        return DeviceLostError(
            f"{what}Model and optimizer are on the numpy backend, as after epoch {trainer.epoch}, step "
            f"{trainer.step}: model.save(path) keeps the weights. Start a new process for the GPU; if it happens "
            "again, see nvidia-smi and run with kernels='ops'"
        )


@contextmanager
def kept_on_host(lib: Backend, trainer: Any) -> Iterator[HostCopy]:
    """A `with` block for a fit: if the device is lost, model and optimizer are on the host afterwards.

    Raises DeviceLostError, which says where the model is.
    """
    copy = HostCopy(lib, trainer)
    try:
        with lib.guard() if lib.can_be_lost else nullcontext():
            copy.take()
            yield copy
    except DeviceLostError as error:
        raise copy.put_back(error) from error.__cause__
