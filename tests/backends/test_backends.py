"""Choosing a backend, moving arrays, telling their backend, timing, memory, BLAS threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import xnn
from xnn import errors, graph, layers, losses, ops
from xnn.backends import (
    available_backends,
    backend,
    backend_names,
    backend_of,
    base,
    current_backend,
    current_numerics,
    get_backend,
    registry,
    use_backend,
)
from xnn.backends import threads as plan

ROOT = Path(__file__).parents[2]
STRICT = "array-api-strict"


def current() -> str:
    return current_backend().name


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# Choosing a backend: argument > with > use_backend > XNN_BACKEND > numpy.


def test_numpy_is_the_default():
    assert current() == "numpy"
    assert get_backend() is current_backend()


def test_each_way_of_choosing_beats_the_next(monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", STRICT)
    assert current() == STRICT
    use_backend("numpy")
    assert current() == "numpy"
    with backend(STRICT) as chosen:
        assert chosen is current_backend()
        assert current() == STRICT
        assert get_backend("numpy").name == "numpy"
        use_backend("numpy")  # does not change the block, although it comes later
        assert current() == STRICT
    assert current() == "numpy"
    use_backend(None)
    assert current() == STRICT


def test_with_blocks_nest_and_end_with_an_exception():
    with backend(STRICT):
        with backend("numpy"):
            assert current() == "numpy"
        assert current() == STRICT
        with pytest.raises(ZeroDivisionError), backend("numpy"):
            1 / 0  # noqa: B018
        assert current() == STRICT
    assert current() == "numpy"


def test_a_new_model_is_on_the_chosen_backend():
    with backend(STRICT):
        model = xnn.Sequential(layers.Dense(3, 2))
    assert model.backend.name == STRICT
    assert model.to("numpy").backend.name == "numpy"


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_counts_as_unset(monkeypatch, value):
    monkeypatch.setenv("XNN_BACKEND", value)
    assert current() == "numpy"


def test_spaces_around_the_variable_do_not_matter(monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", f" {STRICT} ")
    assert current() == STRICT


def test_the_variable_is_read_when_needed(monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", STRICT)
    assert current() == STRICT
    monkeypatch.setenv("XNN_BACKEND", "numpy")
    assert current() == "numpy"


def test_importing_does_not_read_the_variable():
    code = "import os, xnn, xnn.backends; os.environ['XNN_BACKEND'] = 'numpy'; print(xnn.backends.current_backend())"
    done = python(code, XNN_BACKEND="nonsense")
    assert (done.returncode, done.stdout.strip()) == (0, "<backend numpy>"), done.stderr


def unknown_argument(monkeypatch):
    get_backend("nonsense")


def unknown_with(monkeypatch):
    with backend("nonsense"):
        pass


def unknown_use(monkeypatch):
    use_backend("nonsense")


def unknown_variable(monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", "nonsense")
    current_backend()


@pytest.mark.parametrize(
    ("choose", "source"),
    [
        (unknown_argument, "backend='nonsense'"),
        (unknown_with, "backend='nonsense'"),
        (unknown_use, "use_backend='nonsense'"),
        (unknown_variable, "XNN_BACKEND='nonsense'"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_the_valid_ones(monkeypatch, choose, source):
    with pytest.raises(errors.UnknownBackendError) as caught:
        choose(monkeypatch)
    assert str(caught.value).startswith(source)
    assert all(name in str(caught.value) for name in (*backend_names(), "cupy:1 (the second GPU)"))
    assert isinstance(caught.value, ValueError)


def test_a_refused_choice_changes_nothing():
    use_backend(STRICT)
    with pytest.raises(errors.UnknownBackendError):
        use_backend("nonsense")
    assert current() == STRICT


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_a_with_block_holds_in_its_own_thread_only():
    with backend(STRICT):
        assert in_a_thread(current) == "numpy"
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with backend(STRICT):
            entered.set()
            leave.wait(60)
            seen.append(current())

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(60)
    seen.append(current())
    leave.set()
    thread.join()
    assert seen == ["numpy", STRICT]


def test_use_backend_holds_in_every_thread():
    use_backend(STRICT)
    assert in_a_thread(current) == STRICT


def test_names_and_availability():
    assert backend_names() == ("numpy", "cupy", STRICT)
    reasons = available_backends()
    assert tuple(reasons) == backend_names()
    assert reasons["numpy"] == reasons[STRICT] == ""


def test_a_missing_array_api_strict_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(registry, "_instances", {})
    monkeypatch.setitem(sys.modules, "array_api_strict", None)
    with pytest.raises(errors.BackendUnavailableError, match="pip install array-api-strict"):
        get_backend(STRICT)
    assert "not installed" in available_backends()[STRICT]


def test_the_folder_is_one_package_under_one_name():
    done = python("import sys; sys.path.insert(0, '.'); import backends")
    assert done.returncode == 1
    assert "ImportError: import xnn.backends, not 'backends'" in done.stderr
    done = python("import sys, xnn.backends; print([m for m in sys.modules if m.startswith('backends')])")
    assert done.stdout.strip() == "[]", done.stderr


# Moving arrays.

DTYPES = ["bool", "uint8", "int8", "int32", "int64", "uint64", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3), (2, 0)])
def test_to_the_device_and_back(lib, dtype, shape):
    host = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    there = lib.to_device(host)
    assert there.shape == shape
    assert there.dtype == getattr(lib.xp, dtype)
    back = lib.to_host(there)
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape, back.tobytes()) == (host.dtype, shape, host.tobytes())


def test_special_numbers_are_moved_unchanged(lib):
    host = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    assert lib.to_host(lib.to_device(host)).tobytes() == host.tobytes()


def test_views_are_moved(lib):
    host = np.arange(24.0).reshape(4, 6)[::2, ::-1].T
    assert np.array_equal(lib.to_host(lib.to_device(host)), host)


def test_to_device_takes_lists_and_a_dtype(lib):
    assert lib.to_host(lib.to_device([[1, 2], [3, 4]], dtype="float32")).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    there = lib.to_device(np.array([1.5, 2.5]), dtype="float32")
    assert there.dtype == lib.xp.float32
    assert lib.to_device(there, dtype="float64").dtype == lib.xp.float64


def test_an_array_on_the_device_is_not_copied(lib):
    there = lib.to_device(np.ones(3))
    assert lib.to_device(there) is there
    assert lib.to_device(there, dtype="float64").dtype == lib.xp.float64


def test_the_strict_backends_device_is_not_the_host():
    # So an op that creates an array on the host by mistake fails.
    lib = get_backend(STRICT)
    with pytest.raises(ValueError, match="device"):
        lib.to_device([1.0]) + lib.xp.ones(1)


# Telling an array's backend.


@pytest.mark.parametrize("number", [None, True, 3, 2.5])
def test_numbers_belong_to_any_backend(lib, number):
    assert backend_of(number) is lib
    assert backend_of(number, get_backend("numpy").to_device([1.0]), number) is get_backend("numpy")


def test_arrays_belong_to_their_backend_whichever_is_current(lib):
    x = lib.to_device([1.0, 2.0])
    with backend("numpy"):
        assert backend_of(x) is lib
        assert backend_of(2.0, x, None, x) is lib
    assert backend_of() is lib


def test_numpy_scalars_belong_to_numpy(lib):
    assert backend_of(np.float32(1.0)).name == "numpy"


@pytest.mark.parametrize("thing", [[1.0, 2.0], (1.0,), "1.0", 1j, object(), SimpleNamespace(shape=(1,))])
@pytest.mark.parametrize("function", [backend_of, ops.relu, lambda x: ops.add(np.ones(2), x)])
def test_an_object_that_is_not_an_array_is_refused_with_advice(thing, function):
    with pytest.raises(errors.DTypeError, match=r"numpy\.asarray") as caught:
        function(thing)
    assert type(thing).__name__ in str(caught.value)


def through_a_graph(x, y):
    a, b = graph.Input(), graph.Input()
    cost = graph.MSE(a, graph.Sigmoid(b))
    graph.forward_and_backward(graph.topological_sort({a: x, b: y}))
    return cost


def dense_beside(x):
    """Return a layer on the backend of x, after a forward pass."""
    with backend(backend_of(x).name):
        layer = layers.Dense(2, 2, seed=0)
        layer.forward(x)
    return layer


MIXES = {
    "backend_of": backend_of,
    "op": ops.add,
    "product": ops.matmul,
    "op of three": lambda x, y: ops.where(x > 0, y, 0.0),
    "autograd": lambda x, y: xnn.grad(lambda v: ops.sum(ops.mul(v, y)))(x),
    "graph": through_a_graph,
    "Dense, forward": lambda x, y: dense_beside(x).forward(y),
    "Dense, backward": lambda x, y: dense_beside(x).backward(y),
    "loss": lambda x, y: losses.MSE().forward(x, y),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("numpy_first", [True, False])
def test_arrays_of_two_backends_do_not_mix(mix, numpy_first, other):
    x, y = np.ones((2, 2), dtype="float32"), other.to_device(np.ones((2, 2)), dtype="float32")
    with pytest.raises(errors.MixedArraysError) as caught:
        MIXES[mix](*((x, y) if numpy_first else (y, x)))
    assert "numpy" in str(caught.value)
    assert other.name in str(caught.value)
    assert "to_device" in str(caught.value)


# Timing, memory, description and probe.


def test_the_timer_synchronizes_before_it_reads_the_clock(lib, monkeypatch):
    events = []
    clock = iter([10.0, 12.5])

    def perf_counter() -> float:
        events.append("clock")
        return next(clock)

    monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(lib, "synchronize", lambda: events.append("synchronize"))
    with lib.timer() as timer:
        assert timer.seconds == 0.0
        events.append("block")
    assert timer.seconds == 2.5
    assert events == ["synchronize", "clock", "block", "synchronize", "clock"]


def test_the_timer_survives_an_exception(lib):
    with pytest.raises(ZeroDivisionError), lib.timer() as timer:
        1 / 0  # noqa: B018
    assert timer.seconds > 0.0


def test_memory_synchronize_describe_probe(lib):
    assert lib.synchronize() is None
    memory = lib.memory()
    assert memory.keys() == {"used", "peak", "total"}
    assert all(type(value) is int for value in memory.values())
    assert memory["peak"] >= memory["used"] >= 0
    about = lib.describe()
    assert {"library", "device"} <= about.keys()
    assert about["library"].split()[0] == lib.name
    assert all(type(value) is str and value and "\n" not in value for value in about.values())
    assert lib.probe() is None
    assert repr(lib) == f"<backend {lib.address}>"


def test_numpys_memory_is_that_of_the_process():
    lib = get_backend("numpy")
    block = np.ones(25_000_000)  # 200 MB, touched
    assert lib.memory()["peak"] >= block.nbytes


def test_a_wrong_product_is_noticed(monkeypatch, lib):
    monkeypatch.setattr(getattr(lib, "cupy", lib.xp), "matmul", lambda a, b: a * b)
    with pytest.raises(errors.BackendUnavailableError, match=rf"^{lib.name}: .*reinstall"):
        lib.probe()


def test_guard_turns_memory_errors_into_advice(lib):
    with pytest.raises(errors.DeviceMemoryError) as caught, lib.guard():
        raise MemoryError("Unable to allocate 1 PiB")
    assert str(caught.value).startswith(f"{lib.name}: Unable to allocate 1 PiB. ")
    assert "Try a smaller batch_size" in str(caught.value)
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(errors.DeviceMemoryError, match="out of memory"), lib.guard():
        raise MemoryError


def test_guard_passes_everything_else_on(lib):
    first = errors.DeviceMemoryError("said already")
    for error in (first, ValueError("another"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, lib.guard():
            raise error
        assert caught.value is error


# Numerics, threads and the execution plan.


@pytest.mark.parametrize("value", [None, "", "fast", " fast "])
def test_numerics_are_fast_by_default(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("XNN_NUMERICS", value)
    assert current_numerics() == "fast"


@pytest.mark.parametrize("value", ["EXACT", "FAST", "quick"])
def test_other_numerics_are_refused(monkeypatch, value):
    monkeypatch.setenv("XNN_NUMERICS", value)
    with pytest.raises(errors.OptionError, match=f"XNN_NUMERICS='{value}'.*choose fast"):
        current_numerics()


def test_a_thread_limit_holds_and_is_undone():
    before = plan.blas_threads()
    with plan.limit_threads(1) as threads:
        assert threads == plan.blas_threads() == 1
    assert plan.blas_threads() == before
    with pytest.raises(ZeroDivisionError), plan.limit_threads(1):
        1 / 0  # noqa: B018
    assert plan.blas_threads() == before


def test_a_thread_limit_is_never_above_the_one_in_force():
    before = plan.blas_threads()
    with plan.limit_threads(before + 7) as threads:
        assert threads == plan.blas_threads() == before
    with plan.limit_threads(1), plan.limit_threads(2) as threads:
        assert threads == plan.blas_threads() == 1
    assert plan.blas_threads() == before


def test_a_limit_of_none_changes_nothing():
    before = plan.blas_threads()
    with plan.limit_threads(None) as threads:
        assert threads == plan.blas_threads() == before


@pytest.fixture
def four_threads(monkeypatch):
    """Make it look as if BLAS may use four threads, and no variable sets their number."""
    monkeypatch.setattr(plan, "blas_threads", lambda: 4)
    for name in {name for names in plan.THREAD_VARIABLES.values() for name in names}:
        monkeypatch.delenv(name, raising=False)


def test_threads_by_the_rule(four_threads):
    """One thread for each five million multiplications of a forward pass, up to the limit."""
    work = (0, 32 * 98_400, 9_999_999, 10_000_000, 128 * 98_400, 10**9)
    assert [plan.choose_threads(None, w).count for w in work] == [1, 1, 1, 2, 2, 4]
    assert "10,000,000 multiplications" in plan.choose_threads(None, 10_000_000).reason


def test_threads_that_are_asked_for(four_threads, monkeypatch):
    assert plan.choose_threads(3, 0) == plan.Threads(3, "asked for")
    assert plan.choose_threads(9, 0) == plan.Threads(4, "limited to 4 already")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert plan.choose_threads(None, 0) == plan.Threads(4, "OMP_NUM_THREADS=4")
    assert plan.choose_threads(2, 0).count == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # OpenMP's list, of nested levels
    assert plan.choose_threads(None, 0).reason == "OMP_NUM_THREADS=4,2"
    for nothing in ("abc", "0", "-1", " "):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert plan.choose_threads(None, 0).reason.startswith("rule: ")


def test_threads_that_are_measured(four_threads):
    times = {1: 0.003, 2: 0.001, 4: 0.002}
    chosen = plan.choose_threads("auto", 10**9, times.__getitem__)
    assert chosen.count == 2
    assert chosen.reason == "measured: fastest of 1, 2, 4"
    assert plan.choose_threads("auto", 10**9).reason.startswith("rule")  # nothing to measure with


def test_threads_of_a_blas_that_threadpoolctl_does_not_know(monkeypatch):
    """Such as Apple's: nothing is limited, and the plan does not claim a limit."""
    monkeypatch.setattr(plan, "_blas", list)
    chosen = plan.choose_threads(4, 10**9)
    assert chosen.count is None
    assert "does not know" in chosen.reason
    with plan.limit_threads(chosen.count) as threads:
        assert threads is None


def test_threads_of_a_device():
    """The CPU's BLAS has no limit if the device computes the products."""
    assert plan.choose_threads(4, 10**9, on_host=False) == plan.Threads(None, "products are the device's")


def test_a_limit_of_products_leaves_other_threads_alone():
    before = plan.blas_threads()
    with plan.limit_threads(2, products=1):
        assert (plan.own_threads(), plan.blas_threads()) == (min(2, before), 1)
    with plan.limit_threads(None, products=1), plan.limit_threads(None):
        assert (plan.own_threads(), plan.blas_threads()) == (before, 1)
    assert (plan.own_threads(), plan.blas_threads()) == (before, before)


def test_limits_of_several_threads_overlap():
    """The smaller limit holds while both blocks are open; the last to end restores the original number."""
    before = plan.blas_threads()
    first, second = plan.limit_threads(1), plan.limit_threads(before + 1)
    first.__enter__()
    assert second.__enter__() == 1
    first.__exit__(None, None, None)
    assert plan.blas_threads() == before
    second.__exit__(None, None, None)
    assert plan.blas_threads() == before


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_bad_thread_limits_are_refused(threads):
    with pytest.raises(errors.OptionError, match="positive integer"), plan.limit_threads(threads):
        pytest.fail("the block ran")
    with pytest.raises(errors.OptionError, match="positive integer"):
        plan.check_threads(threads)


def test_the_execution_plan_has_everything_that_a_run_depends_on(lib):
    threads = plan.Threads(1, "asked for")
    found = plan.execution_plan(lib, "float32", 32, threads, "ops")
    assert {
        "numerics": "fast",
        "backend": lib.address,
        "threads": 1,
        "threads_because": "asked for",
        "kernels": "ops",
        "fused": False,
        "dtype": "float32",
        "batch_size": 32,
        **lib.describe(),
    }.items() <= found.items()
    assert found.keys() >= {"blas", "library", "device"}
    assert json.loads(json.dumps(found)) == found  # stored in records
    assert found == plan.execution_plan(lib, "float32", 32, threads, "ops")


def test_the_execution_plan_names_the_blas():
    # threadpoolctl knows the BLAS of NumPy's wheels.
    found = plan.blas_libraries()
    if not found:
        pytest.skip("this NumPy's BLAS is unknown to threadpoolctl")
    lib = get_backend("numpy")
    text = plan.execution_plan(lib, "float32", 32, plan.Threads(1, "asked for"), "ops")["blas"]
    assert all(str(library["internal_api"]) in text and str(library["version"]) in text for library in found)


def test_the_execution_plan_of_a_gpu_names_what_computes_its_products(lib):
    """cuBLAS on a GPU, and NumPy's BLAS nowhere but on the host."""
    text = plan.execution_plan(lib, "float32", 32, plan.Threads(None, "the device's"), "ops")["blas"]
    assert text.startswith("cuBLAS") == (lib.name == "cupy")
    assert ("openblas" in text) <= (lib.name != "cupy")
