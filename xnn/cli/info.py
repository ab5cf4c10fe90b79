"""`xnn info`: versions, backends, BLAS, threads, data sets: what a bug report needs."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from typing import Any

import xnn
from xnn.backends import backend_names, backend_variable, current_backend, current_numerics, get_backend
from xnn.backends.cupy_backend import quick_diagnosis
from xnn.backends.threads import blas_libraries, choose_threads, execution_plan
from xnn.data import on_disk
from xnn.errors import XnnError

__all__ = ["check_variables", "collect"]

_PACKAGES = (
    "numpy", "array-api-compat", "click", "rich", "pooch", "safetensors", "threadpoolctl",
    "cupy-cuda12x", "cupy-cuda13x", "matplotlib", "scikit-learn", "array-api-strict",
)  # fmt: skip

#: Of the network that xnn train builds if not told otherwise, 784-100-200-10; its batch size is 32.
_ARTICLE_WEIGHTS = 784 * 100 + 100 * 200 + 200 * 10


def collect(probe: bool = False) -> dict[str, Any]:
    """Everything as JSON values. With `probe` each backend runs something; without, CuPy is not imported."""
    if not probe and os.environ.get("XNN_BACKEND", "").strip() == "cupy":
        plan: Any = "--probe shows the plan on a GPU"
    else:
        try:
            lib = current_backend()
            threads = choose_threads(None, 32 * _ARTICLE_WEIGHTS, on_host=lib.is_host)
            plan = {"of": "xnn train"} | execution_plan(lib, "float32", 32, threads, lib.kernels().name)
        except XnnError as error:
            plan = str(error)
    return {
        "xnn": xnn.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.platform()}, {os.cpu_count()} cores",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "environment": {
            k: v
            for k, v in os.environ.items()
            if k.startswith(("XNN_", "OMP_", "OPENBLAS_", "CUDA_", "CUPY_"))
        },
        "backends": {name: _backend(name, probe) for name in backend_names()},
        "numerics": _numerics(probe),
        "blas": blas_libraries(),
        "plan": plan,
        "data": _data(),
    }


def check_variables() -> None:
    """Raises UnknownBackendError or OptionError for an environment variable that names nothing there is."""
    backend_variable()
    current_numerics()
    on_disk()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _backend(name: str, probe: bool) -> str:
    """One line: works, does not and why, or was not tried."""
    if name == "cupy" and not probe:
        return quick_diagnosis() or "installed, and a driver is there; --probe runs something on the GPU"
    if name == "array-api-strict" and not probe and (version := _version(name)):
        return f"installed: {name} {version}, for tests"
    try:
        lib = get_backend(name)
        if probe:
            lib.probe()
        about = ", ".join(
            f"{k} {v}" if k not in ("library", "device") else v for k, v in lib.describe().items()
        )
        return f"works: {about}" if probe else f"available: {about}"
    except XnnError as error:
        return str(error)


def _numerics(probe: bool) -> dict[str, str]:
    """Which are in force, and whether the machine keeps the exact ones."""
    try:
        found = {"in force": current_numerics()}
        if probe:
            start = time.perf_counter()
            current_backend().exact  # noqa: B018 - checks it
            found["exact"] = f"works: checked in {1e3 * (time.perf_counter() - start):.0f} ms"
        else:
            found["exact"] = "--probe checks what it rests on"
    except XnnError as error:
        found = {"in force": "none", "exact": str(error)}
    return found


def _data() -> dict[str, str]:
    try:
        return on_disk()
    except XnnError as error:
        return {"error": str(error)}
