"""Turns CUDA C++ into host code with an entry for each kernel, and compiles it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cuda_emulator import build

__all__ = ["compile_source", "entry_name"]

_BOUNDS = r"(?:__(?:launch_bounds|cluster_dims)__\s*\([^)]*\)\s*)*"
_KERNEL = re.compile(rf"__global__\s+(?:static\s+)?{_BOUNDS}void\s*{_BOUNDS}(\w+)\s*\(")
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\([^)]*\)\s*)?([\w\s:]+?)\s+(\w+)\s*\[\s*\]\s*;")
_CLUSTER = re.compile(r"__cluster_dims__\s*\(\s*(\w+)")
#: What a thread may wait at, or end a launch by. A kernel without any of these needs no fibers and is faster.
_WAITS = re.compile(
    r"__sync|__shfl|__ballot|__any_sync|__all_sync|__reduce_\w+_sync|__activemask|cooperative_groups|__trap|assert"
)
#: Where the linker puts the kernel's shared variables, and the library itself.
_SECTIONS = """
#define HIDDEN __attribute__((visibility("hidden")))
extern "C" {
extern char __start_emu_shared[] __attribute__((weak)) HIDDEN, __stop_emu_shared[] __attribute__((weak)) HIDDEN;
extern char __ehdr_start[] HIDDEN, _end[] HIDDEN;
}
"""
_ENTRY = """
using emu_type_{number} = decltype(emu_signature(&{name}));
extern "C" __attribute__((visibility("default"))) EmuKernel emu_entry_{label};
EmuKernel emu_entry_{label} = {{
    emu_type_{number}::entry<&{name}>, emu_type_{number}::sizes, emu_type_{number}::count,
    {cluster}, {fibers}, {checked}, {flush}, __start_emu_shared, __stop_emu_shared, __ehdr_start, _end
}};
"""


def entry_name(name: str, number: int) -> str:
    """What a kernel's entry is called: by its name, or by its number if that is an expression such as f<float>."""
    return name if name.isidentifier() else str(number)


def compile_source(
    source: str, names: Sequence[str] = (), options: Sequence[str] = (), check: bool = False
) -> tuple[Path, list[str]]:
    """Return the shared library of a CUDA source, and its kernels' names in the order of their entries.

    names: the kernels; default: every __global__ function of the source. Instances of templates must be named.
    options: those of NVRTC that the emulator knows are -I, -D, --fmad=false and -ftz=true; others are ignored.
    check: whether races and accesses out of bounds are found.

    Raises BuildError if g++ refuses the source.
    """
    kernels = list(names) or list(dict.fromkeys(_KERNEL.findall(source)))
    # The processor's switch for subnormals holds for float64, too, where the GPU has none.
    flush = "-ftz=true" in options and not re.search(r"\bdouble\b", source)
    text = _translated(source, kernels, check, flush)
    fused = not {"--fmad=false", "-fmad=false"} & set(options) and "-mfma" in build.processor()
    own = build.HERE / "include"
    flags = [
        *("-std=c++17", "-w", "-fno-strict-aliasing", "-fvisibility=hidden", "-fno-gnu-unique"),
        *(("-ffp-contract=fast", "-mfma") if fused else ("-ffp-contract=off",)),
        *(("-O1", "-fsanitize=thread", "-fno-omit-frame-pointer") if check else ("-O2",)),
        f"-I{own}",
        f"-I{build.headers()}",
    ]
    # Half of the time to compile one of CuPy's own kernels would go to the headers that all of them include.
    cupys = "#include <cupy/carray.cuh>" in source
    name = "cupy_host.h" if cupys else "cuda_host.h"
    includes = [option for option in options if option.startswith("-I")]
    header = build.precompiled(own / name, [*flags, *(includes if cupys else ())])
    flags = [f"-I{header}", *flags, *includes, *(option for option in options if option.startswith("-D"))]
    text = f'#include "{name}"\n{text}'
    return build.compiled("kernel-{}.so", {"kernel.cpp": text}, flags), kernels


def _translated(source: str, kernels: Sequence[str], check: bool, flush: bool) -> str:
    """The source with dynamic shared memory asked from the engine, and the kernels' entries."""
    body = _DYNAMIC.sub(r"\1* \2 = (\1*)emu_dynamic_shared();", source)
    cluster = _CLUSTER.search(source)
    entries = [
        _ENTRY.format(
            number=number,
            name=name,
            label=entry_name(name, number),
            cluster=cluster.group(1) if cluster else 0,
            fibers=int(bool(_WAITS.search(source))),
            checked=int(check),
            flush=int(flush),
        )
        for number, name in enumerate(kernels)
    ]
    lines = ('#line 1 "kernel.cu"', body, '#line 1 "entries"', _SECTIONS, *entries)
    return "\n".join(lines)
