#!/usr/bin/env bash
# Runs all checks and measurements of a machine with a GPU. The results go to the folder $1 (default:
# benchmarks/results/gpu). It needs Python with NumPy, CuPy and xnn's dependencies. A part that fails does not stop the
# others.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
part() { # part NAME COMMAND...: run the command; write its output and exit code to NAME.txt
    local name=$1; shift
    echo "== $name: $*"
    timeout 240 "$@" >"$out/$name.txt" 2>&1
    echo "exit $?" | tee -a "$out/$name.txt"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/device.txt" 2>&1
part info python3 -m xnn info --probe
part check python3 -m xnn check --table
part bench python3 -m xnn bench --batch-sizes 32,512,2048 --json "$out/bench.json"
part bench-large python3 -m xnn bench --preset large --batch-sizes 128,1024 --repeat 5 --json "$out/bench-large.json"
part sweep python3 -m xnn bench --sweep --repeat 3 --json "$out/sweep.json"
XNN_NUMERICS=exact part check-exact python3 -m xnn check
XNN_NUMERICS=exact XNN_BACKEND=cupy part info-exact python3 -m xnn info --probe
part verify-exact python3 -m xnn verify backend=numpy backend=cupy --dataset synthetic --steps 200
part digests python3 -m xnn.benchmarks.digests --json "$out/digests.json"
part bench-exact python3 -m xnn bench --numerics both --batch-sizes 32,512 --repeat 5 --json "$out/bench-exact.json"
part tests python3 -m pytest -q -p no:cacheprovider
for dropout in 0 0.2; do
    for backend in numpy cupy; do
        XNN_BACKEND=$backend part "train-$backend-$dropout" \
            python3 -m xnn train --dataset synthetic --epochs 3 --seed 1 --dropout $dropout --json
    done
done
for backend in numpy cupy; do
    XNN_BACKEND=$backend part "lenet5-$backend" python3 examples/lenet5.py synthetic
done
XNN_BACKEND=cupy part train-large python3 -m xnn train --dataset synthetic --epochs 3 --hidden 2500,2000,1500 --batch-size 512 --json
echo "results in $out"
