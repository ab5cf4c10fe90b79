"""Every way in which CuPy can fail, tested on machines without it by fake `cupy` modules.

The fakes do what CuPy 14's source does. The tests also run where there is a GPU: they put the real module aside.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xnn.backends import (
    Backend,
    Purpose,
    Stream,
    backend,
    backend_of,
    cupy_backend,
    cupy_devices,
    current_backend,
    registry,
    use_backend,
)
from xnn.backends.cupy_backend import CupyBackend
from xnn.backends.cupy_devices import gpus
from xnn.backends.cupy_failures import import_cupy, quick_diagnosis
from xnn.backends.kernels.cuda import cublas
from xnn.cli import info
from xnn.errors import (
    BackendUnavailableError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    MixedArraysError,
    XnnError,
)

INSTALL = 'pip install "cupy-cuda13x[ctk]"'


class Ndarray(np.ndarray):
    """The fake's array type, for tests in which an array must not be NumPy's."""


Ndarray.__module__, Ndarray.__name__ = "cupy", "ndarray"


class OutOfMemoryError(MemoryError):
    """As CuPy's: a MemoryError, but not a DeviceMemoryError."""


class DynamicLibNotFoundError(RuntimeError):
    """As cuda-pathfinder's, raised if NVRTC is missing."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a fake in the place of CuPy, and forget the loaded backends; restore both after the test.

    The real CuPy is never imported a second time: its allocator would then be the second one's pool.
    """
    for name in cupy_modules():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    known = {name: lib for name, lib in registry._instances.items() if not name.startswith("cupy")}
    monkeypatch.setattr(registry, "_instances", known)
    monkeypatch.setattr(registry, "_owners", {})
    monkeypatch.setattr(registry, "_numbered", {})
    yield
    assert cupy_modules() in ([], ["cupy"])  # a fake, which has no other modules
    for name in cupy_modules():  # monkeypatch restores the real ones
        del sys.modules[name]


def cupy_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "cupy"]


def raising(error: BaseException) -> Callable[..., None]:
    def function(*arguments: object, **options: object) -> None:
        raise error

    return function


def fake_cupy(
    driver: int = 13000, needed: int = 13000, gpu: bool = True, **replaced: object
) -> types.ModuleType:
    """Make a module with everything that the backend needs, computed on NumPy's arrays."""
    module = types.ModuleType("cupy")
    module.__version__ = "14.2.0"
    module.waits = []
    runtime = SimpleNamespace(
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: needed,
        memGetInfo=lambda: (70, 100),
        getDeviceProperties=lambda device: {
            "name": f"NVIDIA H{2 + device}00".encode(),
            "totalGlobalMem": 150_000 << 20,
            "major": 9,
            "minor": 0,
        },
        getDeviceCount=lambda: 1,
    )
    module.cuda = SimpleNamespace(
        runtime=runtime,
        is_available=lambda: gpu,
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: module.waits.append("waited")),
    )
    module.get_default_memory_pool = lambda: SimpleNamespace(used_bytes=lambda: 10, total_bytes=lambda: 30)
    module.asarray, module.asnumpy, module.matmul = np.asarray, np.asarray, np.matmul
    module.maximum, module.float32 = np.maximum, np.float32
    for name, value in replaced.items():
        setattr(module, name, value)
    return module


Installer = Callable[[pytest.MonkeyPatch, Path], None]


def having(**options: object) -> Installer:
    """A CuPy that can be imported, with these attributes."""
    return lambda monkeypatch, folder: monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**options))


def written(code: str) -> Installer:
    """A CuPy whose __init__.py is this code."""

    def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        (folder / "cupy").mkdir()
        (folder / "cupy" / "__init__.py").write_text(code)
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.syspath_prepend(folder)

    return install


def not_installed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail


def silent_runtime(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    cupy = fake_cupy()
    cupy.cuda.runtime.driverGetVersion = raising(CUDARuntimeError("cudaErrorSystemDriverMismatch: mismatch"))
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def no_namespace(*, package: bool) -> Installer:
    """A CuPy that works, without array-api-compat, or with one that does not fit it."""

    def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        having()(monkeypatch, folder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "array_api_compat"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "array_api_compat" if package else "array_api_compat.cupy", None)

    return install


RULE = "=" * 64
BANNER = f"""
{RULE}
Failed to import CuPy.

If you installed CuPy via wheels (cupy-cudaXXX or cupy-rocm-X-X), make sure that the package matches.

Check the Installation Guide for details:
  https://docs.cupy.dev/en/latest/install.html

Original error:%sImportError: libcudart.so.13: cannot open shared object file
{RULE}
"""
TWO_WHEELS = f"""
{"-" * 80}

  CuPy may not function correctly because multiple CuPy packages are installed
  in your environment:

    cupy-cuda12x, cupy-cuda13x
"""
HEADERS = "Failed to find CUDA headers. Please install CUDA toolkit headers."
NVRTC = 'Failure finding "libnvrtc.so": No such file\n  searched: site-packages'

# Name of the failure -> how to produce it, and what the message must contain: what is wrong, and what to do.
FAILURES: dict[str, tuple[Installer, tuple[str, ...]]] = {
    "not installed": (not_installed, ("not installed", INSTALL, "cupy-cuda12x[ctk]")),
    "a dependency missing": (
        written("import a_package_that_is_not_there"),
        ("needs the package a_package_that_is_not_there", INSTALL),
    ),
    "banner": (
        written(f"raise ImportError({BANNER % (chr(10) + '  ')!r})"),
        ("ImportError: libcudart.so.13: cannot open shared object file. Uninstall it", INSTALL),
    ),
    "built for another numpy": (
        written("raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')"),
        ("importing CuPy fails", "numpy.dtype size changed", INSTALL),
    ),
    "two wheels": (
        written(f"import warnings; warnings.warn({TWO_WHEELS!r})"),
        ("several CuPy packages", "pip uninstall", INSTALL),
    ),
    "no driver": (
        having(driver=0, gpu=False),
        ("no NVIDIA driver found", "install the GPU's driver", "XNN_BACKEND=numpy"),
    ),
    "driver too old": (
        having(driver=12040, gpu=False),
        ("CUDA 12.4", "needs 13.0", "update the driver", 'pip install "cupy-cuda12x[ctk]"'),
    ),
    "runtime does not answer": (silent_runtime, ("cudaErrorSystemDriverMismatch", "nvidia-smi")),
    "no GPU": (
        having(gpu=False),
        ("no GPU is visible", "nvidia-smi", "CUDA_VISIBLE_DEVICES", "XNN_BACKEND=numpy"),
    ),
    "no cuBLAS": (
        having(matmul=raising(ImportError("libcublas.so.13: cannot open shared object file"))),
        ("matrix product failed", "libcublas.so.13", "libraries are missing", INSTALL),
    ),
    "no NVRTC": (
        having(maximum=raising(DynamicLibNotFoundError(NVRTC))),
        ("compiling a kernel failed", "libnvrtc.so", "libraries are missing", INSTALL),
    ),
    "no headers": (
        having(maximum=raising(RuntimeError(HEADERS))),
        ("compiling a kernel failed", "CUDA headers", "headers are missing", INSTALL),
    ),
    "product refused": (
        having(matmul=raising(CUDARuntimeError("cudaErrorLaunchFailure: unspecified launch failure"))),
        ("matrix product failed", "cudaErrorLaunchFailure", "nvidia-smi"),
    ),
    "wrong product": (
        having(matmul=lambda a, b: a * b),
        ("[[1.0, 4.0], [9.0, 16.0]]", "which is [[7.0, 10.0], [15.0, 22.0]]", "nvidia-smi", "reinstall CuPy"),
    ),
    "wrong kernel": (
        having(maximum=np.minimum),
        ("[[2.0, 3.0], [3.5, 3.5]]", "[[3.5, 3.5], [4.0, 5.0]]", "nvidia-smi", "reinstall CuPy"),
    ),
    "no array-api-compat": (
        no_namespace(package=True),
        ("array-api-compat is missing", "pip install --upgrade array-api-compat"),
    ),
    "an array-api-compat without CuPy": (
        no_namespace(package=False),
        ("array-api-compat is missing or does not fit", "array_api_compat.cupy", "pip install --upgrade"),
    ),
    "a GPU of a number that is not there": (
        lambda monkeypatch, folder: (
            having()(monkeypatch, folder),
            monkeypatch.setenv("XNN_DEVICE", "3"),
        )[0],
        ("there is no GPU 3", "there is one GPU, number 0", "CUDA_VISIBLE_DEVICES"),
    ),
    "a limit that is none": (
        lambda monkeypatch, folder: (
            having()(monkeypatch, folder),
            monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", "20M"),
        )[0],
        ("CUPY_GPU_MEMORY_LIMIT='20M'", "such as 20000000", "such as 50%"),
    ),
    "a number that is none": (
        lambda monkeypatch, folder: monkeypatch.setenv("XNN_DEVICE", "first"),
        ("XNN_DEVICE='first' is not the number of a GPU", "nvidia-smi"),
    ),
    "GPU full": (
        having(asarray=raising(OutOfMemoryError("Out of memory allocating 512 bytes"))),
        ("Out of memory allocating 512 bytes", "memory is full", "nvidia-smi"),
    ),
}


def diagnosis(failure: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    FAILURES[failure][0](monkeypatch, folder)
    with pytest.raises(BackendUnavailableError) as caught:
        use_backend("cupy")
    return str(caught.value)


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_one_line_that_says_what_to_do(failure, monkeypatch, tmp_path):
    message = diagnosis(failure, monkeypatch, tmp_path)
    assert message.startswith("cupy: ")
    assert "\n" not in message
    assert ".." not in message
    for part in FAILURES[failure][1]:
        assert part in message
    assert not any(name.startswith("cupy") for name in registry._instances)  # so the next use tries again
    assert current_backend().name == "numpy"


@pytest.mark.parametrize("failure", FAILURES)
def test_the_second_use_says_the_same(failure, monkeypatch, tmp_path):
    """Also where CuPy warns at its first import only."""
    message = diagnosis(failure, monkeypatch, tmp_path)
    with pytest.raises(BackendUnavailableError) as caught:
        use_backend("cupy")
    assert str(caught.value) == message


def test_no_two_failures_say_the_same(monkeypatch, tmp_path):
    messages = set()
    for number, failure in enumerate(FAILURES):
        sys.modules.pop("cupy", None)
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patches:
            messages.add(diagnosis(failure, patches, folder))
    assert len(messages) == len(FAILURES)


@pytest.mark.parametrize(
    ("banner", "shown"),
    [
        (BANNER % " ", "ImportError: libcudart.so.13: cannot open shared object file"),  # on the same line
        ("something\nOriginal error:", "Original error:"),  # cut off after the heading
        ("libcuda is odd\nand a second line", "libcuda is odd"),  # no banner at all
        ("", "ImportError"),
    ],
)
def test_the_line_of_an_import_error_that_names_the_cause(banner, shown, monkeypatch, tmp_path):
    written(f"raise ImportError({banner!r})")(monkeypatch, tmp_path)
    with pytest.raises(BackendUnavailableError, match="cannot be imported") as caught:
        CupyBackend()
    assert f"cannot be imported: {shown}. Uninstall it" in str(caught.value)


def test_other_warnings_of_the_import_are_ignored(monkeypatch, tmp_path):
    written("import warnings; warnings.warn('cuTENSOR is old')")(monkeypatch, tmp_path)
    assert import_cupy().__file__.startswith(str(tmp_path))


def test_the_advice_for_an_old_driver_names_only_wheels_that_exist(monkeypatch, tmp_path):
    # CuPy 14, the oldest that pyproject.toml allows, has wheels for CUDA 12 and 13.
    having(driver=11080, gpu=False)(monkeypatch, tmp_path)
    with pytest.raises(BackendUnavailableError, match="update the driver") as caught:
        CupyBackend()
    assert "CUDA 11.8" in str(caught.value)
    assert "cuda11x" not in str(caught.value)


@pytest.mark.parametrize("driver", [13000, 13010, 14000, 13020])
@pytest.mark.parametrize("needed", [13000, 13010])
def test_a_driver_of_the_same_major_version_or_newer_is_accepted(working, driver, needed):
    # CUDA's minor version compatibility: a 13.0 driver runs a 13.1 runtime.
    sys.modules["cupy"].cuda.runtime.driverGetVersion = lambda: driver
    sys.modules["cupy"].cuda.runtime.runtimeGetVersion = lambda: needed
    assert CupyBackend().describe()["driver"] == f"{driver // 1000}.{driver % 1000 // 10}"


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A CuPy that works; array_api_compat.cupy is faked too, since it needs the real CuPy."""
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", np)
    monkeypatch.setattr(cupy_backend, "MEMORIES", ())  # of a real one, in other tests
    monkeypatch.setattr(cupy_backend, "PEAKS", {})
    return cupy


def test_a_backend_works_after_its_failure_is_fixed(monkeypatch, tmp_path):
    with monkeypatch.context() as patches:
        not_installed(patches, tmp_path)
        assert "not installed" in registry.available_backends()["cupy"]
    having()(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", np)
    assert registry.available_backends()["cupy"] == ""


def test_the_variable_and_a_with_block_give_the_same_reason(monkeypatch, tmp_path):
    having(driver=0, gpu=False)(monkeypatch, tmp_path)
    monkeypatch.setenv("XNN_BACKEND", "cupy")
    with pytest.raises(BackendUnavailableError, match="no NVIDIA driver"):
        current_backend()
    with pytest.raises(BackendUnavailableError, match="no NVIDIA driver"), backend("cupy"):
        pytest.fail("the block ran")


def test_a_working_cupy_is_a_backend(working):
    with backend("cupy") as lib:
        assert current_backend() is lib
    assert (lib.name, lib.is_host, lib.xp) == ("cupy", False, np)
    assert lib.probe() is None
    assert lib.memory() == {"used": 10, "peak": 30, "total": 100}
    assert lib.describe() == {
        "library": "cupy 14.2.0",
        "device": "NVIDIA H200",
        "cuda": "13.0",
        "driver": "13.0",
    }
    working.cuda.runtime.getDeviceProperties = lambda device: {"name": "NVIDIA A100"}  # text in some versions
    assert lib.describe()["device"] == "NVIDIA A100"


@pytest.fixture
def driver_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks for the driver before CuPy is imported finds it."""
    monkeypatch.setattr(cupy_devices, "quick_diagnosis", str)


@pytest.mark.parametrize(
    ("variables", "used"),
    [({}, 0), ({"XNN_DEVICE": "1"}, 1), ({"XNN_BACKEND": "cupy:2"}, 2), ({"XNN_BACKEND": "cupy"}, 0)],
    ids=str,
)
def test_gpus_are_described(working, driver_found, monkeypatch, variables, used):
    working.cuda.runtime.getDeviceCount = lambda: 3
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = gpus(registry.gpu_number())
    assert found[1] == {
        "number": 1,
        "name": "NVIDIA H300",
        "memory_mb": 150_000,
        "compute_capability": "9.0",
        "driver": "13.0",
        "runtime": "13.0",
        "used": used == 1,
    }
    assert [gpu["number"] for gpu in found if gpu["used"]] == [used]


@pytest.mark.parametrize(
    "failure", ["two wheels", "no driver", "driver too old", "runtime does not answer", "no GPU"]
)
def test_why_no_gpus_are_described(driver_found, failure, monkeypatch, tmp_path):
    message = diagnosis(failure, monkeypatch, tmp_path)
    with pytest.raises(BackendUnavailableError) as caught:
        gpus(registry.gpu_number())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value"), [("XNN_DEVICE", "4"), ("XNN_DEVICE", "x"), ("XNN_BACKEND", "nosuch")]
)
def test_gpus_are_listed_when_a_variable_names_none_of_them(working, driver_found, monkeypatch, name, value):
    """By `xnn info`, which says what is wrong in other lines."""
    monkeypatch.setenv(name, value)
    listed = info.collect()["gpus"]
    assert [gpu["number"] for gpu in listed] == [0]
    assert not any(gpu["used"] for gpu in listed)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("XNN_DEVICE", "4", "there is no GPU 4: there is one GPU, number 0"),
        ("XNN_DEVICE", "x", "XNN_DEVICE='x' is not the number of a GPU"),
        ("XNN_BACKEND", "cupy:4", "there is no GPU 4: there is one GPU, number 0"),
        ("XNN_BACKEND", "nosuch", "installed, with a driver"),
        ("CUPY_GPU_MEMORY_LIMIT", "20M", "CUPY_GPU_MEMORY_LIMIT='20M' is not a limit"),
    ],
)
def test_info_says_what_is_wrong_with_the_gpu_s_variables(
    working, driver_found, monkeypatch, name, value, text
):
    """Without --probe, in the backend's line."""
    monkeypatch.setenv(name, value)
    assert info.collect()["backends"]["cupy"].startswith(text)


@pytest.mark.parametrize(
    ("library", "text"),
    [
        (lambda part, number: setattr(number._obj, "value", (13, 1, 2)[part]), "cuBLAS 13.1.2"),
        (lambda part, number: 1, "cuBLAS"),
        (None, "cuBLAS"),
    ],
)
def test_the_version_of_cublas(working, monkeypatch, library, text):
    """Asked for without a handle; an error or an old library costs no more than the number."""
    found = SimpleNamespace(cublasGetProperty=library) if library else SimpleNamespace()
    monkeypatch.setattr(cublas, "library", lambda: found)
    assert CupyBackend().blas() == text


def test_gpus_that_cuda_does_not_describe(working, driver_found):
    working.cuda.runtime.getDeviceProperties = raising(CUDARuntimeError("cudaErrorUnknown: unknown error"))
    with pytest.raises(
        BackendUnavailableError, match=r"^cupy: CUDA does not describe .* cudaErrorUnknown"
    ) as caught:
        gpus(registry.gpu_number())
    assert "\n" not in str(caught.value)


def test_a_working_cupy_moves_arrays(working):
    lib = CupyBackend()
    there = lib.to_device([1, 2], dtype="float32")
    assert there.dtype == np.float32
    assert lib.to_device(there) is there
    assert lib.to_host(there).tolist() == [1.0, 2.0]
    shape, stream = (5, 3), Stream(1, Purpose.DROPOUT)
    expected = stream.keep(0, 15, 0.5).reshape(shape)
    assert np.array_equal(lib.to_host(lib.keep_mask(stream, shape, 0.5)), expected)


def test_a_working_cupy_waits(working):
    lib = CupyBackend()
    working.waits.clear()
    lib.synchronize()
    assert working.waits == ["waited"]
    with lib.timer():
        assert len(working.waits) == 2
    assert len(working.waits) == 3


def test_out_of_memory_names_what_to_try(working):
    lib = CupyBackend()
    working.asarray = raising(OutOfMemoryError("Out of memory allocating 4,000,000,000 bytes"))
    with pytest.raises(DeviceMemoryError) as caught:
        lib.to_device(np.ones(3))
    assert str(caught.value).startswith("cupy: Out of memory allocating 4,000,000,000 bytes. ")
    assert "smaller batch_size" in str(caught.value)
    assert "CUPY_GPU_MEMORY_LIMIT" in str(caught.value)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)


class CUDADriverError(RuntimeError):
    """As CuPy's."""


class CUBLASError(RuntimeError):
    """As CuPy's."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """As CuPy's."""


REPORTED = {
    "a refused call": (
        CUDARuntimeError("cudaErrorInvalidValue: invalid argument"),
        None,
        DeviceError,
        ("the GPU refused a call (cudaErrorInvalidValue: invalid argument)", "kernels='ops'"),
    ),
    "a refused product": (
        CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED"),
        None,
        DeviceError,
        ("the GPU refused a call (CUBLAS_STATUS_NOT_SUPPORTED)", "kernels='ops'"),
    ),
    "an illegal address": (
        CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
        CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
        DeviceLostError,
        (
            "a kernel read or wrote outside its arrays (cudaErrorIllegalAddress",
            "Start a new process",
            "nvidia-smi",
        ),
    ),
    "an illegal address that a product finds": (
        CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED"),
        CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
        DeviceLostError,
        ("a kernel read or wrote outside its arrays (cudaErrorIllegalAddress", "Start a new process"),
    ),
    "a lost GPU": (
        CUDADriverError("CUDA_ERROR_UNKNOWN: unknown error"),
        CUDARuntimeError("cudaErrorUnknown: unknown error"),
        DeviceLostError,
        ("the GPU does not answer (cudaErrorUnknown: unknown error)", "Start a new process"),
    ),
    "a kernel that does not compile": (
        CompileException("kern.cu(3): error: no such type\nand what follows"),
        None,
        DeviceError,
        ("compiling a kernel failed: CompileException: kern.cu(3): error: no such type", "xnn info --probe"),
    ),
    "a compiler that is gone": (
        DynamicLibNotFoundError(NVRTC),
        None,
        DeviceError,
        ("compiling a kernel failed", "libnvrtc.so", "libraries are missing", INSTALL),
    ),
    "a full GPU": (
        CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
        None,
        DeviceMemoryError,
        ("cudaErrorMemoryAllocation: out of memory. Try a smaller batch_size",),
    ),
    "no memory for a handle": (
        CUBLASError("CUBLAS_STATUS_ALLOC_FAILED"),
        None,
        DeviceMemoryError,
        ("CUBLAS_STATUS_ALLOC_FAILED. Try a smaller batch_size",),
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_cuda_reports_is_explained(working, name):
    """In one line, by the guard of every fit, evaluation and prediction. `last`: what CUDA answers afterwards."""
    error, last, kind, parts = REPORTED[name]
    lib = CupyBackend()
    working.cuda.runtime.deviceSynchronize = (lambda: None) if last is None else raising(last)
    with pytest.raises(XnnError) as caught, lib.guard():
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    text = str(caught.value)
    assert text.startswith("cupy: ")
    assert "\n" not in text
    assert all(part in text for part in parts), text


def ended(error: Exception) -> Exception:
    """The error with a full stop at the end of its message's lines, as some of CuPy's have."""
    return type(error)(str(error).replace("\n", ".\n") + ".")


@pytest.mark.parametrize("name", [*REPORTED, "out of memory"])
def test_no_message_has_two_full_stops(working, name):
    error, last, *_ = REPORTED.get(
        name, (OutOfMemoryError("allocating 8 bytes (allocated so far: 4 bytes)"), None)
    )
    lib = CupyBackend()
    working.cuda.runtime.deviceSynchronize = (lambda: None) if last is None else raising(ended(last))
    with pytest.raises(XnnError) as caught, lib.guard():
        raise ended(error)
    assert ".." not in str(caught.value)
    assert ".)" not in str(caught.value)
    assert ".;" not in str(caught.value)


def test_other_errors_of_to_device_are_not_about_memory(working):
    lib = CupyBackend()
    working.asarray = raising(TypeError("Unsupported type"))
    with pytest.raises(TypeError, match=r"^Unsupported type$"):
        lib.to_device(object())


def test_a_cupy_array_belongs_to_cupy_and_does_not_mix(working):
    x = np.ones(3).view(Ndarray)
    lib = backend_of(x, 2.0)
    assert isinstance(lib, CupyBackend)
    assert isinstance(lib, Backend)
    with pytest.raises(MixedArraysError, match=r"of numpy and of cupy"):
        backend_of(np.ones(3), x)


def test_a_cupy_array_where_cupy_does_not_work_says_why(monkeypatch, tmp_path):
    having(gpu=False)(monkeypatch, tmp_path)
    with pytest.raises(BackendUnavailableError, match="no GPU is visible"):
        backend_of(np.ones(3).view(Ndarray))


# The diagnosis without importing CuPy, for `xnn info`.


def test_quick_diagnosis_of_a_missing_package(monkeypatch, tmp_path):
    not_installed(monkeypatch, tmp_path)
    assert quick_diagnosis().startswith("cupy: CuPy is not installed: ")
    assert INSTALL in quick_diagnosis()


@pytest.mark.parametrize("library", ["libcuda.so.1", "nvcuda.dll", None])
def test_quick_diagnosis_looks_for_the_driver(monkeypatch, tmp_path, library):
    tried = []

    def load(name: str) -> None:
        tried.append(name)
        if name != library:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    written("raise RuntimeError('imported')")(monkeypatch, tmp_path)
    found = quick_diagnosis()
    if library is None:
        assert found.startswith("cupy: no NVIDIA driver found: ")
        assert "\n" not in found
        assert "XNN_BACKEND=numpy" in found
        assert tried == ["libcuda.so.1", "nvcuda.dll"]
    else:
        assert found == ""
    assert "cupy" not in sys.modules
