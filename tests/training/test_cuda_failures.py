"""A GPU that fails during a fit: what happened and what to do is said, and model and history are as documented.

The emulated GPU fails on demand, at each thing that is asked of it.
"""

import re
import sys

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import available_backends
from xnn.backends.kernels.cuda import cublas
from xnn.errors import DeviceError, DeviceLostError, DeviceMemoryError
from xnn.training import fit as fitting
from xnn.training.host_copy import HostCopy

_REASON = available_backends()["cupy"]
_ATTACHED = sys.modules.get("cuda_emulator.attach")
if not _REASON and (_ATTACHED is None or not _ATTACHED.attached()):
    _REASON = "only the emulated GPU fails on demand"
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "the emulated GPU runs")

X = np.arange(60 * 6, dtype=np.float32).reshape(60, 6) % 7 / 7
Y = np.arange(60) % 3
MEANT = {
    "illegal address": "a kernel read or wrote outside its arrays",
    "device lost": "another program has the GPU for itself, or the GPU is gone",
    "memory defect": "the GPU's memory has a defect",
}
EACH = 41  # a failure at each 41st call; 1 takes minutes
EPOCHS = 4  # of 8 steps, the last of 4 rows: captured from the second epoch on


def failing(*arguments):
    from cuda_emulator import attach

    return attach.failing(*arguments)


def made(optimizer=None, *between, **options):
    model = xnn.Sequential(layers.Dense(6, 5), layers.ReLU(), *between, layers.Dense(5, 3), seed=2)
    return xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizer or optimizers.Adam(0.01, average=0.9), **options
    )


def fit(trainer, epochs=EPOCHS):
    return trainer.fit((X, Y), validation=(X, Y), epochs=epochs - trainer.epoch, batch_size=8, progress=False)


def state(trainer):
    """The bits of everything that a fit changes. Before the first step the optimizer may have its zeros."""
    model, optimizer = trainer.model, trainer.optimizer
    arrays = [array.array for _, array in model.named_state()]
    if trainer.step:
        arrays += [array for p in model.parameters() for _, array in optimizer.kept_for(p)]
    return [np.asarray(a if isinstance(a, np.ndarray) else a.get()).tobytes() for a in arrays]


@pytest.fixture
def cupy_chosen():
    with xnn.backends.backend("cupy"):
        yield


@pytest.fixture(autouse=True)
def _looks_at_the_end_of_epochs_only(monkeypatch):
    monkeypatch.setattr(fitting, "_LOOK_SECONDS", float("inf"))


@pytest.fixture
def states(cupy_chosen):
    """The state after each epoch, by the number of steps, and how many things a fit asks of the device."""
    trainer, found = made(), {}
    found[0] = state(trainer)
    fit(trainer)  # compiles
    trainer = made()
    with failing() as failure:
        fit(trainer)
    for epochs in range(1, EPOCHS + 2):
        trainer = made()
        fit(trainer, epochs)
        found[trainer.step] = state(trainer)
    return found, failure.asked


def failed(number, kind):
    """A trainer whose fit failed when the device was asked for this the `number`th time, and the error."""
    trainer = made()
    with failing(number, kind):
        raised = None
        try:
            fit(trainer)
        except DeviceError as error:
            raised = error
    if raised is not None:
        assert "\n" not in str(raised)
        assert trainer.history is None or str(raised) in trainer.history.error
    return trainer, raised


def test_a_call_that_fails_leaves_the_last_look(states):
    """At calls all over the fit: model and optimizer are as after an epoch, and another fit goes on from there."""
    found, asked = states
    seen = set()
    for number in range(1, asked, EACH):
        trainer, raised = failed(number, "invalid value")
        assert raised is not None or trainer.history.error == ""
        assert trainer.model.backend.name == "cupy"
        assert state(trainer) == found[trainer.step], number
        assert trainer.optimizer.steps == trainer.step
        if raised is not None:
            assert type(raised) is DeviceError
            assert "refused a call (" in str(raised)
        seen.add(trainer.step)
        fit(trainer, EPOCHS + 1)
        assert state(trainer) == found[8 * EPOCHS + 8], number
    assert len(seen) == EPOCHS + 1 or EACH > 1


@pytest.mark.parametrize("error", ["illegal address", "device lost", "memory defect"])
def test_a_lost_device_leaves_the_model_on_the_host(states, error):
    """At calls all over the fit: model and optimizer are on the host, as at the end of an epoch, and can go on."""
    found, asked = states
    seen = set()
    for number in range(2, asked, EACH):
        trainer, raised = failed(number, error)
        if raised is None:
            continue
        assert type(raised) is DeviceLostError
        assert MEANT[error] in str(raised)
        assert "Start a new process" in str(raised)
        if "load the model's last file" in str(raised):  # there is no copy
            assert trainer.step == 0
            continue
        assert f"numpy backend, as after epoch {trainer.epoch}, step {trainer.step}" in str(raised)
        assert trainer.model.backend.name == "numpy"
        assert trainer.step == 8 * trainer.epoch == trainer.optimizer.steps
        assert state(trainer) == found[trainer.step], number
        seen.add(trainer.step)
        assert len((trainer.history or xnn.history.History()).epochs) in (trainer.epoch, trainer.epoch + 1)
    assert len(seen) >= EPOCHS
    fit(trainer, EPOCHS + 1)
    assert trainer.model.predict(X).shape == (60, 3)


@pytest.fixture
def seven_mebibytes(cupy_chosen):
    """A device with so much free memory."""
    fit(made())  # cuBLAS has its memory
    with _ATTACHED.free_memory(7 << 20):
        yield


@pytest.mark.parametrize("kernels", ["cuda", "ops"])
@pytest.mark.parametrize("rows", [4096, 3000])
def test_full_memory_names_a_batch_size_that_fits(seven_mebibytes, rows, kernels):
    """Computed from what a step needs; the model is as before, and the batch size does fit."""
    model = xnn.Sequential(layers.Dense(20, 100), layers.ReLU(), layers.Dense(100, 100), layers.ReLU(),
                           layers.Dense(100, 3), seed=2)  # fmt: skip
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(), kernels=kernels)
    x, y = np.ones((rows, 20), np.float32), np.arange(rows) % 3
    before = state(trainer)
    with pytest.raises(DeviceMemoryError, match=r"Out of memory allocating [\d,]+ bytes") as raised:
        trainer.fit((x, y), batch_size=rows, progress=False)
    assert state(trainer) == before
    assert trainer.step == trainer.optimizer.steps == 0
    found = re.search(
        r"batch of (\d+) is too much: batch_size=(\d+) \(--batch-size \2\) would fit", str(raised.value)
    )
    assert found is not None, str(raised.value)
    del raised  # and with it the arrays of the fit
    given, fits = map(int, found.groups())
    assert given == rows
    assert rows // 8 <= fits < rows
    trainer.fit((x[: 2 * fits], y[: 2 * fits]), batch_size=fits, progress=False)
    assert trainer.step == -(-min(2 * fits, rows) // fits)


def test_memory_of_the_device_is_measured(cupy_chosen):
    lib = xnn.backends.get_backend("cupy")
    with lib.measured() as measured:
        for _ in range(2):
            a = lib.xp.ones(1 << 20)
            del a
    assert measured.peak == 1 << 23
    lib = xnn.backends.get_backend("numpy")
    assert lib.free_memory() > 0
    with lib.measured() as measured:
        for _ in range(2):
            a = lib.xp.ones(1 << 20)
            del a
    assert 1 << 23 <= measured.peak < (1 << 23) + 10_000


def test_what_is_kept_on_the_host_costs_one_wait_an_epoch(cupy_chosen, monkeypatch):
    """And at most four copies for a small model, three of addresses. At the beginning, and after each epoch."""
    from cuda_emulator import attach

    logs, take = [], HostCopy.take

    def logged(self):
        with attach.recorded() as lines:
            take(self)
        logs.append(lines)

    monkeypatch.setattr(HostCopy, "take", logged)
    fit(made(), 3)
    assert len(logs) == 4
    for lines in logs:
        kinds = [line.split()[0] for line in lines]
        assert kinds.count("COPY") <= 4
        assert (kinds.count("SYNC"), kinds[-1]) == (1, "SYNC")


def test_without_a_copy_the_error_says_so(cupy_chosen):
    trainer, (_, raised) = made(), failed(1, "device lost")
    assert "Start a new process and load the model's last file" in str(raised)
    assert trainer.step == 0


def test_a_product_that_fails_is_named(cupy_chosen, monkeypatch):
    trainer = made()
    fit(trainer, 1)
    monkeypatch.setattr(cublas.Product, "__init__", _broken(cublas.Product.__init__))
    with pytest.raises(
        DeviceError, match=r"the matrix product 8x6 by 6x5 failed: CUBLAS_STATUS_INVALID_VALUE"
    ):
        fit(trainer)


def _broken(make):
    def init(self, *arguments):
        make(self, *arguments)
        self._call = lambda *_: 7

    return init


def test_lbfgs_and_a_lost_device(cupy_chosen):
    """Model and optimizer are as after an iteration."""
    pytest.importorskip("scipy")

    def run(epochs, number=0):
        trainer = made(optimizers.LBFGS())
        with failing(number, "device lost") as failure:
            try:
                fit(trainer, epochs)
            except DeviceLostError as error:
                return trainer, failure, error
        return trainer, failure, None

    run(1)
    _, failure, _ = run(EPOCHS)
    found = {0: state(made())} | {epochs: state(run(epochs)[0]) for epochs in range(1, EPOCHS + 1)}
    seen = set()
    for number in range(failure.asked // 10, failure.asked, failure.asked // 8):
        trainer, _, error = run(EPOCHS, number)
        assert error is not None
        assert trainer.model.backend.name == "numpy"
        assert [a[:100] for a in state(trainer)[:4]] == [a[:100] for a in found[trainer.epoch][:4]], number
        seen.add(trainer.epoch)
    assert len(seen) > 2


USES = {
    "evaluate": lambda t, x, y: t.evaluate((X, Y)),
    "predict": lambda t, x, y: t.model.predict(X),
    "forward": lambda t, x, y: t.model.forward(x),
    "a model called": lambda t, x, y: t.model(x),
    "an op": lambda t, x, y: ops.exp(x),
    "a loss": lambda t, x, y: t.loss(x, y),
    "a step by hand": lambda t, x, y: by_hand(t, x, y),
    "the optimizer's step": lambda t, x, y: t.optimizer.step(t.model.parameters()),
    "autograd": lambda t, x, y: xnn.grad(lambda z: ops.sum(z * z))(x),
    "a metric": lambda t, x, y: xnn.metrics.get("accuracy")(x, y),
    "save": lambda t, x, y: t.model.save("model.safetensors"),
    "to": lambda t, x, y: t.model.to("numpy"),
    "to_host": lambda t, x, y: t.model.backend.to_host(x),
    "to_device": lambda t, x, y: t.model.backend.to_device(X),
    "synchronize": lambda t, x, y: t.model.backend.synchronize(),
}


def by_hand(trainer, x, y):
    trainer.loss.forward(trainer.model.forward(x, training=True), y)
    trainer.model.backward(trainer.loss.backward())


@pytest.mark.parametrize("use", USES)
def test_every_use_explains_a_failure(cupy_chosen, use, tmp_path, monkeypatch):
    """One line with what to do. A lost GPU says so at the next call, too; the model is where it was."""
    monkeypatch.chdir(tmp_path)
    trainer = made(optimizers.SGD(0.1))
    fit(trainer, 1)
    lib, call = trainer.model.backend, USES[use]
    x, y = lib.to_device(X), lib.to_device(Y)
    for _ in range(2):  # the second time CuPy has memory
        trainer.model.to("cupy")
        by_hand(trainer, x, y)
        with failing() as failure:
            call(trainer, x, y)
    last, refused = failure.asked, []
    for number in range(last, 0, -1):  # the last call may be one whose failure does not matter
        trainer.model.to("cupy")
        with failing(number, "invalid value"):
            try:
                call(trainer, x, y)
            except DeviceError as error:
                refused.append(str(error))
                break
    assert refused[0].startswith("cupy: the GPU refused a call")
    last = number
    with failing(last, "illegal address"):
        for again in (call, call, USES["evaluate"], USES["predict"]):
            with pytest.raises(
                DeviceLostError, match=r"^cupy: .* a new process and load the model's last file"
            ) as lost:
                again(trainer, x, y)
    with pytest.raises(DeviceLostError), failing(last, "device lost"):
        call(trainer, x, y)
    assert "\n" not in refused[0] + str(lost.value)
    assert trainer.model.backend is lib
    call(trainer, x, y)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"] * (use == "save")


@pytest.mark.parametrize("use", [use for use in USES if use not in ("synchronize", "the optimizer's step")])
def test_full_memory_is_explained_by_hand_too(cupy_chosen, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = made(optimizers.SGD(0.1))
    fit(trainer, 1)
    lib = trainer.model.backend
    x, y = lib.to_device(X), lib.to_device(Y)

    def full(size):
        raise lib.cupy.cuda.memory.OutOfMemoryError(512, 10, 20)

    with lib.cupy.cuda.using_allocator(full):
        if use in ("save", "to", "to_host"):
            USES[use](trainer, x, y)  # which needs no memory there
            return
        advice = "no room for one sample: raise" if use in ("evaluate", "predict") else "smaller batch_size"
        with pytest.raises(DeviceMemoryError, match=rf"^cupy: Out of memory allocating 512 bytes .*{advice}"):
            USES[use](trainer, x, y)
