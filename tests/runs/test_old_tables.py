"""Tables of version 0.1, which standardized in float32: its records are verified, its models predict, bit for bit."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
import pytest
from command_line import run

from xnn.runs.digests import read_record
from xnn.runs.spec import RunSpec

TABLE = """\
5.189,-96.250,b 3.137,-97.023,a 4.482,-100.785,a 8.799,-99.527,b 4.914,-97.812,a
7.254,-100.093,b 6.176,-102.921,b 4.266,-101.314,a 2.335,-104.526,a 1.746,-100.716,a
4.655,-100.961,a 5.138,-104.007,b 4.841,-99.286,a 6.502,-102.539,b 4.200,-106.046,a
3.993,-106.590,a 2.161,-96.695,a 0.597,-97.604,a 5.656,-100.937,b 5.919,-98.418,b
7.091,-100.691,b 3.816,-101.814,a 3.027,-100.135,a 3.428,-96.794,a 1.261,-103.281,a
3.094,-106.279,a 8.805,-107.225,b 4.433,-101.576,a 8.312,-105.956,b 7.144,-102.194,b
"""

# Written by xnn 0.1.0 in exact numerics, whose bits every machine has:
# xnn train --dataset t.csv --hidden 3 --epochs 1 --batch-size 8 --numerics exact --kernels ops --threads 1
#     --record old.jsonl --save old.safetensors
RECORD = """\
{"format": "xnn record 1", "xnn": "0.1.0", "run": {"dataset": "t.csv", "hidden": [3], "activation": "relu", "optimizer": "sgd", "lr": 0.1, "batch_size": 8, "seed": 0, "dropout": 0.0}, "data_sha256": "74fdc826ca96404a6bd1902a73b234eb9291f239b2a0b36e008707d22b54ae6a", "table": {}, "plan": {"numerics": "exact", "backend": "numpy", "library": "numpy 2.4.6", "device": "x86_64", "blas": "openblas 0.3.31.188.0 Haswell", "threads": 1, "threads_because": "asked for", "kernels": "ops", "fused": false, "dtype": "float32", "batch_size": 8, "folded": false}, "steps_per_epoch": 3, "tensors": {"1.weight": "Dense", "1.bias": "Dense", "3.weight": "Dense", "3.bias": "Dense"}}
["", "", "6a0f0781905b29aa15ec7bf0b50732b422a110af969daa9caf5570f5a1810b7a"]
["3f287651", "7029f5632ed92e329ddca49aad807371dee545435b979cd2d512e7ae9bd3b73a", "59ca385ccaad54983f681e1fe66782bdd4f4aec706902abde65c65c0de6bb9d1"]
["3f2caa50", "d87413e6d3dd5be3de2000bb0b6c922c6a468a94da94822349f6d557b6e89571", "e2801fc71e757c2a2f095615b77434b32ff2da20aa2b0b706327766e9c053596"]
["3f2c8827", "56a8968506c4abaef28921cabbfff3b4978a9c3f4610dbdb4fa80ccd1c3e8f6e", "8a56d94b832855295ecf8fd9b9e9fb37859d3749f5ff1505258ed2a32e07cc47"]
{"end": 3, "sha256": "e980e1f9c161591324748a1f1656aa1f06f9cff692a1966e6dd82cbea27f230e"}
"""  # noqa: E501

MODEL = """\
MAQAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJ3ZWlnaHRzX3NoYTI1NiI6IjMwYWI3ZmNmMGFkZGQzYzM3NDY0ZjAwMTI5Yzc0ZGI5ZjEwODUxMG
ExOGQ3NWU0OGZkYzM4MDhjODBhNmE3NjYiLCJ4bm4iOiJ7XCJmb3JtYXRcIjogMSwgXCJ0eXBlXCI6IFwiU2VxdWVudGlhbFwiLCBcInNlZWRc
IjogMCwgXCJsYXllcnNcIjogW3tcInR5cGVcIjogXCJSZXNjYWxlXCIsIFwic2NhbGVcIjogWzAuNDMwMjg3ODQxMjg4MzIyMjYsIDAuMjk0Nz
QyMTQ4MDE5NzA1NDRdLCBcIm9mZnNldFwiOiBbLTIuMDI1Njg3NTg0ODI1MDk5LCAyOS44NDAzMzM2NzM1MDIzNF0sIFwiZHR5cGVcIjogXCJm
bG9hdDMyXCJ9LCB7XCJ0eXBlXCI6IFwiRGVuc2VcIiwgXCJpbnB1dHNcIjogMiwgXCJvdXRwdXRzXCI6IDMsIFwiYmlhc1wiOiB0cnVlLCBcIm
R0eXBlXCI6IFwiZmxvYXQzMlwifSwge1widHlwZVwiOiBcIlJlTFVcIn0sIHtcInR5cGVcIjogXCJEZW5zZVwiLCBcImlucHV0c1wiOiAzLCBc
Im91dHB1dHNcIjogMiwgXCJiaWFzXCI6IHRydWUsIFwiZHR5cGVcIjogXCJmbG9hdDMyXCJ9XSwgXCJudW1lcmljc1wiOiBcImV4YWN0XCIsIF
wibm90ZXNcIjoge1wiZGF0YXNldFwiOiBcInQuY3N2XCIsIFwidGFza1wiOiBcImNsYXNzaWZpY2F0aW9uXCIsIFwiZmVhdHVyZXNcIjogMiwg
XCJsYWJlbHNcIjogW1wiYVwiLCBcImJcIl0sIFwiY29sdW1uc1wiOiB7XCJuYW1lc1wiOiBbXCJhXCIsIFwiYlwiLCBcInlcIl0sIFwiZmVhdH
VyZXNcIjogWzAsIDFdLCBcInRhcmdldHNcIjogWzJdLCBcImhlYWRlclwiOiBudWxsfSwgXCJlcG9jaHNcIjogMX0sIFwiZnJvemVuXCI6IFtd
fSJ9LCIxLmJpYXMiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzNdLCJkYXRhX29mZnNldHMiOlswLDEyXX0sIjEud2VpZ2h0Ijp7ImR0eXBlIj
oiRjMyIiwic2hhcGUiOlsyLDNdLCJkYXRhX29mZnNldHMiOlsxMiwzNl19LCIzLmJpYXMiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzJdLCJk
YXRhX29mZnNldHMiOlszNiw0NF19LCIzLndlaWdodCI6eyJkdHlwZSI6IkYzMiIsInNoYXBlIjpbMywyXSwiZGF0YV9vZmZzZXRzIjpbNDQsNj
hdfX0gICAgwFGPO+bd9bwKzEk8KpKsvVUIkD4ehGI/jkzuPsadaD3eLh8/Y1zSPGNc0rwpa7s+8VVAPksxQTzjWwa/LW53vw5lEr8=
"""

#: The digest of what xnn 0.1.0 predicted: the outputs for all rows, float32.
OUTPUTS = "38912db8db51444d2be9597780a30936a4fae58f31460b09ccd810aa50b2763e"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *TABLE.split()]) + "\n")
    (tmp_path / "old.jsonl").write_text(RECORD)
    (tmp_path / "old.safetensors").write_bytes(base64.b64decode(MODEL))
    return tmp_path


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_record_of_version_0_1_is_verified(folder, kernels):
    result = run(
        "verify", folder / "old.jsonl", f"kernels={kernels},threads=1", "--dataset", folder / "t.csv"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("3 steps, loss, 4 gradients, 4 weights each: all bits agree\n")


def test_a_model_of_version_0_1_predicts_the_same_bits(folder):
    result = run("predict", folder / "old.safetensors", folder / "t.csv", "--output", folder / "o.npy")
    assert len(result.stdout.splitlines()) == 30
    outputs = np.load(folder / "o.npy")
    assert outputs.dtype == np.float32
    assert hashlib.sha256(outputs.astype("<f4").tobytes()).hexdigest() == OUTPUTS


def test_a_record_made_now_says_that_it_standardizes_in_float64(folder):
    words = (
        "--hidden",
        "3",
        "--epochs",
        1,
        "--batch-size",
        8,
        "--numerics",
        "exact",
        "--kernels",
        "ops",
        "--threads",
        1,
    )
    record = folder / "new.jsonl"
    assert run("train", "--dataset", folder / "t.csv", *words, "--record", record, "--quiet").exit_code == 0
    new, old = read_record(record), read_record(folder / "old.jsonl")
    assert new.about["run"] == old.about["run"] | {"standardize": "float64"}
    assert new.about["data_sha256"] == old.about["data_sha256"]
    assert new.steps != old.steps
    assert run("verify", record, folder / "old.jsonl").exit_code == 2
    run_of = {k: v for k, v in old.about["run"].items() if k != "dataset"}
    assert RunSpec.from_json(run_of, "0.1.0").standardize is None
