"""Compiles CUDA sources by NVRTC for real GPUs, without one: do they compile with NVIDIA's compiler, too?

`python -m cuda_emulator.nvrtc` compiles every CUDA source of this project for the oldest GPU that runs it, and with
the word `all` for each. The process must not have the emulated GPU attached, because NVRTC is to be NVIDIA's own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cuda_emulator import build
from xnn.backends.kernels.cuda import launch, persistent_kernel
from xnn.backends.kernels.cuda.persistent_rule import Cluster, choose

__all__ = ["ARCHITECTURES", "compile_sources", "project_sources"]

#: Compute capabilities: A100 and H100/H200.
ARCHITECTURES = ("80", "90")
#: An elementwise kernel and a reduction with what the project's own kernels use.
PROBE = """
extern "C" __global__ void probe(float* y, const float* x, int n) {
    __shared__ float s[32];
    float v = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) v = __fadd_rn(v, x[i]);
    for (int d = 16; d; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < blockDim.x / 32) y[threadIdx.x] = s[threadIdx.x];
}
"""


#: What `xnn.backends.kernels.cuda.launch.compiled` defines by options, beside `real`.
TYPES = (
    "#define SOURCE unsigned char\n#define LABEL long long\n#define INDEX long long\n#define TARGET double\n"
)


#: What stands in front of other sources.
SHARED = ("common", "exact_numbers")
#: The sources that exact numerics use, alone or one behind the other; "exact" in a name: they are for them only.
EXACT = (
    "activations", "dense", "distances exact_distances", "dropout", "exact", "exact_loss", "gather",
    "images exact_images", "updates",
)  # fmt: skip
#: Networks for the persistent kernel: widths, activations with their options, rule, arrays of its state, rows.
NETWORKS: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], str, int, int], ...] = (
    ((784, 100, 200, 10), (1, 1, 0), (0.0, 0.0, 0.0), "sgd", 0, 32),
    ((784, 33, 64, 50, 10), (2, 19, 3, 0), (0.0, 0.0, 0.0, 0.0), "adamw", 2, 128),
    ((784, 10), (0,), (0.0,), "rmsprop", 3, 100),
)


def project_sources() -> dict[str, str]:
    """Each CUDA source of the project, for float, double and exact numerics, with what it calls in front of it.

    The persistent kernel comes once for each of NETWORKS, for float.
    """
    sources = {"probe": PROBE}
    for path in sorted(Path(launch.__file__).parent.glob("*.cu")):
        name = path.stem
        if name in (*SHARED, "persistent"):
            continue
        for real in ("float", "double") if not name.startswith("exact") else ():
            sources[f"{name} ({real})"] = f"#define real {real}\n{TYPES}{launch.source(name)}"
    for files in EXACT:
        exact = f"#define real double\n#define EXACT\n{TYPES}"
        sources[f"{files} (exact)"] = exact + launch.source(files, exact=True)
    for widths, kinds, options, rule, states, rows in NETWORKS:
        cluster = choose(widths, rows, states, (9, 0))
        assert isinstance(cluster, Cluster)
        names = persistent_kernel.definitions(cluster, widths, kinds, options, rule, states)
        defined = "".join(f"#define {name} {text}\n" for name, text in names.items())
        name = "-".join(map(str, widths))
        sources[f"persistent ({name}, {rule})"] = (
            f"#define real float\n{TYPES}{defined}{launch.source('persistent')}"
        )
    return sources


def compile_sources(
    sources: Mapping[str, str], options: Sequence[str] = (), everywhere: bool = True
) -> dict[tuple[str, str], int]:
    """Compile sources. Return the sizes of the machine code by (name, architecture).

    options: beside those with which CuPy compiles: C++17 and subnormals flushed to zero.
    everywhere: for each architecture, or for the oldest only. Clusters of blocks exist from 90 on.

    Raises CuPy's CompileException, with NVRTC's message, for a source that does not compile.
    """
    compiler = importlib.import_module("cupy.cuda.compiler")
    bundled = build.cupy_folder() / "cupy" / "_core" / "include" / "cupy" / "_cccl" / "libcudacxx"
    includes = f"-I{bundled}", f"-I{build.headers()}"  # CuPy gives them, too
    sizes = {}
    for name, source in sources.items():
        able = [one for one in ARCHITECTURES if int(one) >= 90 or "__cluster_dims__" not in source]
        for architecture in able if everywhere else able[:1]:
            program = compiler._NVRTCProgram(source, f"{name}.cu", method="cubin")
            flags = (f"-arch=sm_{architecture}", "--std=c++17", "-ftz=true", *includes, *options)
            code, _ = program.compile((*flags, "--device-as-default-execution-space"))
            sizes[name, architecture] = len(code)
    return sizes


if __name__ == "__main__":
    attach = importlib.import_module("cuda_emulator.attach")
    if attach.attached():
        sys.exit("NVRTC needs a process without the emulated GPU")
    done = compile_sources(project_sources(), ("--fmad=false",), everywhere=sys.argv[1:] == ["all"])
    for (name, architecture), size in done.items():
        print(f"{name}: sm_{architecture}, {size:,} bytes")
