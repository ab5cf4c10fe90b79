"""Memory that is not enough: said before the first step or when it happens, with what would fit; nothing is lost."""

import gc
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from campaign import Forker, command, outcome
from command_line import one_json
from command_line import run as xnn_run

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends import memory
from xnn.backends.numpy_backend import NumpyBackend
from xnn.errors import DataError, DeviceMemoryError
from xnn.layers.files import weights_sha256

MIB = 2**20
FITS = re.compile(r"a batch of (\d+) is too much: batch_size=(\d+) \(--batch-size \2\) would fit$")


@pytest.fixture(scope="module")
def forker():
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux limits the memory of a process and says how much it has")
    made = Forker()
    yield made
    made.close()


LINE = [
    "python",
    "-m",
    "xnn",
    "train",
    "--hidden",
    "200,200",
    "--epochs",
    "1",
    "--kernels",
    "numpy",
    "--threads",
    "1",
    "--quiet",
]


@pytest.mark.slow
def test_a_batch_that_is_too_large(forker, tmp_path):
    """By a real limit. The batch size that the message names does fit."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(9000, 50)).astype(np.float32), y=np.arange(9000) % 3)
    line = [*LINE, "--dataset", str(tmp_path / "data.npz"), "--batch-size"]
    code, complaints = forker.ended([*line, "9000"], tmp_path, memory=40)
    assert code == 6, complaints
    assert re.match("xnn: numpy: (training in batches of 7200 needs|Unable to allocate)", complaints), (
        complaints
    )
    for held in (r"The data hold \d+ MiB, the weights \d+ MiB", r"and a batch needs \d+ MiB"):
        assert re.search(held, complaints), complaints
    fits = int(FITS.search(complaints.strip())[2])
    assert 64 <= fits < 7200
    code, complaints = forker.ended([*line, str(fits)], tmp_path, memory=40)
    assert code == 0, complaints


@pytest.mark.sampled(8)
@pytest.mark.parametrize("megabytes", [40, 90])
def test_data_that_are_too_large(forker, tmp_path, megabytes):
    """More than the memory at once, or with the copies that reading makes."""
    np.savez_compressed(tmp_path / "data.npz", x=np.ones((megabytes * 1024, 256), np.float32), y=np.arange(
        megabytes * 1024) % 2)  # fmt: skip
    code, complaints = forker.ended([*LINE, "--dataset", str(tmp_path / "data.npz")], tmp_path, memory=60)
    assert code == 6, complaints
    assert re.fullmatch(
        r"xnn: [^\n]*data.npz (is too large for|does not fit into) memory[^\n]* free[^\n]*\n", complaints
    )


def trainer_of(rows=3000, kernels="numpy"):
    model = xnn.Sequential(layers.Dense(20, 100), layers.ReLU(), layers.Dense(100, 100), layers.BatchNorm(100),
                           layers.ReLU(), layers.Dense(100, 3), seed=2)  # fmt: skip
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(), kernels=kernels)
    return trainer, (np.ones((rows, 20), np.float32), np.arange(rows) % 3)


def state(trainer):
    """The weights, buffers, and which arrays of the optimizer are not zeros."""
    kept = [array for known in trainer.optimizer.state.values() for array in known.arrays]
    return [array.value.tobytes() for _, array in trainer.model.named_state()], [a for a in kept if np.any(a)]


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_it_is_said_before_the_first_step(monkeypatch, kernels):
    """As in a container whose limit ends the process instead of refusing memory."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(NumpyBackend, "free_memory", lambda self: 4 * MIB)
    trainer, data = trainer_of(kernels=kernels)
    before = state(trainer)
    with pytest.raises(DeviceMemoryError, match=r"training in batches of 3000 needs about \d+ MiB") as raised:
        trainer.fit(data, batch_size=3000, progress=False)
    assert state(trainer) == before
    assert trainer.step == trainer.optimizer.steps == 0
    given, fits = map(int, FITS.search(str(raised.value)).groups())
    assert (given, fits >= 64) == (3000, True)
    trainer.fit((data[0][: 2 * fits], data[1][: 2 * fits]), batch_size=fits, progress=False)
    assert trainer.step >= 1


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("mapped", "held"), [(False, 4), (True, 0)])
def test_data_in_files_hold_no_memory(monkeypatch, tmp_path, mapped, held):
    monkeypatch.setattr(NumpyBackend, "free_memory", lambda self: 16 * MIB)
    trainer, (_, y) = trainer_of(rows=50_000)
    np.save(tmp_path / "x.npy", np.ones((50_000, 20), np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r" if mapped else None)
    with pytest.raises(DeviceMemoryError, match=f"The data hold {held} MiB"):
        trainer.fit((np.asarray(x), y.astype(np.int8)), batch_size=3000, progress=False)


def test_looking_at_the_memory_changes_no_bit(monkeypatch):
    found = []
    for free in (8, 2**20):
        monkeypatch.setattr(NumpyBackend, "free_memory", lambda self, free=free: free * MIB)
        trainer, data = trainer_of()
        history = trainer.fit(data, batch_size=300, epochs=2, progress=False)
        found.append((weights_sha256(trainer.model), history.losses_sha256, state(trainer)[0]))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_network_that_is_too_large_for_one_sample(monkeypatch):
    monkeypatch.setattr(NumpyBackend, "free_memory", lambda self: MIB // 20)
    trainer, data = trainer_of()
    with pytest.raises(DeviceMemoryError, match=r"needs about \d+ MiB, and 0 MiB are free"):
        trainer.fit(data, batch_size=3000, progress=False)


def test_evaluation_takes_fewer_rows_at_a_time(monkeypatch):
    trainer, data = trainer_of()
    wanted, run, sizes = trainer.evaluate(data), type(trainer.model).run, []

    def short(self, x, *arguments, **options):
        sizes.append(len(x))
        if len(x) > 200:
            raise MemoryError("Unable to allocate 9 MiB")
        return run(self, x, *arguments, **options)

    monkeypatch.setattr(type(trainer.model), "run", short)
    found = trainer.evaluate(data)
    assert found["accuracy"] == wanted["accuracy"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert sizes[:3] == [1024, 512, 256]
    assert max(sizes[3:]) == 128


def test_memory_that_is_full_in_the_middle_of_a_run(tmp_path, monkeypatch):
    """The exit code is 6, the checkpoints stay, and the run goes on with its bits."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    wanted = outcome(one_json(xnn_run(*command("sgd", whole, checkpoints=False)[3:])), whole)

    def full(self, history, entry):
        if entry["epoch"] == 3:
            raise np._core._exceptions._ArrayMemoryError((9, 9), np.dtype("float32"))

    line = command("sgd", broken)[3:]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.TimeLimit, "on_epoch_end", full)
        result = xnn_run(*line, "--time-limit", "9h")
    assert result.exit_code == 6
    assert "Unable to allocate" in result.stderr
    assert outcome(one_json(xnn_run(*line)), broken) == wanted


def test_what_is_loaded_is_named(monkeypatch, tmp_path):
    def full(*arguments):
        raise MemoryError("Unable to allocate 3.00 TiB")

    monkeypatch.setattr("xnn.data.datasets.from_npz", full)
    with pytest.raises(
        DataError, match=r"the data set .*a\.npz does not fit into memory \(Unable .* MiB are free"
    ):
        xnn.data.load(tmp_path / "a.npz")


PLAIN = {"/proc/meminfo": [["MemTotal:", "9000", "kB"], ["MemAvailable:", "8192", "kB"]]}
V2 = {
    "/proc/self/cgroup": [["0::/job/step"]],
    "/sys/fs/cgroup/job/memory.max": [["4194304"]],
    "/sys/fs/cgroup/job/memory.current": [["3145728"]],
    "/sys/fs/cgroup/job/memory.stat": [["anon", "1"], ["inactive_file", "1048576"]],
    "/sys/fs/cgroup/job/step/memory.max": [["max"]],
}
V1 = {
    "/proc/self/cgroup": [["4:cpu:/"], ["9:memory:/docker/a"]],
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": [["3145728"]],
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": [["2097152"]],
    "/sys/fs/cgroup/memory/memory.stat": [["inactive_file", "7"], ["total_inactive_file", "1024"]],
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (PLAIN, 8 * MIB),
        (PLAIN | V2, 2 * MIB),
        (PLAIN | V1, MIB + 1024),
        (PLAIN | V2 | {"/sys/fs/cgroup/job/memory.current": [["9999999"]]}, 0),
    ],
)
def test_free_memory_is_what_the_system_and_the_container_leave(monkeypatch, files, free):
    monkeypatch.setattr(memory, "_left_by_limits", list)
    monkeypatch.setattr(memory, "_words", lambda path: files.get(path, []))
    assert memory.free_memory() == free


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count as getrusage does")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    held = np.ones(2**25)  # 256 MiB
    program = "from xnn.backends.memory import peak_resident_bytes; print(peak_resident_bytes())"
    words = [sys.executable, "-c", program]
    child = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert 10 * MIB < child < held.nbytes <= memory.peak_resident_bytes()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says what a process has")
def test_free_memory_is_at_most_what_limits_leave(monkeypatch):
    import resource

    there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: there + 64 * MIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    assert 0 < memory.free_memory() <= 65 * MIB


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_fit_keeps_no_data_until_garbage_is_collected(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = np.ones((10, 3), "float32"), np.zeros(10, "int64")
    trainer = xnn.Trainer(
        xnn.Sequential(layers.Dense(3, 2)), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels
    )
    gc.collect()
    gc.disable()
    try:
        trainer.fit((x, y), epochs=2, batch_size=4, progress=False)  # by two programs: for 4 rows, and for 2
        data = weakref.ref(x)
        del x
        assert data() is None
    finally:
        gc.enable()
