"""A GPU whose memory is too short for a batch: evaluation and prediction take fewer samples at a time."""

import gc
import re
import sys
from contextlib import ExitStack

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends import available_backends
from xnn.backends.kernels.cuda import cublas
from xnn.errors import DeviceMemoryError
from xnn.layers.files import weights_sha256
from xnn.layers.parts import Parts

_REASON = available_backends()["cupy"]
_ATTACHED = sys.modules.get("cuda_emulator.attach")
if not _REASON and (_ATTACHED is None or not _ATTACHED.attached()):
    _REASON = "the emulated GPU's memory can be made short"
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "the emulated GPU runs")

ROWS, WIDTH = 1500, 600
X = (np.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) * 7919 % 1009 / 1009).astype(np.float32)
Y = np.arange(ROWS) % 3
USES = {
    "evaluate": lambda t: t.evaluate((X, Y)),
    "evaluate, with weights": lambda t: t.evaluate((X, Y), sample_weight=np.arange(ROWS) % 4 + 1.0),
    "predict": lambda t: t.model.predict(X),
    "predict_classes": lambda t: t.model.predict_classes(X),
    "validation": lambda t: validated(t),
}


ADVICE = r": raise CUPY_GPU_MEMORY_LIMIT (?!.*batch_size)"


def made(numerics):
    model = xnn.Sequential(
        layers.Dense(WIDTH, 8), layers.BatchNorm(8), layers.ReLU(), layers.Dense(8, 3), seed=2
    )
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), numerics=numerics)


def validated(trainer):
    history = trainer.fit((X[:8], Y[:8]), validation=(X, Y), batch_size=4, progress=False)
    return {name: value for name, value in history.epochs[0].items() if name.startswith("val_")}


@pytest.fixture
def room():
    """A function that sets how many bytes arrays can still take."""
    with xnn.backends.backend("cupy"), ExitStack() as stack:
        yield lambda size: stack.enter_context(_ATTACHED.free_memory(size))


@pytest.fixture
def sizes(monkeypatch):
    """How many rows went through a model at a time."""
    seen, run = [], Parts._run
    monkeypatch.setattr(Parts, "_run", lambda self, x: seen.append(len(x)) or run(self, x))
    return seen


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("use", USES)
def test_short_memory_gives_the_same_results(room, sizes, use, numerics):
    """A batch of 1024 rows takes 2.4 MB. In exact numerics not a bit differs."""
    call = USES[use]
    with xnn.backends.numerics(numerics):
        right = call(made(numerics))  # cuBLAS has its memory
        assert sizes == [1024, 476]
        trainer = made(numerics)
        room(2_000_000 if numerics == "fast" else 4_000_000)
        short = call(trainer)
    assert len(sizes) > 5  # the batch was tried, and its parts
    if numerics == "exact" or use == "predict_classes":
        np.testing.assert_equal(short, right)
    elif isinstance(right, dict):
        assert short == pytest.approx(right, rel=1e-5)
    else:
        np.testing.assert_allclose(short, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use", ["evaluate", "predict"])
def test_no_room_for_one_sample(room, use):
    """The advice is not a smaller batch, and the model still works."""
    trainer = made("fast")
    right = USES[use](trainer)
    lib = trainer.model.backend

    def full(size):
        raise lib.cupy.cuda.memory.OutOfMemoryError(size, 10, 20)

    with lib.cupy.cuda.using_allocator(full), pytest.raises(DeviceMemoryError) as raised:
        USES[use](trainer)
    assert re.match(
        f"cupy: Out of memory allocating .*There is no room for one sample{ADVICE}", str(raised.value)
    )
    np.testing.assert_equal(USES[use](trainer), right)


def test_what_was_enough_is_kept(room, sizes):
    """Later batches are not tried at full size again."""
    trainer = made("fast")
    trainer.model.predict(X)
    room(2_000_000)
    sizes.clear()
    trainer.model.predict(np.concatenate([X, X[:548]]))
    assert sizes == [1024, 512, 512, 512, 512]


def test_outputs_wait_for_their_copy_within_a_limit(room):
    """CUPY_GPU_MEMORY_LIMIT: outputs that were computed do not fill the memory."""
    lib = xnn.backends.get_backend("cupy")
    pool = lib.cupy.get_default_memory_pool()
    made_arrays = (lib.xp.ones(1 << 18) for _ in range(32))  # 64 MiB together
    gc.collect()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + (16 << 20))
    try:
        assert sum(len(array) for array in lib.to_host_all(made_arrays)) == 32 << 18
    finally:
        pool.set_limit(size=0)


@pytest.mark.parametrize("rows", [1, 60])
def test_no_room_for_training(room, rows):
    """A smaller batch is advised only where there is one that fits."""
    made("fast").fit((X[:4], Y[:4]), batch_size=2, progress=False)  # what is made once
    trainer = made("fast")
    room(4096)
    with pytest.raises(DeviceMemoryError, match=f"no room for training with batches of one sample{ADVICE}"):
        trainer.fit((X[:60], Y[:60]), batch_size=rows, progress=False)


def test_no_room_for_a_file_s_weights(room, tmp_path):
    """The file is not blamed, and a model takes all of its weights or none."""
    path = str(tmp_path / "model.safetensors")
    made("fast").model.save(path)
    other = made("fast").model
    other.layers[0].weight.value = other.layers[0].weight.value * 2.0
    before = weights_sha256(other)
    room(4096)
    for load in (xnn.load, other.load_weights):
        with pytest.raises(DeviceMemoryError, match=f"no room for the weights in {re.escape(path)}{ADVICE}"):
            load(path)
    assert weights_sha256(other) == before


@pytest.mark.parametrize(
    ("limit", "size"), [(0, 32 << 20), (1 << 30, 32 << 20), (16_000_000, 1_000_000), (500_000, 64 << 10)]
)
def test_cublas_takes_a_part_of_a_small_memory(room, limit, size):
    """Its 32 MiB are for a GPU that has them: `CUPY_GPU_MEMORY_LIMIT=10000000` is enough for a small model."""
    cupy = xnn.backends.get_backend("cupy").cupy
    pool = cupy.get_default_memory_pool()
    pool.set_limit(size=limit)
    try:
        with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
            handle = cublas.Cublas()
    finally:
        pool.set_limit(size=0)
    assert handle.workspace.nbytes == size


def test_cublas_takes_less_where_the_memory_is_full(room):
    cupy = xnn.backends.get_backend("cupy").cupy
    pool = cupy.cuda.MemoryPool()

    def full(size):
        if size > 1 << 20:
            raise cupy.cuda.memory.OutOfMemoryError(size, 10, 20)
        return pool.malloc(size)

    with cupy.cuda.using_allocator(full):
        assert cublas.Cublas().workspace.nbytes == 512 << 10
