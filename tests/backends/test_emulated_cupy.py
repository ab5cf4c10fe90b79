"""A real CuPy on the emulated GPU: captures and graphs, products, memory, checks, caches, child processes."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import attach, build
from cuda_emulator.attach import failing, recorded

from xnn.backends import available_backends
from xnn.backends.cupy_failures import limit_fault

TESTS = Path(__file__).parents[1]
WHY_NOT = build.obstacle() or ("" if attach.attached() else "there is a GPU") or available_backends()["cupy"]
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def cp() -> Any:
    return importlib.import_module("cupy")


@pytest.fixture
def stream(cp: Any) -> Iterator[Any]:
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        yield stream


def python(code: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without writing compiled files, so that a copied emulator stays as it is."""
    return subprocess.run(
        [sys.executable, "-B", *arguments, "-c", code],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


# Stream capture.


def test_a_graph_does_its_work_when_it_is_launched(cp, stream):
    x, y = cp.arange(4.0), cp.zeros(4)
    cp.multiply(x, 3.0, out=y)  # compiled before the capture
    y[...] = 0
    stream.begin_capture()
    with recorded() as captured:
        cp.multiply(x, 3.0, out=y)
        cp.multiply(y, 3.0, out=y)
    graph = stream.end_capture()
    assert [line.split()[:2] for line in captured] == [["CAPTURE", "KERNEL"]] * 2
    assert y.get().tolist() == [0, 0, 0, 0]
    with recorded() as launched:
        graph.launch(stream)
    assert launched == ["GRAPH 2"]
    assert y.get().tolist() == [0, 9, 18, 27]


def test_a_graph_sees_what_lies_on_the_device_when_it_is_launched(cp, stream):
    x, y = cp.ones(3), cp.zeros(3)
    cp.add(x, 1.0, out=y)
    stream.begin_capture()
    cp.add(x, 1.0, out=y)
    graph = stream.end_capture()
    for value in (5.0, 7.0):
        x[...] = value
        graph.launch(stream)
        assert y.get().tolist() == [value + 1] * 3


#: What a capture refuses, and whether the run-time refuses it, which ends the capture, or CuPy itself.
REFUSED = {
    "a product through CuPy": (lambda cp, x: cp.matmul(x, x, out=x), False),
    "reading an array": (lambda cp, x: x.get(), False),
    "a number": (lambda cp, x: float(x[0, 0]), False),
    "an array of the host": (lambda cp, x: cp.asarray(np.ones(3)), False),
    "a mask": (lambda cp, x: x[x > 0], False),
    "waiting for the stream": (lambda cp, x: cp.cuda.get_current_stream().synchronize(), True),
    "sorting": (lambda cp, x: x.sort(), True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_waits_or_is_cublas_through_cupy_cannot_be_captured(cp, stream, name):
    call, ends = REFUSED[name]
    x = cp.ones((3, 3))
    call(cp, cp.ones((3, 3)))  # allowed outside a capture
    stream.begin_capture()
    with pytest.raises((NotImplementedError, RuntimeError)):
        call(cp, x)
    if ends:
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
            stream.end_capture()
    else:
        stream.end_capture()
    assert cp.ones(3).sum() == 3  # and the stream is usable again


@pytest.mark.parametrize("relaxed", [False, True])
def test_memory_is_allocated_during_a_relaxed_capture_only(cp, stream, relaxed):
    runtime = cp.cuda.runtime
    mode = runtime.streamCaptureModeRelaxed if relaxed else runtime.streamCaptureModeGlobal
    stream.begin_capture(mode)
    if relaxed:
        runtime.free(runtime.malloc(512))
        stream.end_capture()
    else:
        with pytest.raises(runtime.CUDARuntimeError, match="StreamCaptureUnsupported"):
            runtime.malloc(512)
        with pytest.raises(runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
            stream.end_capture()


def test_the_legacy_stream_does_nothing_while_a_blocking_stream_captures(cp):
    x = cp.ones(3)
    x += 1
    stream = cp.cuda.Stream()
    stream.begin_capture()
    with pytest.raises(RuntimeError), cp.cuda.Stream.null:
        x.get()
    stream.end_capture()
    assert x.get().tolist() == [2, 2, 2]


# cuBLAS by hand, as a captured step uses it.


class Blas:
    """cuBLAS through ctypes, on a handle of our own."""

    def __init__(self, stream: Any) -> None:
        self.lib = ctypes.CDLL("libcublas.so.13")
        self.handle = ctypes.c_void_p()
        assert self.lib.cublasCreate_v2(ctypes.byref(self.handle)) == 0
        assert self.lib.cublasSetStream_v2(self.handle, ctypes.c_void_p(stream.ptr)) == 0
        assert self.lib.cublasSetPointerMode_v2(self.handle, 1) == 0  # alpha and beta lie on the device

    def gemm(self, a: Any, b: Any, c: Any, alpha: Any, beta: Any) -> None:
        """c <- alpha * a @ b + beta * c, of C-contiguous float32 matrices: column-major, c.T <- b.T @ a.T."""
        (m, k), n = a.shape, b.shape[1]
        at = [ctypes.c_void_p(x.data.ptr) for x in (alpha, b, a, beta, c)]
        done = self.lib.cublasSgemm_v2(self.handle, 0, 0, n, m, k, at[0], at[1], n, at[2], k, at[3], at[4], n)
        assert done == 0


def test_alpha_and_beta_are_read_from_the_device_when_the_product_runs(cp, stream):
    rng = np.random.default_rng(0)
    host = [rng.random(shape).astype(np.float32) for shape in ((3, 4), (4, 5), (3, 5))]
    a, b, c = (cp.asarray(x) for x in host)
    alpha, beta = cp.ones(1, np.float32), cp.ones(1, np.float32)
    blas = Blas(stream)
    stream.begin_capture()
    blas.gemm(a, b, c, alpha, beta)
    graph = stream.end_capture()
    np.testing.assert_array_equal(c.get(), host[2])
    expected = host[2]
    for values in ((-0.5, 1.0), (2.0, 0.0)):
        alpha[...], beta[...] = values
        graph.launch(stream)
        expected = values[0] * (host[0] @ host[1]) + values[1] * expected
        np.testing.assert_allclose(c.get(), expected, rtol=1e-5)


def test_beta_0_ignores_what_was_there(cp, stream):
    a, c = cp.ones((2, 2), np.float32), cp.full((2, 2), np.nan, np.float32)
    Blas(stream).gemm(a, a, c, cp.ones(1, np.float32), cp.zeros(1, np.float32))
    assert c.get().tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((3, 4), (4,)), ((4,), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5))],
)
def test_products_are_numpys(cp, a, b, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.random(a).astype(dtype), rng.random(b).astype(dtype)
    np.testing.assert_allclose((cp.asarray(x) @ cp.asarray(y)).get(), x @ y, rtol=1e-5)
    swapped = cp.asarray(np.swapaxes(x, -1, 0).copy()).swapaxes(-1, 0)  # a view, not in C order
    np.testing.assert_allclose((swapped @ cp.asarray(y)).get(), x @ y, rtol=1e-5)


# Memory.


def test_new_memory_is_nan(cp):
    with cp.cuda.using_allocator(None):
        assert np.isnan(cp.empty(1000).get()).all()


def test_a_full_device_says_how_much_was_asked_for(cp):
    with attach.free_memory(1 << 20):
        cp.empty(2**20 // 4, np.float32)  # and goes back
        with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="allocating 8,000,512 bytes"):
            cp.empty(1_000_001)


def test_free_memory_has_no_pieces_of_blocks(cp):
    """A block of which an array holds a part has room for others, on each stream."""
    parts = []
    for stream in (cp.cuda.Stream.null, cp.cuda.Stream()):
        with stream:
            whole = cp.empty(4_000_000, np.uint8)
            del whole
            parts.append(cp.empty(2_000_000, np.uint8))
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    assert pool.free_bytes() > 3_000_000
    with attach.free_memory(0):
        assert cp.get_default_memory_pool().free_bytes() == 0
        for stream in (cp.cuda.Stream.null, cp.cuda.Stream()):
            with stream, pytest.raises(cp.cuda.memory.OutOfMemoryError):
                cp.empty(1)
    assert cp.get_default_memory_pool() is pool
    assert len(parts) == 2


@pytest.mark.parametrize(
    ("limit", "right"),
    [
        ("0", True), ("20000000", True), ("50%", True), ("12.5%", True), ("100%", True),
        ("", False), ("20M", False), ("1e6", False), ("-5", False), ("101%", False), ("%", False), ("nan%", False),
    ],
)  # fmt: skip
def test_limits_of_memory(cp, monkeypatch, limit, right):
    """What CuPy reads at its first array, and what it refuses."""
    monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", limit)
    assert (limit_fault() == "") == right
    if right:
        cp.cuda.MemoryPool().get_limit()
    else:
        with pytest.raises(ValueError, match=r"."):
            cp.cuda.MemoryPool().get_limit()


def test_copies_and_waits_are_recorded(cp):
    with recorded() as lines:
        cp.asarray(np.ones(100, np.float32)).get()
    copies = [line for line in lines if line.startswith("COPY")]
    assert [line.split()[1] for line in copies] == ["H2D", "D2H"]
    assert all(line.endswith(" 400") for line in copies)


# Late work.


def two_streams(cp, events):
    """x + 1 on one stream, and twice that on another one, which waits for the first if there are events."""
    one, two = (cp.cuda.Stream(non_blocking=True) for _ in range(2))
    event = cp.cuda.Event(disable_timing=True)
    with one:
        x = cp.zeros(10)
    one.synchronize()
    with one:
        x += 1
        event.record()
        assert not event.done
        assert not one.done
    if events:
        two.wait_event(event)
    with two:
        y = x + x
        found = float(y.get()[0])
    assert two.done
    one.synchronize()
    assert one.done
    assert event.done
    return found


def test_a_missing_event_between_two_streams_is_found(cp):
    """Work runs when something waits for it: that of the oldest stream first, or that of the newest."""
    found = {}
    for order in attach.LATE:
        for events in (True, False):
            with attach.late(order):
                found[order, events] = two_streams(cp, events)
    assert found.pop(("newest first", False)) == 0
    assert set(found.values()) == {2}


@pytest.mark.parametrize("order", attach.LATE)
def test_late_work_runs_before_its_results_are_used(cp, order):
    """Copies to pageable memory, events, all of the device, memory that is freed, graphs, and the end of the mode."""
    stream = cp.cuda.Stream(non_blocking=True)
    with attach.late(order), stream:
        x = cp.arange(5.0)
        assert (x * 2).get().tolist() == [0, 2, 4, 6, 8]
        x += 1
        event = stream.record()
        event.synchronize()
        assert event.done
        x += 1
        assert not stream.done
        cp.cuda.Device().synchronize()
        assert stream.done
        with cp.cuda.using_allocator(None):
            y = x + 1
            del y
        assert stream.done
        stream.begin_capture()
        x += 1
        graph = stream.end_capture()
        graph.launch()
        del graph
        assert stream.done
        x += 1
        assert not stream.done
    assert stream.done
    assert x.get().tolist() == [4, 5, 6, 7, 8]


# Errors on demand, and several devices.


def ask(cp, x):
    """Ask three things of the device: an allocation, a kernel, a copy with a wait."""
    with cp.cuda.using_allocator(None):
        (x + 1).get()


@pytest.mark.parametrize("error", attach.ERRORS)
def test_each_thing_asked_of_the_device_fails_on_demand(cp, error):
    x = cp.zeros(3)
    ask(cp, x)
    with failing() as failure:
        ask(cp, x)
    assert failure.asked >= 4
    lasts = attach.ERRORS[error][1]
    for number in range(1, failure.asked + 1):
        with failing(number, error) as failed:
            with pytest.raises((RuntimeError, MemoryError)):
                ask(cp, x)
            if lasts:
                with pytest.raises((RuntimeError, MemoryError)):
                    ask(cp, x)
            else:
                ask(cp, x)
        assert failed.asked > number
    ask(cp, x)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_capture_can_fail_at_its_begin_in_its_middle_and_at_its_end(cp, stream, number):
    x = cp.zeros(3)
    x += 1

    def capture():
        stream.begin_capture()
        x.__iadd__(1)
        stream.end_capture()

    with failing(number, "invalid value"), pytest.raises(RuntimeError):
        capture()
    if number == 2:
        stream.end_capture()
    assert not stream.is_capturing()
    capture()


TWO_DEVICES = """
import cupy
assert cupy.cuda.runtime.getDeviceCount() == 2
here = cupy.ones((2, 2), "float32")
module = cupy.RawModule(code='extern "C" __global__ void f(float* x) { x[0] += 1; }')
with cupy.cuda.Device(1):
    there, stream = cupy.ones((2, 2), "float32"), cupy.cuda.Stream()
    assert there.device.id == 1
    assert (there @ there + there).get().tolist() == [[3, 3], [3, 3]]
    module.get_function("f")((1,), (1,), (there,))
    free = cupy.cuda.runtime.memGetInfo()[0]
    there_too = cupy.ones(1 << 20)
    assert cupy.cuda.runtime.memGetInfo()[0] < free
assert there[0, 0].get() == 2
module.get_function("f")((1,), (1,), (here,))
for fails in (
    lambda: here + there, lambda: here @ there, lambda: module.get_function("f")((1,), (1,), (there,)),
    lambda: module.get_function("f").kernel((1,), (1,), (here,), stream=stream), lambda: cupy.cuda.Device(2).use(),
):
    try:
        fails()
    except (ValueError, RuntimeError):
        continue
    raise SystemExit("it ran")
"""


def test_two_devices_have_their_own_memory_streams_and_modules():
    done = python(TWO_DEVICES, attach.environment() | {"XNN_EMULATOR_DEVICES": "2"})
    assert done.returncode == 0, done.stderr


# Checks, in a process of their own: XNN_EMULATOR_CHECK is read when CuPy is imported.

FAULTY = """
import cupy
source = r'extern "C" __global__ void f(float* x, int n) { int i = threadIdx.x; %s }'
x = cupy.zeros(33, cupy.float32)
cupy.RawKernel(source, "f")((1,), (32,), (x, cupy.int32(33)))
cupy.RawKernel(source.replace("f(", "g("), "g")((1,), (32,), (x, cupy.int32(33)))
"""


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("x[i + 1] = i;", ""),
        ("x[i + 2] = i;", "out of bounds: block (0,0,0) thread (31,0,0) writes 4 bytes, 132 after"),
        ("x[0] = i;", "race, write after write"),
        ("x[i] = x[n - 1 - i] + 1;", "race, "),
    ],
)
def test_cupys_own_kernels_are_checked_if_asked(body, found):
    done = python(FAULTY % body, attach.environment() | {"XNN_EMULATOR_CHECK": "1"})
    if found:
        assert done.returncode != 0
        assert "CUDA_ERROR_LAUNCH_FAILED" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    assert found in done.stderr


# Child processes, and what is kept between processes.

SEEN = "import xnn; print(xnn.backends.available_backends()['cupy'] or 'works')"


def test_a_child_process_has_the_device_too_unless_it_shall_not(cp):
    assert python(SEEN, dict(os.environ)).stdout == "works\n"
    alone = python(SEEN, attach.environment(attached=False))
    assert alone.stdout.startswith("cupy: no NVIDIA driver found")


def test_a_program_runs_with_the_device_by_one_command():
    environment = attach.environment(attached=False)
    environment["PYTHONPATH"] = os.pathsep.join((str(TESTS), environment["PYTHONPATH"]))
    done = python(SEEN, environment, "-m", "cuda_emulator")
    assert done.stdout == "works\n", done.stderr


def test_nvrtc_compiles_for_real_gpus_where_the_device_is_not_attached():
    assert "without the emulated GPU" in python("", dict(os.environ), "-m", "cuda_emulator.nvrtc").stderr
    code = """
from cuda_emulator import nvrtc
sources = {"probe": nvrtc.PROBE, "cluster": nvrtc.PROBE.replace("void", "void __cluster_dims__(2)")}
sizes = nvrtc.compile_sources(sources, ("--fmad=false",))
print(sorted(sizes) == [("cluster", "90"), ("probe", "80"), ("probe", "90")], min(sizes.values()) > 1000)
print(sorted(nvrtc.compile_sources(sources, everywhere=False)) == [("cluster", "90"), ("probe", "80")])
nvrtc.compile_sources({"wrong": nvrtc.PROBE.replace("blockDim", "blockDimm")})
"""
    environment = attach.environment(attached=False)
    environment["PYTHONPATH"] = os.pathsep.join((str(TESTS), environment["PYTHONPATH"]))
    done = python(code, environment)
    assert done.stdout == "True True\nTrue\n", done.stderr
    assert 'identifier "blockDimm" is undefined' in done.stderr


def test_another_emulator_does_not_use_what_this_one_has_compiled(tmp_path):
    """The cache's folder depends on every source of the emulator."""
    code = "from cuda_emulator import build; print(build.folder())"
    environment = attach.environment(attached=False) | {"XNN_EMULATOR_CACHE": str(tmp_path / "cache")}
    copy = tmp_path / "tests" / "cuda_emulator"
    copy.mkdir(parents=True)
    for source in (TESTS / "cuda_emulator").rglob("*"):
        if source.suffix in (".py", ".h", ".cpp"):
            target = copy / source.relative_to(TESTS / "cuda_emulator")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
    environment["PYTHONPATH"] = str(copy.parent)
    same = python(code, environment).stdout
    assert Path(same).name == f"{build.folder().name}\n"
    for name in ("engine/checks.cpp", "include/threads.h", "cuda_source.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        changed = python(code, environment).stdout
        assert changed.startswith(str(tmp_path / "cache"))
        assert changed != same
        same = changed


def test_a_broken_build_leaves_nothing_behind():
    before = set(build.folder().iterdir())
    with pytest.raises(build.BuildError, match="error"):
        build.compiled("broken-{}.so", {"broken.cpp": "int f() { return }"}, [])
    assert {path for path in set(build.folder().iterdir()) - before if "broken" in path.name} == set()


def test_processes_that_build_at_once_get_the_same_library(tmp_path):
    code = (
        "from cuda_emulator import build\n"
        "print(build.compiled('made-{}.so', {'made.cpp': 'int f() { return 1; }'}, ['-O2']))\n"
        "print(*sorted(path.name for path in build.folder().iterdir() if 'made' in path.name))"
    )
    environment = attach.environment(attached=False)
    environment |= {"PYTHONPATH": str(TESTS), "XNN_EMULATOR_CACHE": str(tmp_path)}
    children = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = {child.communicate()[0] for child in children}
    assert len(said) == 1
    assert [child.returncode for child in children] == [0] * 4
