"""The engine of the emulated GPU: right kernels run in every order of threads, and each planted fault is found."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.kernels import KernelError, Module, settings

pytestmark = pytest.mark.skipif(bool(build.obstacle()), reason=build.obstacle())

ORDERS = [("forward", 1), ("backward", 1), ("random", 1), ("random", 2)]
f32, i32, u32 = np.float32, np.int32, np.uint32

SOURCE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

extern "C" __global__ void twice(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= 2;
}
// Sums of 64 numbers each, through one shared buffer.
extern "C" __global__ void sums(const float* x, float* y, int rounds) {
    __shared__ float s[64];
    for (int r = 0; r < rounds; ++r) {
        s[threadIdx.x] = x[r * 64 + threadIdx.x];
        __syncthreads();  // A
        if (threadIdx.x == 63) {
            float v = 0;
            for (int i = 0; i < 64; ++i) v += s[i];
            y[r] = v;
        }
        __syncthreads();  // B
    }
}
extern "C" __global__ void histogram(const int* x, int* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&y[x[i]], 1);
}
// The last block adds up the partial sums of all.
extern "C" __global__ void last_block(const float* x, float* partial, unsigned* count, float* y, int n) {
    __shared__ bool last;
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
    for (int d = 16; d; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = v;
        __threadfence();
        last = atomicInc(count, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float t = 0;
        for (unsigned b = 0; b < gridDim.x; ++b) t += partial[b];
        *y = t;
    }
}
extern "C" __global__ void ballots(const int* x, unsigned* y) {
    int lane = threadIdx.x % 32;
    unsigned all = __ballot_sync(0xffffffffu, x[threadIdx.x] > 0), even = 0;
    if (lane % 2 == 0) even = __ballot_sync(0x55555555u, x[threadIdx.x] > 0);
    __syncwarp();
    int sum = __reduce_add_sync(0xffffffffu, x[threadIdx.x]);
    y[threadIdx.x * 3] = all;
    y[threadIdx.x * 3 + 1] = even;
    y[threadIdx.x * 3 + 2] = sum;
}
extern "C" __global__ void reversed(float* x, int n) {
    extern __shared__ float t[];
    int i = threadIdx.x;
    t[i] = x[i];
    __syncthreads();  // C
    x[i] = t[n - 1 - i];
}
// Within a warp, __syncwarp is enough.
extern "C" __global__ void neighbours(const float* x, float* y) {
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = s[(threadIdx.x + 1) % 32];
}
"""

GRID = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void steps(float* a, float* b, int n, int count) {
    cg::grid_group g = cg::this_grid();
    for (int s = 0; s < count; ++s) {
        for (int i = g.thread_rank(); i < n; i += g.size()) b[i] = a[(i + 1) % n] + 1;
        g.sync();  // A
        for (int i = g.thread_rank(); i < n; i += g.size()) a[i] = b[(i + 1) % n] * 0.5f;
        g.sync();  // B
    }
}
"""

CLUSTER = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void __cluster_dims__(4, 1, 1) exchange(const float* x, float* y) {
    extern __shared__ float s[];
    cg::cluster_group c = cg::this_cluster();
    s[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    c.sync();  // A
    float* next = c.map_shared_rank(s, (c.block_rank() + 1) % c.num_blocks());
    y[blockIdx.x * blockDim.x + threadIdx.x] = next[threadIdx.x];
    c.sync();
}
"""


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(f32)


def run_sums(module: Module) -> None:
    x, y = random(640), np.full(10, np.nan, f32)
    module["sums"]((1,), (64,), (x, y, i32(10)))
    np.testing.assert_allclose(y, x.reshape(10, 64).sum(1), rtol=1e-5)


def run_twice(module: Module) -> None:
    x = random(1000)
    expected = 2 * x
    module["twice"]((4,), (256,), (x, i32(1000)))
    np.testing.assert_array_equal(x, expected)


def run_histogram(module: Module) -> None:
    x, y = np.random.default_rng(0).integers(0, 7, 5000).astype(i32), np.zeros(7, i32)
    module["histogram"]((20,), (256,), (x, y, i32(5000)))
    np.testing.assert_array_equal(y, np.bincount(x))


def run_last_block(module: Module) -> None:
    x, partial, count, y = random(640), np.zeros(5, f32), np.zeros(1, u32), np.zeros(1, f32)
    module["last_block"]((5,), (32,), (x, partial, count, y, i32(640)))
    np.testing.assert_allclose(y, x.sum(), rtol=1e-5)
    assert count[0] == 0


def run_ballots(module: Module) -> None:
    x, y = np.random.default_rng(2).integers(-3, 4, 64).astype(i32), np.zeros((64, 3), u32)
    module["ballots"]((1,), (64,), (x, y))
    for warp in range(2):
        lanes = slice(32 * warp, 32 * warp + 32)
        bits = sum(1 << lane for lane in range(32) if x[lanes][lane] > 0)
        assert set(y[lanes, 0]) == {bits}
        assert set(y[lanes, 1][::2]) == {bits & 0x55555555}
        assert set(y[lanes, 2].astype(i32)) == {x[lanes].sum()}


def run_reversed(module: Module) -> None:
    x = np.arange(100, dtype=f32)
    module["reversed"]((1,), (100,), (x, i32(100)), shared=400)
    np.testing.assert_array_equal(x, np.arange(100)[::-1])


def run_neighbours(module: Module) -> None:
    x, y = random(32), np.zeros(32, f32)
    module["neighbours"]((1,), (32,), (x, y))
    np.testing.assert_array_equal(y, np.roll(x, -1))


def run_steps(module: Module) -> None:
    a, b = random(100), np.zeros(100, f32)
    expected = a.copy()
    module["steps"]((4,), (32,), (a, b, i32(100), i32(3)))
    for _ in range(3):
        expected = np.roll(np.roll(expected, -1) + 1, -1) * f32(0.5)
    np.testing.assert_array_equal(a, expected)


def run_exchange(module: Module) -> None:
    x, y = random(8, 16), np.zeros((8, 16), f32)
    module["exchange"]((8,), (16,), (x, y), shared=64)
    np.testing.assert_array_equal(y.reshape(2, 4, 16), np.roll(x.reshape(2, 4, 16), -1, axis=1))


RUNS = {
    run.__name__.removeprefix("run_"): (source, run)
    for source, runs in {
        SOURCE: (
            run_twice,
            run_sums,
            run_histogram,
            run_last_block,
            run_ballots,
            run_reversed,
            run_neighbours,
        ),
        GRID: (run_steps,),
        CLUSTER: (run_exchange,),
    }.items()
    for run in runs
}


def test_the_size_of_a_cluster_may_be_a_name_that_is_defined_by_an_option() -> None:
    source = CLUSTER.replace("__cluster_dims__(4, 1, 1)", "__cluster_dims__(BLOCKS, 1, 1)")
    run_exchange(Module(source, ("-DBLOCKS=4",)))
    with pytest.raises(AssertionError):
        run_exchange(Module(source, ("-DBLOCKS=2",)))


def module(name: str, check: bool, *change: str) -> Module:
    """The source of a kernel, with `change[0]` replaced by `change[1]`."""
    source = RUNS[name][0]
    if change:
        assert source.count(change[0]) == 1
        source = source.replace(*change)
    return Module(source, check=check, cooperative=name == "steps")


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("name", RUNS)
def test_a_right_kernel_runs_in_every_order_and_passes_the_checks(name, order, seed, check):
    with settings(order=order, seed=seed):
        RUNS[name][1](module(name, check))


#: kernel, what is replaced, by what, the message. These faults are found only by the checks.
RACES = {
    "no barrier before shared memory is read": (
        "sums",
        "__syncthreads();  // A",
        "",
        "read after write.*shared",
    ),
    "no barrier before it is written again": (
        "sums",
        "__syncthreads();  // B",
        "",
        "write after read.*shared",
    ),
    "no barrier of a warp": ("neighbours", "__syncwarp();\n    y[", "y[", "race, .*shared memory"),
    "blocks write the same": ("twice", "x[i] *= 2", "x[0] = i", "race, write after write.*global memory"),
    "an addition that is not atomic": (
        "histogram",
        "atomicAdd(&y[x[i]], 1)",
        "y[x[i]] += 1",
        "race, .*global memory",
    ),
    "no fence before the flag": (
        "last_block",
        "__threadfence();",
        "",
        "race, read after write.*global memory",
    ),
    "no barrier of the grid": ("steps", "g.sync();  // A", "", "race, .*global memory"),
    "no barrier of the cluster": ("exchange", "c.sync();  // A", "", "race, .*shared memory"),
    "a write past the end": (
        "twice",
        "if (i < n) x[i]",
        "if (i <= n) x[i]",
        r"out of bounds: block \(3,0,0\)",
    ),
    "a read past the end": (
        "neighbours",
        "= x[threadIdx.x];",
        "= x[threadIdx.x + 1];",
        "reads 4 bytes, 128 after",
    ),
    "a byte of a word": ("twice", "x[i] *= 2", "((char*)x)[4 * i + 1] = i; x[(i + 1) % n]++", "race, "),
}


@pytest.mark.parametrize("name", RACES)
def test_a_race_or_an_access_out_of_bounds_is_found(name):
    kernel, old, new, message = RACES[name]
    wrong = module(kernel, True, old, new)
    with pytest.raises(KernelError, match=message):
        RUNS[kernel][1](wrong)


#: These are found in every run.
MEETINGS = {
    "a barrier that some threads miss": (
        *("reversed", "__syncthreads();  // C", "if (i < 40) { __syncthreads(); } else __syncwarp();"),
        "waits for ever",
    ),
    "two barriers in a branch": (
        *(
            "reversed",
            "__syncthreads();  // C",
            "if (i < 40) { __syncthreads(); }\nelse { __syncthreads(); }",
        ),
        "is at the barrier of line",
    ),
    "lanes that are not there": (
        *("last_block", "for (int d = 16; d", "if (threadIdx.x < 20) for (int d = 16; d"),
        "waits for ever at a warp operation",
    ),
    "lanes that are not in the mask": (
        *("ballots", "even = __ballot_sync(0x55555555u", "even = __ballot_sync(1u"),
        "its lane is not in the mask",
    ),
    "a shuffle from outside the mask": (
        *("ballots", "__syncwarp();\n    int", "if (lane < 16) even = __shfl_sync(0xffffu, even, 20); int"),
        "a shuffle reads a lane that is not in the mask",
    ),
    "a barrier of the grid that a block misses": (
        *("steps", "g.sync();  // A", "if (blockIdx.x) g.sync();"),
        "waits for ever at a barrier of the grid",
    ),
    "a trap": ("twice", "x[i] *= 2", "assert(i < 500)", "assertion failed: i < 500"),
}


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("name", MEETINGS)
def test_a_meeting_that_cannot_take_place_is_found(name, order, seed):
    kernel, old, new, message = MEETINGS[name]
    wrong = module(kernel, False, old, new)
    with settings(order=order, seed=seed), pytest.raises(KernelError, match=message):
        RUNS[kernel][1](wrong)
    RUNS[kernel][1](module(kernel, False))  # and the engine goes on


def test_the_order_of_threads_decides_what_a_race_gives():
    """A missing barrier: thread 63 adds up what the others have written, or it does so before they write."""
    cut = module("sums", False, "__syncthreads();  // A", "")
    x, outcomes = random(64), []
    for order in ("forward", "backward"):
        y = np.zeros(1, f32)
        with settings(order=order):
            cut["sums"]((1,), (64,), (x, y, i32(1)))
        outcomes.append(bool(np.isclose(y[0], x.sum())))
    assert outcomes == [True, False]


def test_shared_memory_begins_as_nan():
    source = 'extern "C" __global__ void f(float* y) { __shared__ float s[1]; y[0] = s[0]; }'
    y = np.zeros(1, f32)
    Module(source)["f"]((1,), (1,), (y,))
    assert np.isnan(y[0])


@pytest.mark.parametrize(("grid", "block"), [((0,), (32,)), ((1,), (0,)), ((1,), (1025,)), ((1,), (32, 33))])
def test_a_shape_that_no_gpu_has_is_refused(grid, block):
    with pytest.raises(KernelError, match="cannot be launched"):
        module("twice", False)["twice"](grid, block, (random(4), i32(4)))


def test_products_and_sums_are_fused_unless_forbidden():
    source = 'extern "C" __global__ void f(float* y, float a, float b) { y[0] = a * a - b; }'
    a = f32(1 + 2**-12)
    found = []
    for options in ((), ("--fmad=false",)):
        y = np.zeros(1, f32)
        Module(source, options)["f"]((1,), (1,), (y, a, a * a))
        found.append(float(y[0]))
    fused = 2**-24 if "-mfma" in build.processor() else 0
    assert found == [fused, 0]


def test_subnormals_are_zero_where_cupy_flushes_them():
    source = 'extern "C" __global__ void f(float* y, float a) { y[0] = a * 0.5f; }'
    tiny = f32(2**-126)
    for options, expected in (((), 2**-127), (("-ftz=true",), 0)):
        y = np.ones(1, f32)
        Module(source, options)["f"]((1,), (1,), (y, tiny))
        assert y[0] == expected


def test_a_kernel_that_does_not_compile_shows_the_compilers_message():
    with pytest.raises(build.BuildError, match="blockDimm"):
        Module('extern "C" __global__ void f(int* y) { y[0] = blockDimm.x; }')


def test_instances_of_a_template_are_named():
    source = "template <class T> __global__ void f(T* y) { y[0] = T(1) / T(3); }"
    kernels = Module(source, names=("f<float>", "f<double>"))
    for dtype, name in ((f32, "f<float>"), (np.float64, "f<double>")):
        y = np.zeros(1, dtype)
        kernels[name]((1,), (1,), (y,))
        assert y[0] == dtype(1) / dtype(3)
