"""What can go wrong with CuPy and the GPU, and what the user should do: each failure is one line.

`import_cupy`, `limit_fault`, `import_array_api` and `check_driver` look before the first use. `device_error` explains
what CUDA and cuBLAS report later.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
import weakref
from typing import Any

from xnn.errors import BackendUnavailableError, DeviceError, DeviceLostError, DeviceMemoryError, XnnError

__all__ = [
    "check_driver", "check_number", "cuda_version", "device_error", "first_line", "import_array_api", "import_cupy",
    "limit_fault", "quick_diagnosis", "reason",
]  # fmt: skip

_INSTALL = 'pip install "cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]" for a CUDA 12 driver)'
_CTK = 'reinstall with its libraries: pip install "cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]")'

#: The names of the exceptions by which CuPy and our own calls report that CUDA or cuBLAS refused something.
_CUDA_ERRORS = {"CUDARuntimeError", "CUDADriverError", "CUBLASError"}
#: And those by which it reports that a kernel was not compiled.
_COMPILER_ERRORS = {"CompileException", "NVRTCError", "DynamicLibNotFoundError", "JitifyException"}
#: What CUDA's errors mean, by their names without "cudaError" or "CUDA_ERROR_" and without underscores.
_MEANINGS = {
    "illegaladdress": "a kernel read or wrote outside its arrays",
    "misalignedaddress": "a kernel read or wrote outside its arrays",
    "launchfailure": "a kernel failed",
    "launchfailed": "a kernel failed",
    "launchtimeout": "a kernel ran longer than the system allows",
    "eccuncorrectable": "the GPU's memory has a defect",
    "nodevice": "the GPU is gone",
    "devicesunavailable": "another program has the GPU for itself, or the GPU is gone",
    "deviceunavailable": "another program has the GPU for itself, or the GPU is gone",
    "devicenotavailable": "the GPU is gone",
}
#: The module, if several packages have written their files over one another. CuPy says so at its first import only.
_overwritten: weakref.WeakSet[Any] = weakref.WeakSet()


def import_cupy() -> Any:
    """Import CuPy; raises BackendUnavailableError, which says what is wrong, if that fails."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cupy = importlib.import_module("cupy")
        except ModuleNotFoundError as error:
            if error.name != "cupy":
                raise BackendUnavailableError(
                    f"cupy: CuPy needs the package {error.name}, which is not installed: {_INSTALL}"
                ) from error
            raise BackendUnavailableError(f"cupy: CuPy is not installed: {_INSTALL}") from error
        except ImportError as error:
            raise BackendUnavailableError(
                f"cupy: CuPy cannot be imported: {first_line(error)}. Uninstall it and {_INSTALL}"
            ) from error
        except Exception as error:  # such as "numpy.dtype size changed": a package built for another NumPy
            raise BackendUnavailableError(
                f"cupy: importing CuPy fails ({type(error).__name__}: {first_line(error)}). "
                f"Uninstall it and {_INSTALL}"
            ) from error
    if any("multiple CuPy packages" in str(w.message) for w in caught):
        _overwritten.add(cupy)
    if cupy in _overwritten:
        raise BackendUnavailableError(
            "cupy: several CuPy packages are installed and overwrite one another: "
            f"pip uninstall every cupy package, then {_INSTALL}"
        )
    return cupy


def limit_fault() -> str:
    """Return what is wrong with CUPY_GPU_MEMORY_LIMIT; "" if nothing is. CuPy reads it at its first array."""
    given = os.environ.get("CUPY_GPU_MEMORY_LIMIT")
    if given is None:
        return ""
    try:
        share = given.endswith("%")
        right = 0.0 <= float(given[:-1]) <= 100.0 if share else 0 <= int(given) < 2**63
    except ValueError:
        right = False
    if right:
        return ""
    return (
        f"cupy: CUPY_GPU_MEMORY_LIMIT={given!r} is not a limit that CuPy reads: give bytes, such as 20000000, or a "
        "share of the GPU's memory, such as 50%"
    )


def import_array_api() -> Any:
    """Import array-api-compat's namespace for CuPy; raises BackendUnavailableError if it is missing or fails."""
    try:
        return importlib.import_module("array_api_compat.cupy")
    except ImportError as error:
        raise BackendUnavailableError(
            f"cupy: the package array-api-compat is missing or does not fit this CuPy ({first_line(error)}): "
            "pip install --upgrade array-api-compat"
        ) from error


def check_driver(cupy: Any) -> None:
    """Raise BackendUnavailableError if there is no driver, if it is too old, or if no GPU is visible."""
    runtime = cupy.cuda.runtime
    try:
        driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except Exception as error:
        raise BackendUnavailableError(f"cupy: the CUDA runtime does not answer: {reason(error)}") from error
    if driver == 0:
        raise BackendUnavailableError(
            "cupy: no NVIDIA driver found: install the GPU's driver (nvidia-smi shows it), "
            "or use XNN_BACKEND=numpy"
        )
    if driver // 1000 < needed // 1000:
        older = ', or pip install "cupy-cuda12x[ctk]"' if driver // 1000 == 12 else ""
        raise BackendUnavailableError(
            f"cupy: the NVIDIA driver supports CUDA {cuda_version(driver)} and this CuPy needs "
            f"{cuda_version(needed)}: update the driver{older}"
        )
    if not cupy.cuda.is_available():
        raise BackendUnavailableError(
            "cupy: there is a driver, but no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "or use XNN_BACKEND=numpy"
        )


def check_number(cupy: Any, number: int) -> int:
    """Return how many GPUs there are. Raises BackendUnavailableError if none of them has this number."""
    count = int(cupy.cuda.runtime.getDeviceCount())
    if number >= count:
        there = (
            "there is one GPU, number 0"
            if count == 1
            else f"there are {count} GPUs, numbers 0 to {count - 1}"
        )
        raise BackendUnavailableError(
            f"cupy: there is no GPU {number}: {there} (nvidia-smi lists them, CUDA_VISIBLE_DEVICES may hide some)"
        )
    return count


def quick_diagnosis() -> str:
    """Return why CuPy cannot run here, as far as it shows without importing CuPy; "" if no reason is found."""
    if sys.modules.get("cupy") is None and importlib.util.find_spec("cupy") is None:
        return f"cupy: CuPy is not installed: {_INSTALL}"
    import ctypes

    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
            return ""
        except OSError:
            continue
    return "cupy: no NVIDIA driver found: install the GPU's driver, or use XNN_BACKEND=numpy"


def cuda_version(number: int) -> str:
    """Decode a version number of CUDA: 12080 is "12.8"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def first_line(error: BaseException) -> str:
    """Return the line of an error's message that names the cause, without a full stop; the rest may be a banner."""
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip(" .")]
    for here, line in enumerate(lines):
        if line.startswith("Original error"):
            rest = line.partition(":")[2].strip()
            return rest or (lines[here + 1] if here + 1 < len(lines) else line)
    return lines[0] if lines else type(error).__name__


def reason(error: BaseException) -> str:
    """Return CuPy's own error message, and what to do about it."""
    text = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, MemoryError):
        return f"{text}; the GPU's memory is full: nvidia-smi shows which processes use it"
    if "headers" in str(error):
        return f"{text}; CUDA's headers are missing: {_CTK}"
    if isinstance(error, ImportError) or "DynamicLib" in type(error).__name__:
        return f"{text}; CUDA's libraries are missing: {_CTK}"
    return f"{text}; see xnn info --probe and nvidia-smi"


def device_error(
    cupy: Any, error: Exception, name: str, memory_advice: str, lost_advice: str
) -> XnnError | None:
    """Return xnn's error for an exception of CUDA, cuBLAS or the compiler of kernels; None for any other exception.

    cupy: the module. name: of the backend. memory_advice, lost_advice: what to do where memory is full, and where the
    GPU does not answer any more.
    """
    if type(error).__name__ in _COMPILER_ERRORS:
        return DeviceError(f"{name}: compiling a kernel failed: {reason(error)}")
    if type(error).__name__ not in _CUDA_ERRORS:
        return None
    text = first_line(error)
    if any(word in text for word in ("MemoryAllocation", "OUT_OF_MEMORY", "ALLOC_FAILED")):
        return DeviceMemoryError(f"{name}: {text}. {memory_advice}")
    try:  # after some errors CUDA answers nothing more in this process
        cupy.cuda.runtime.deviceSynchronize()
    except Exception as last:
        text = text if _meaning(text) else first_line(last)
        meaning = _meaning(text) or "the GPU does not answer"
        return DeviceLostError(
            f"{name}: {meaning} ({text}), and this process cannot use the GPU any more. {lost_advice}"
        )
    return DeviceError(
        f"{name}: the GPU refused a call ({text}). Try again with kernels='ops', and see xnn info --probe"
    )


def _meaning(text: str) -> str:
    """What a CUDA error means, from its message, which begins with its name; "" if it is none of _MEANINGS."""
    name = text.partition(":")[0].removeprefix("cudaError").removeprefix("CUDA_ERROR_")
    return _MEANINGS.get(name.replace("_", "").lower(), "")
