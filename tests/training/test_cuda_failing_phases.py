"""A GPU that fails in each phase of a fit, the last wait included: the error, the model and the history agree.

`test_cuda_failures.py` fails calls all over a fit; this file names the phases, and fails the first and the last call
of each.
"""

from contextlib import contextmanager
from functools import cache

import pytest
from test_cuda_failures import EPOCHS, X, Y, failing, made, pytestmark, state

import xnn
from xnn.backends.cupy_backend import CupyBackend
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.errors import DeviceError, DeviceLostError, DeviceMemoryError
from xnn.training import fit as fitting
from xnn.training import trainer as trainers
from xnn.training.program import Program
from xnn.training.steps import Stepper

__all__ = ["pytestmark"]

ERRORS = {
    "out of memory": DeviceMemoryError,
    "invalid value": DeviceError,
    "illegal address": DeviceLostError,
    "device lost": DeviceLostError,
}
#: The function in which a phase is, and which of its calls it is. The steps of the second epoch are captured.
PHASES = {
    "the copy of the model at the beginning": (CupyBackend, "to_host_all", 1),
    "making a program": (Stepper, "_make", 1),
    "making the second program": (Stepper, "_make", 2),
    "warm-up": (Program, "steps", 1),
    "capture": (DeviceFeed, "_captured", 1),
    "replay": (Program, "steps", 5),
    "the look at the losses": (Stepper, "take", 2),
    "evaluation": (trainers, "evaluated", 2),
    "the copy of the model after an epoch": (CupyBackend, "to_host_all", 4),
    "after the last epoch": (fitting.Fit, "run", 0),
}


@pytest.fixture(autouse=True)
def _on_the_gpu(monkeypatch):
    monkeypatch.setattr(fitting, "_LOOK_SECONDS", float("inf"))
    with xnn.backends.backend("cupy"):
        yield


def fit(trainer, epochs=EPOCHS):
    return trainer.fit((X, Y), validation=(X, Y), epochs=epochs - trainer.epoch, batch_size=8, progress=False)


@cache
def ends():
    """The state after each epoch, by the number of steps."""
    found = {0: state(made())}
    for epochs in range(1, EPOCHS + 1):
        trainer = made()
        fit(trainer, epochs)
        found[trainer.step] = state(trainer)
    return found


@contextmanager
def watched(phase, begins, ends):
    """Call these functions when a phase begins and ends; for the last one, which ends with the fit, only `begins`."""
    owner, name, which = PHASES[phase]
    function, count = getattr(owner, name), 0

    def run(*arguments):
        nonlocal count
        count += 1
        if count == which:
            begins()
        try:
            return function(*arguments)
        finally:
            if count == which:
                ends()
            if not which:
                begins()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, run)
        yield


@cache
def calls(phase):
    """How many things are asked of the device in a phase."""
    from cuda_emulator import attach

    found = []

    def note():
        found.append(attach.driver().emulated_asked())

    ends()  # what is asked for the first time only is over then
    with failing() as failure, watched(phase, note, note):
        fit(made())
    return (*found, failure.asked)[1] - found[0]


@contextmanager
def failing_in(phase, number, error):
    """Let the call of this number fail in the phase, with what follows if the device is lost."""
    from cuda_emulator import attach

    code, lasts = attach.ERRORS[error]
    with failing(), watched(phase, lambda: attach.driver().emulated_fail(number, code, lasts), lambda: None):
        yield


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("phase", PHASES)
def test_an_error_in_a_phase_is_in_the_history(phase, error):
    """One line. Model and optimizer are as after an epoch, on the host if the device is lost."""
    assert calls(phase) > 0
    for number in dict.fromkeys((1, calls(phase))[error == "out of memory" :]):
        trainer, raised = made(), None
        with failing_in(phase, number, error):
            try:
                fit(trainer)
            except ERRORS[error] as caught:
                raised = caught
        if raised is None:  # CuPy asks again for memory, and for whether a copy is done
            assert ERRORS[error] is not DeviceLostError
            assert (trainer.epoch, trainer.history.error) == (EPOCHS, "")
            assert state(trainer) == ends()[trainer.step]
            continue
        text = str(raised)
        assert type(raised) is ERRORS[error]
        assert "\n" not in text
        assert ".." not in text
        if trainer.history is None:
            assert phase in ("the copy of the model at the beginning", "making a program")
        else:
            assert trainer.history.error == f"{type(raised).__name__}: {text}"
            assert len(trainer.history.epochs) >= trainer.epoch
        lost = ERRORS[error] is DeviceLostError and "last file" not in text
        assert trainer.model.backend.name == ("numpy" if lost else "cupy")
        assert (f"as after epoch {trainer.epoch}, step {trainer.step}" in text) == lost
        assert state(trainer) == ends()[trainer.step]
        assert trainer.optimizer.steps == trainer.step
        assert (trainer.epoch == EPOCHS) == (phase == "after the last epoch")
