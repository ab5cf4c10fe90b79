"""The GPUs of this machine, as CUDA lists them."""

from __future__ import annotations

from typing import Any

from xnn.backends.cupy_failures import (
    check_driver,
    check_number,
    cuda_version,
    import_cupy,
    quick_diagnosis,
    reason,
)
from xnn.errors import BackendUnavailableError, XnnError

__all__ = ["gpus", "name_of", "versions"]


def gpus(used: int) -> list[dict[str, Any]]:
    """Describe each GPU by JSON values, for `xnn info`. Nothing runs on them.

    used: the number of the GPU that the backend cupy means (`registry.gpu_number`).

    The entries: number; name; memory_mb, in 2^20 bytes; compute_capability; driver and runtime, the versions of CUDA;
    used, whether it is the one of that number.

    Raises BackendUnavailableError, which says why, without CuPy, a driver or a GPU, and where none has that number.
    """
    if missing := quick_diagnosis():
        raise BackendUnavailableError(missing)
    cupy = import_cupy()
    check_driver(cupy)
    try:
        count = check_number(cupy, used)
        return [_described(cupy, number, number == used) for number in range(count)]
    except XnnError:
        raise
    except Exception as error:
        raise BackendUnavailableError(f"cupy: CUDA does not describe the GPUs: {reason(error)}") from error


def _described(cupy: Any, number: int, used: bool) -> dict[str, Any]:
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    return {
        "number": number,
        "name": name_of(properties),
        "memory_mb": int(properties["totalGlobalMem"]) // 2**20,
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        **versions(cupy),
        "used": used,
    }


def name_of(properties: dict[str, Any]) -> str:
    """The name of a GPU, from what CUDA says about it."""
    name = properties["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def versions(cupy: Any) -> dict[str, str]:
    """The newest CUDA that the driver knows, and the CUDA of CuPy's runtime."""
    runtime = cupy.cuda.runtime
    return {
        "driver": cuda_version(int(runtime.driverGetVersion())),
        "runtime": cuda_version(int(runtime.runtimeGetVersion())),
    }
