"""`xnn info`: what a bug report needs: versions, backends, GPUs, BLAS, threads and data sets."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click

import xnn
from xnn.backends import (
    backend_names,
    backend_variable,
    backend_wanted,
    current_backend,
    current_numerics,
    get_backend,
)
from xnn.backends.cupy_devices import gpu_fault, gpus
from xnn.backends.kernels.cuda import persistent_rule
from xnn.backends.ranks.group import current_ranks
from xnn.backends.ranks.mpi import MPIRanks
from xnn.backends.registry import gpu_number
from xnn.backends.threads import blas_libraries, choose_threads, execution_plan, threads_of_rank
from xnn.cli.surroundings import say
from xnn.data import on_disk
from xnn.errors import BackendUnavailableError, UnknownBackendError, XnnError

__all__ = ["collect", "command"]

_PACKAGES = (
    "numpy", "array-api-compat", "click", "rich", "pooch", "safetensors", "threadpoolctl",
    "cupy-cuda12x", "cupy-cuda13x", "matplotlib", "onnx", "scikit-learn", "array-api-strict",
)  # fmt: skip

# The sizes of xnn train's default network, and the number of its weights. Its batch size is 32.
_ARTICLE_WIDTHS = 784, 100, 200, 10
_ARTICLE_WEIGHTS = 784 * 100 + 100 * 200 + 200 * 10


# Not a docstring: `python -OO` removes those.
_HELP = """\
Show versions, backends, GPUs, BLAS, threads and data sets.

For a backend that is not available, it says why, and what to do. "plan" is how xnn train would run here.

\b
xnn info
xnn info --probe --json > report.json
"""


@click.command("info", help=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--probe", is_flag=True, help="Run a small computation on every backend.")
def command(as_json: bool, probe: bool) -> None:
    """The command `xnn info`; its help is _HELP."""
    facts = collect(probe) | _ranks()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for key, value in facts.items():
            _print_fact(key, _lines(value) if key == "gpus" and isinstance(value, list) else value)
    _check_variables(probe)


def _ranks() -> dict[str, Any]:
    """The processes that a launcher of MPI has started, by their hosts; nothing for one process."""
    ranks = current_ranks()
    if not isinstance(ranks, MPIRanks):
        return {}
    threads = threads_of_rank(ranks.on_this_machine)
    own = f"{threads} thread{'s' if threads > 1 else ''} on {_device_of_rank()}"
    hosts: dict[str, list[str]] = {}
    for rank, (host, what) in enumerate(ranks.gather_objects((socket.gethostname(), own))):
        hosts.setdefault(host, []).append(f"rank {rank} with {what}")
    named = {host: ", ".join(members) for host, members in hosts.items()}
    return {"ranks": {"how many": str(ranks.size), "MPI": ranks.library, **named}}


def _device_of_rank() -> str:
    """The backend that this process would train with, and the name of its GPU. Nothing runs on it."""
    try:
        name = backend_variable() or "numpy"
        if not name.startswith("cupy"):
            return name
        gpu = next((gpu for gpu in gpus(gpu_number()) if gpu["used"]), None)
    except XnnError:
        return "a backend that cannot run"
    return (
        f"cupy:{gpu_number()}, which is not there" if gpu is None else f"cupy:{gpu['number']} ({gpu['name']})"
    )


def _print_fact(key: str, value: Any) -> None:
    if isinstance(value, dict):
        say(f"{key}:")
        for name, text in value.items():
            say(f"  {name}: {text}")
    elif isinstance(value, list):
        for entry in value:
            say(f"{key}: {', '.join(f'{k} {v}' for k, v in entry.items())}")
    else:
        say(f"{key}: {value}")


def _lines(gpus: list[dict[str, Any]]) -> dict[str, str]:
    """A line for each GPU, by its name in XNN_BACKEND."""
    return {
        f"cupy:{gpu['number']}": f"{gpu['name']}, {gpu['memory_mb']:,} MB, compute capability "
        f"{gpu['compute_capability']}, CUDA {gpu['driver']} (driver), {gpu['runtime']} (CuPy)"
        + ("; the backend cupy is this one" if gpu["used"] else "")
        for gpu in gpus
    }


def collect(probe: bool = False) -> dict[str, Any]:
    """All facts as JSON values.

    probe: whether to run a small computation on each backend; default False. Without it nothing runs on a GPU.

    An error, such as that of a wrong environment variable, stands in place of the fact.
    """
    backends = {name: _backend(name, probe) for name in backend_names()}

    def explained(error: XnnError) -> str:
        """What an error says, or which backend said it already."""
        name = next((name for name, text in backends.items() if f"{name}: {text}" == str(error)), "")
        said = name and isinstance(error, BackendUnavailableError)
        return f"the backend {name} cannot run" if said else str(error)

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
        "backends": backends,
        "gpus": _gpus(),
        "numerics": _numerics(probe, explained),
        "blas": blas_libraries(),
        "plan": _plan(probe, explained),
        "data": _data(),
    }


def _check_variables(probe: bool) -> None:
    """Raise the error of a wrong environment variable, after everything is shown.

    The exit code is then 2, and 1 if XNN_BACKEND names a backend that does not run here. Without `probe` a GPU is
    only looked for.
    """
    name = backend_variable()
    current_numerics()
    persistent_rule.is_on()
    on_disk()
    if name.startswith("cupy") and not probe:
        if fault := _fault():
            raise BackendUnavailableError(fault)
        gpus(None)
    else:
        backend_wanted()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _backend(name: str, probe: bool) -> str:
    """One line: that the backend works, why it does not, or that it was not tried."""
    if name == "cupy" and not probe:
        fault = _fault().removeprefix("cupy: ")
        return fault or "installed, with a driver; --probe runs something on the GPU"
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
        return str(error).removeprefix(f"{name}: ")  # the name stands before it already


def _fault() -> str:
    """Why the backend cupy cannot run, as far as it shows without a GPU's work; "" if no reason is found."""
    try:
        return gpu_fault(gpu_number())
    except UnknownBackendError:  # XNN_BACKEND is wrong, and says nothing about cupy
        return gpu_fault(0)
    except BackendUnavailableError as error:
        return str(error)


def _gpus() -> list[dict[str, Any]] | str:
    """What CUDA says about each GPU, or why it says nothing. Where variables are wrong, the list is needed most."""
    try:
        number = gpu_number()
    except XnnError:
        number = None
    try:
        return gpus(number)
    except XnnError as error:
        return str(error)


def _numerics(probe: bool, explained: Callable[[XnnError], str]) -> dict[str, str]:
    """The numerics in force, and whether this machine can compute in exact numerics on the chosen backend."""
    try:
        found = {
            "in force": current_numerics(),
            "exact": "--probe checks whether this machine can compute in them",
        }
    except XnnError as error:
        return {"in force": "none", "exact": str(error)}
    if probe:
        try:
            start = time.perf_counter()
            current_backend().exact  # noqa: B018 - the property checks the machine
            found["exact"] = f"works: checked in {1e3 * (time.perf_counter() - start):.0f} ms"
        except XnnError as error:
            found["exact"] = explained(error)
    return found


def _plan(probe: bool, explained: Callable[[XnnError], str]) -> dict[str, Any] | str:
    try:
        persistent_rule.is_on()
        if not probe and os.environ.get("XNN_BACKEND", "").strip().partition(":")[0] == "cupy":
            return "--probe shows the plan on a GPU"
        lib = current_backend()
        threads = choose_threads(None, 32 * _ARTICLE_WEIGHTS, on_host=lib.is_host)
        plan = {"of": "xnn train"} | execution_plan(lib, "float32", 32, threads, lib.kernels().name)
        return plan | (_persistent(lib.address) if plan["kernels"] == "cuda" else {})
    except XnnError as error:
        return explained(error)


def _persistent(address: str) -> dict[str, Any]:
    """What the plan of xnn train says of the persistent kernel on a GPU."""
    found: persistent_rule.Cluster | str
    if current_numerics() == "exact":
        found = persistent_rule.FAST_ONLY
    elif not persistent_rule.is_on():
        found = persistent_rule.OFF
    else:
        number = int(address.partition(":")[2])
        major, minor = map(int, gpus(number)[number]["compute_capability"].split("."))
        found = persistent_rule.choose(_ARTICLE_WIDTHS, 32, 0, (major, minor))
    return {"persistent": not isinstance(found, str), "persistent_because": str(found)}


def _data() -> dict[str, str]:
    try:
        return on_disk()
    except XnnError as error:
        return {"error": str(error)}
