#!/usr/bin/env bash
# Runs all checks and measurements of a machine with a GPU, in under 9 minutes and without a network.
#
#     benchmarks/gpu.sh OUT
#
# It leaves three small files in the folder OUT: summary.txt (one page), results.json and logs.txt.
# It needs Python 3.11 or newer with NumPy and CuPy. Packages that are missing are taken from wheels in the folder
# WHEELS (default: wheels, beside this checkout's README); what is installed stays. MNIST is used if it is in
# XNN_DATA_HOME (default: data, beside the README). XNN_GPU_SHORT=1 makes a dry run, for an emulated GPU.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) || exit
out=${1:-$root/benchmarks/results/gpu}
[[ $out = /* ]] || out=$PWD/$out
export WHEELS=${WHEELS:-$root/wheels}
[[ $WHEELS = /* ]] || WHEELS=$PWD/$WHEELS
cd "$root" || exit
python=${PYTHON:-python3}
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
# A wheel is a zip file whose content is importable. It is unpacked if no package of its name is installed.
"$python" - "$WHEELS" "$site" <<'END'
import importlib.metadata, pathlib, sys, zipfile
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        zipfile.ZipFile(wheel).extractall(sys.argv[2])
END
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}:$site PYTHONUNBUFFERED=1 MPLBACKEND=Agg
export NVIDIA_TF32_OVERRIDE=0 XLA_PYTHON_CLIENT_PREALLOCATE=false CUBLAS_EMULATE_DOUBLE_PRECISION=0
[[ -n ${XNN_DATA_HOME:-} || ! -d data ]] || export XNN_DATA_HOME=$PWD/data
if ! reason=$("$python" -c "import xnn.cli, xnn.benchmarks.gpu.run" 2>&1); then
    echo "xnn cannot be imported: ${reason##*$'\n'}. Put wheels of what is missing into the folder WHEELS" | tee "$out/summary.txt"
    exit 1
fi
"$python" -m xnn.benchmarks.gpu.run "$out"
