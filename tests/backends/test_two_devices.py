"""Two GPUs: backends, arrays and models of each, and operations that mix them. The emulated GPU can be two."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import available_backends, backend, backend_of, get_backend, registry
from xnn.callbacks import Callback
from xnn.errors import BackendUnavailableError, MixedArraysError, UnknownBackendError

_REASON = available_backends()["cupy"]
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy runs")
_ATTACHED = sys.modules.get("cuda_emulator.attach")

X = (np.arange(100 * 20) % 7 / 7).astype(np.float32).reshape(100, 20)
Y = np.arange(100) % 5


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CuPy's runtime, where there are two devices."""
    runtime = get_backend("cupy").cupy.cuda.runtime  # type: ignore[attr-defined]
    if runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    monkeypatch.delenv("XNN_DEVICE", raising=False)
    yield runtime
    runtime.setDevice(0)


def made(name: str, kernels: str = "auto", callbacks: Any = ()) -> xnn.Trainer:
    with backend(name):
        model = xnn.Sequential(
            layers.Dense(20, 33), layers.BatchNorm(33), layers.ReLU(), layers.Dense(33, 5), seed=3
        )
    return xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), kernels=kernels, callbacks=callbacks
    )


def weights(trainer: xnn.Trainer) -> list[bytes]:
    return [p.value.get().tobytes() for p in trainer.model.parameters()]


def device_of(trainer: xnn.Trainer) -> set[int]:
    return {int(array.array.device.id) for _, array in trainer.model.named_state()}


def test_names(monkeypatch):
    first, second = get_backend("cupy"), get_backend("cupy:1")
    assert (first.name, second.name) == ("cupy", "cupy:1")
    assert get_backend("cupy:0") is first
    assert get_backend("cupy:1") is second
    monkeypatch.setenv("XNN_DEVICE", "1")
    assert get_backend("cupy") is second
    monkeypatch.setenv("XNN_BACKEND", "cupy")
    assert xnn.backends.current_backend() is second
    for lib in (first, second):  # whatever XNN_DEVICE says
        assert pickle.loads(pickle.dumps(lib)) is copy.deepcopy(lib) is lib
        assert get_backend(lib.address) is lib
    with backend("cupy:0") as lib:
        assert xnn.backends.current_backend() is lib is first


def test_each_process_of_a_launcher_has_the_next_gpu(monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    first, second = get_backend("cupy:0"), get_backend("cupy:1")
    monkeypatch.setenv("PMI_SIZE", "8")
    for rank, local, found in ((5, 1, second), (6, 2, first), (7, 3, second)):
        monkeypatch.setenv("PMI_RANK", str(rank))
        monkeypatch.setenv("MPI_LOCALRANKID", str(local))
        assert get_backend("cupy") is found
        assert registry.gpu_number() == found.number
    monkeypatch.setenv("XNN_DEVICE", "0")  # the user's word counts
    assert get_backend("cupy") is first
    assert get_backend("cupy:1") is second


WRONG = {
    "cupy:2": (BackendUnavailableError, "there is no GPU 2: there are 2 GPUs, numbers 0 to 1"),
    "cupy:-1": (UnknownBackendError, "'cupy:-1' is not a backend"),
    "cupy:": (UnknownBackendError, "'cupy:' is not a backend"),
    "cupy:one": (UnknownBackendError, "'cupy:one' is not a backend"),
    "numpy:1": (UnknownBackendError, "'numpy:1' is not a backend"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_are_refused(name):
    kind, text = WRONG[name]
    for use in (get_backend, xnn.use_backend, lambda n: made("numpy").model.to(n)):
        with pytest.raises(kind, match=text):
            use(name)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2", "there is no GPU 2: there are 2"),
        ("x", "XNN_DEVICE='x' is not"),
        ("-1", "XNN_DEVICE='-1' is not"),
    ],
)
def test_a_wrong_variable_is_refused(monkeypatch, value, text):
    monkeypatch.setenv("XNN_DEVICE", value)
    with pytest.raises(BackendUnavailableError, match=text):
        get_backend("cupy")
    assert text in available_backends()["cupy"]
    assert get_backend("numpy").name == "numpy"


def test_with_one_gpu_the_message_says_so(monkeypatch):
    if _ATTACHED is None or not _ATTACHED.attached():
        pytest.skip("there are two GPUs")
    monkeypatch.setenv("XNN_EMULATOR_DEVICES", "1")
    monkeypatch.setattr(registry, "_instances", {})
    with pytest.raises(BackendUnavailableError, match="there is one GPU, number 0"):
        get_backend("cupy:1")


def test_arrays_belong_to_their_device(two):
    first, second = get_backend("cupy"), get_backend("cupy:1")
    a, b = first.to_device(X), second.to_device(X)
    assert (a.device.id, b.device.id) == (0, 1)
    assert second.xp.zeros(3).device.id == 1
    for array, lib in ((a, first), (b, second), (a, first)):
        assert backend_of(array) is lib
        assert ops.exp(array).device == array.device  # which device is the current one does not matter
        np.testing.assert_array_equal(lib.to_host(array), X)
    moved = second.to_device(a)
    assert moved.device.id == 1
    np.testing.assert_array_equal(second.to_host_all([moved])[0], X)
    assert second.to_device(b) is b


MIXING = {
    "an op": lambda a, b: ops.add(a, b),
    "a product": lambda a, b: ops.matmul(a, b.T),
    "backend_of": backend_of,
    "a layer": lambda a, b: made("cupy").model.forward(b),
    "fit": lambda a, b: made("cupy").fit((b, Y), progress=False),
    "evaluate": lambda a, b: made("cupy").evaluate((b, Y)),
    "predict": lambda a, b: made("cupy").model.predict(b),
}


@pytest.mark.parametrize("name", MIXING)
def test_arrays_of_two_devices_do_not_mix(name):
    a, b = get_backend("cupy").to_device(X), get_backend("cupy:1").to_device(X)
    with pytest.raises(MixedArraysError, match="cupy:1") as raised:
        MIXING[name](a, b)
    assert "cupy:0" in str(raised.value)
    assert not re.search(r"cupy(?!:\d)", str(raised.value).partition(": ")[0])


@pytest.mark.parametrize("name", ["cupy:0", "cupy:1"])
def test_a_device_has_its_number_wherever_it_is_named(name):
    """In the model's backend, the plan and messages, so that the first of the GPUs has one name."""
    trainer = made(name)
    assert repr(trainer.model.backend) == f"<backend {name}>"
    assert trainer.fit((X, Y), progress=False).plan["backend"] == name
    with pytest.raises(MixedArraysError, match=f"is an array of {name},"):
        np.asarray(next(iter(trainer.model.parameters())))
    with pytest.raises(MixedArraysError, match=f"arrays of {name} and of numpy:"):
        ops.add(get_backend(name).to_device(X), X)


@pytest.mark.parametrize("kernels", ["cuda", "ops"])
def test_both_devices_train_to_the_same_bits(kernels):
    """By turns and in threads: each fit's work is done on its model's device."""
    trainers = made("cupy", kernels), made("cupy:1", kernels)
    for _ in range(2):
        for trainer in trainers:
            trainer.fit((X, Y), epochs=2, progress=False)
    threads = [threading.Thread(target=t.fit, args=((X, Y),), kwargs={"progress": False}) for t in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [t.epoch for t in trainers] == [5, 5]
    assert weights(trainers[0]) == weights(trainers[1])
    assert [device_of(t) for t in trainers] == [{0}, {1}]
    assert [t.history.plan["backend"] for t in trainers if t.history] == ["cupy:0", "cupy:1"]
    assert trainers[0].evaluate((X, Y)) == trainers[1].evaluate((X, Y))
    np.testing.assert_array_equal(trainers[0].model.predict(X), trainers[1].model.predict(X))


@pytest.mark.parametrize("kernels", ["cuda", "ops"])
@pytest.mark.parametrize("method", ["on_step", "on_check", "on_epoch_end"])
def test_callbacks_may_work_on_the_other_device(kernels, method):
    other = made("cupy")

    def call(self, *_):
        other.model.predict(X)
        ops.exp(other.model.layers[0].weight.value)

    watcher = type("Watcher", (Callback,), {method: call})
    alone, watched = made("cupy:1", kernels), made("cupy:1", kernels, [watcher()])
    for trainer in (alone, watched):
        trainer.fit((X, Y), validation=(X, Y), epochs=3, progress=False)
    assert weights(alone) == weights(watched)
    assert device_of(watched) == {1}


def test_a_model_moves():
    trainer = made("cupy")
    trainer.fit((X, Y), progress=False)
    before = weights(trainer)
    for name, device in (("cupy:1", 1), ("cupy:0", 0), ("cupy:1", 1)):
        trainer.model.to(name)
        assert weights(trainer) == before
        assert device_of(trainer) == {device}
        assert trainer.model.backend.address == f"cupy:{device}"
    trainer.model.to("numpy")


def test_exact_numerics_on_the_second_device():
    with xnn.numerics("exact"):
        here, there = made("numpy"), made("cupy:1")
        for trainer in (here, there):
            trainer.fit((X, Y), progress=False)
        assert [p.value.tobytes() for p in here.model.parameters()] == weights(there)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-m", "xnn", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XNN_EMULATOR_DEVICES": "2"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = "train", "--dataset", "synthetic", "--hidden", "4", "--epochs", "1", "--batch-size", "512", "--json"


def test_a_command_runs_on_the_second_device():
    done = command(*SMALL, "--backend", "cupy", "--device", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["backend"] == result["plan"]["backend"] == "cupy:1"


def test_info_lists_both_devices():
    done = command("info", "--json", XNN_BACKEND="cupy", XNN_DEVICE="1")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)["gpus"]
    assert [(gpu["number"], gpu["used"]) for gpu in listed] == [(0, False), (1, True)]
    assert all(
        gpu["name"] and gpu["memory_mb"] > 1000 and float(gpu["compute_capability"]) >= 7 for gpu in listed
    )
    said = command("info", XNN_BACKEND="cupy").stdout
    assert f"  cupy:1: {listed[1]['name']}, {listed[1]['memory_mb']:,} MB, compute capability" in said
    assert said.count("the backend cupy is this one") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((*SMALL, "--backend", "cupy", "--device", "2"), "there is no GPU 2: there are 2 GPUs"),
        ((*SMALL, "--device", "1"), "the backend is numpy: add --backend cupy"),
        ((*SMALL, "--backend", "cupy:0", "--device", "1"), "the backend is cupy:0"),
        (("check", "--backend", "cupy", "--device", "7"), "there is no GPU 7: there are 2 GPUs"),
        (("bench", "--backend", "cupy", "--device", "7"), "there is no GPU 7: there are 2 GPUs"),
    ],
)
def test_a_command_refuses_a_wrong_device(arguments, text):
    done = command(*arguments)
    assert done.returncode == (1 if "there is no GPU" in text else 2)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
