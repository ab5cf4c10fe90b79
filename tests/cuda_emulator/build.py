"""Compiles C++ into shared libraries, which are kept in a folder of the user's cache.

The folder's name is a digest of everything that a library depends on beside its own source: the emulator's files, the
compiler's version, CuPy's version, the processor's instructions. So a library of another emulator is never used. Each
file is written under a temporary name and then renamed, so two processes may build at once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cuda_emulator import elf

__all__ = [
    "INSTALL",
    "BuildError",
    "compiled",
    "cupy_folder",
    "engine",
    "everything",
    "folder",
    "headers",
    "obstacle",
    "precompiled",
    "stand_ins",
]

HERE = Path(__file__).parent
#: The CuPy whose machine code is known here, and the packages that it needs.
CUPY, CUPY_VERSION = "cupy-cuda13x", "14.2"
PACKAGES = (f"{CUPY}=={CUPY_VERSION}.*", "nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-nvrtc")
INSTALL = f"pip install {shlex.join(PACKAGES)}"


class BuildError(RuntimeError):
    """The C++ compiler refused a source."""


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def obstacle() -> str:
    """Say why the emulator cannot run here, or return "" if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the emulated GPU runs on Linux on x86-64, not on {sys.platform} on {platform.machine()}"
    if shutil.which(compiler()) is None:
        return f"the emulated GPU needs the C++ compiler {compiler()}, which is not installed"
    if not _version_of(CUPY).startswith(f"{CUPY_VERSION}.") or headers() is None:
        return f"the emulated GPU needs CuPy {CUPY_VERSION} and CUDA's headers: {INSTALL}"
    return ""


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def headers() -> Path | None:
    """The folder of the CUDA run-time's headers, or None if they are not installed."""
    for place in sys.path:
        found = Path(place, "nvidia", "cu13", "include")
        if (found / "cuda_runtime_api.h").exists() and (found / "crt").exists():
            return found
    return None


@functools.cache
def processor() -> tuple[str, ...]:
    """The compiler's options for instructions that not every x86-64 processor has."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return tuple(f"-m{name}" for name in ("fma", "avx2") if name in words)


@functools.cache
def folder() -> Path:
    """The folder of this emulator's libraries, in XNN_EMULATOR_CACHE or in the user's cache."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    for part in (version, *processor(), _version_of(CUPY), _version_of("nvidia-cuda-runtime")):
        digest.update(f"\0{part}".encode())
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "xnn-cuda-emulator")
    place = Path(os.environ.get("XNN_EMULATOR_CACHE") or default).absolute() / digest.hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    return place


def compiled(name: str, files: Mapping[str, str], options: Sequence[str], link: Sequence[str] = ()) -> Path:
    """Return the shared library of some sources, which is built unless it is there.

    name: the library's; {} in it becomes a digest of all that follows.
    files: each file's name and text. Those called *.cpp are compiled.
    options, link: the compiler's, for compiling and for linking.

    Raises BuildError, with the compiler's message, if it refuses a source.
    """
    key = "\0".join((*files, *files.values(), *options, *link))
    target = folder() / name.format(hashlib.sha256(key.encode()).hexdigest()[:20])
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder(), prefix="building-") as scratch:
        for file, text in files.items():
            Path(scratch, file).write_text(text, encoding="utf-8")
        # In two steps: linking with -fsanitize=thread would add libtsan, and the engine has its own hooks.
        sources = [file for file in files if file.endswith(".cpp")]
        _run([compiler(), *options, "-fPIC", "-c", *sources], scratch)
        objects = [str(Path(file).with_suffix(".o")) for file in sources]
        _run([compiler(), "-shared", *objects, *link, "-o", "library"], scratch)
        Path(scratch, "library").replace(target)
    return target


def precompiled(header: Path, options: Sequence[str]) -> Path:
    """Return a folder for -I with a header in compiled form, which halves the time to compile a kernel.

    g++ uses it for sources with the same options, and otherwise reads the header itself.
    """
    name = hashlib.sha256("\0".join(options).encode()).hexdigest()[:20]
    target = folder() / f"headers-{name}" / f"{header.name}.gch"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix="building-") as scratch:
            _run([compiler(), *options, "-fPIC", "-x", "c++-header", str(header), "-o", "header"], scratch)
            Path(scratch, "header").replace(target)
    return target.parent


def _run(command: Sequence[str], where: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]}: {done.stderr[:6000]}")


def engine() -> Path:
    """The library that runs kernels."""
    return _own("engine-{}.so", "engine", ("checks", "fibers", "launch", "meetings"), "emu_*; __tsan_*")


def stand_ins() -> tuple[Path, ...]:
    """Libraries that take the place of the driver and of cuBLAS, in the order in which they must be loaded.

    Each has the name by which CuPy asks for it. The libraries of a folder are those of one version of the emulator.
    """
    parts = ("driver", "faults", "late", "memory", "runtime", "streams")
    driver = _own("libcuda.so.1", "stand_ins", parts, "cu*; emulated_*", "-Wl,-soname,libcuda.so.1")
    # CuPy looks for this library before cuBLAS, and for this function in it.
    light = 'extern "C" int cublasLtGetVersion() { return 130000; }\n'
    companion = compiled("libcublasLt.so.13", {"light.cpp": light}, [], ["-Wl,-soname,libcublasLt.so.13"])
    return driver, companion, _cublas()


def everything() -> str:
    """Build the engine and the libraries, so that no process waits for it later. Returns ""."""
    engine()
    stand_ins()
    return ""


def _own(name: str, place: str, parts: Sequence[str], exported: str, *link: str) -> Path:
    """A library of files of a folder. Other libraries of the process see only the exported names."""
    files = {f"{part}.cpp": (HERE / place / f"{part}.cpp").read_text(encoding="utf-8") for part in parts}
    files["exported.map"] = f"{{ global: {exported}; local: *; }};\n"
    options = ["-std=c++17", "-O2", "-w", f"-I{HERE / place}", f"-I{headers()}"]
    return compiled(name, files, options, ["-Wl,--version-script=exported.map", *link])


def _cublas() -> Path:
    """cuBLAS: what stand_ins/cublas.cpp has, and a weak stub for each function that CuPy's module names."""
    (module,) = cupy_folder().glob("cupy_backends/cuda/libs/cublas.*.so")
    names = sorted(name for name in elf.undefined(module) if name.startswith("cublas"))
    stub = 'extern "C" __attribute__((weak)) int {}() {{ return 15; }}  // not supported\n'
    files = {
        "cublas.cpp": (HERE / "stand_ins" / "cublas.cpp").read_text(encoding="utf-8"),
        "stubs.cpp": "".join(stub.format(name) for name in names),
        # The functions have versions, and CuPy's module asks for them by the version's name.
        "cublas.map": "libcublas.so.13 { global: cublas*; local: *; };\n",
    }
    options = ["-std=c++17", "-O3", "-w", *processor(), f"-I{HERE / 'stand_ins'}", f"-I{headers()}"]
    link = ["-Wl,-soname,libcublas.so.13", "-Wl,--version-script=cublas.map"]
    return compiled("libcublas.so.13", files, options, link)


def cupy_folder() -> Path:
    """The folder in which CuPy's wheel is installed."""
    return Path(str(importlib.metadata.distribution(CUPY).locate_file("")))
