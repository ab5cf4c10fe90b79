"""Describes the machine on which times are measured: processor, BLAS, versions, load; and the data set on disk."""

from __future__ import annotations

import os
import platform
from typing import Any

from xnn.backends.threads import blas_libraries
from xnn.data import on_disk

__all__ = ["dataset_here", "environment", "environment_line"]

_PACKAGES = (
    "numpy", "numba", "torch", "jax", "scikit-learn", "thinc", "tinygrad", "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Platform, processor, cores, load, Python, versions of installed packages, and BLAS libraries."""
    from importlib import metadata

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": versions,
        "blas": blas_libraries(),
    }


def environment_line(about: dict[str, Any]) -> str:
    """What `environment` returns, as one line of text to stand above a table."""
    blas = ", ".join(f"{b['internal_api']} {b['version']} {b['architecture']}" for b in about["blas"])
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    load = "" if about["load"] is None else f"; load {about['load'][0]:.2f}"
    return f"{about['processor']}, {about['cores']} cores; {blas}; Python {about['python']}, {versions}{load}"


def dataset_here() -> str:
    """The data set that figures are taken on: "mnist" if its files are on disk, else "synthetic"."""
    return "mnist" if "mnist" in on_disk() else "synthetic"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
