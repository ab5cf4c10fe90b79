"""Records that version 0.1 wrote are read and verified, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import run

from xnn.runs.digests import read_record
from xnn.runs.spec import RunSpec

# Written by xnn 0.1.0 in exact numerics, whose bits every machine has:
# xnn train --dataset bytes.npz --hidden 3 --batch-size 8 --epochs 1 --numerics exact --threads 1 --kernels ops
#     --optimizer adam --schedule cosine --warmup 1 --dropout 0.25 --record ...
PERCEPTRON = """\
{"format": "xnn record 1", "xnn": "0.1.0", "run": {"dataset": "bytes.npz", "hidden": [3], "activation": "relu", "optimizer": "adam", "lr": 0.001, "batch_size": 8, "seed": 0, "dropout": 0.25, "schedule": "cosine:steps=3", "warmup": 1}, "data_sha256": "c0915a90777c07c27cb4beae1f8250f0d93609675565022bd119a9c33ef9182f", "table": {}, "plan": {"numerics": "exact", "backend": "numpy", "library": "numpy 2.4.6", "device": "x86_64", "blas": "openblas 0.3.31.188.0 SkylakeX", "threads": 1, "threads_because": "asked for", "kernels": "ops", "fused": false, "dtype": "float32", "batch_size": 8, "folded": false}, "steps_per_epoch": 4, "tensors": {"1.weight": "Dense", "1.bias": "Dense", "4.weight": "Dense", "4.bias": "Dense"}}
["", "", "c574078061d4aeec15ec7bf0b50732b4ce0043a9ba0064e115ec7bf0b50732b4"]
["3f9fcbd7", "e79b1b1a592eddac11e8124bc0d9a3359d5fdcc332e4bf62bd893c0cbfb272d2", "c574078061d4aeec15ec7bf0b50732b4ce0043a9ba0064e115ec7bf0b50732b4"]
["3f8461ac", "e476f153d91e2e0df1dca7b6f9630eb81222ae001ef80871d857b1cf83fd0dfe", "2e21fc851eb3cb163813f8a82989a08c8f4dfdf90a23e4ef20333e81bc99c9a5"]
["3f8baee4", "b9989cd822d13068a864cf4654f575efcbe2d31951daad326f4df634d0e0327e", "11a8889b02927620a04c54609ed5d335e04e4d5bea203479074831c8c8282cc6"]
["3fb3580d", "d0a171db019110acdd7709648a13b75d74c17282e958d57690ef4042ac1c2880", "44af4f65f637b3780648bab63b2ee12b74f133232ad591399d97ae1875218e65"]
{"end": 4, "sha256": "15c0dc891b29fe17963bb331ef97dc31a8cff579fa92b36a112091d8c4728461"}
"""  # noqa: E501

# The same with a network from a file: --model net.toml --label-smoothing 0.1, and no other options of the run.
NETWORK = """\
{"format": "xnn record 1", "xnn": "0.1.0", "run": {"dataset": "bytes.npz", "optimizer": "sgd", "lr": 0.1, "batch_size": 8, "seed": 0, "model": [{"type": "Dense", "outputs": 4, "weight_init": {"type": "He"}}, {"type": "Tanh"}, {"type": "Dense", "outputs": "classes", "bias": false}], "label_smoothing": 0.1}, "data_sha256": "c0915a90777c07c27cb4beae1f8250f0d93609675565022bd119a9c33ef9182f", "table": {}, "plan": {"numerics": "exact", "backend": "numpy", "library": "numpy 2.4.6", "device": "x86_64", "blas": "openblas 0.3.31.188.0 SkylakeX", "threads": 1, "threads_because": "asked for", "kernels": "ops", "fused": false, "dtype": "float32", "batch_size": 8, "folded": false}, "steps_per_epoch": 4, "tensors": {"1.weight": "Dense", "1.bias": "Dense", "3.weight": "Dense"}}
["", "", "fff99233915b64fe374708fff7719dd54eadaa678136d265"]
["3f8f6ed4", "0f2490de91ea78d4b4b2b2221e0729de1743578f1676872d", "8a388034427a1748a02de537525a29e637d1c9874e03490e"]
["3f8aaeec", "2c3c068632e807a93bcde2e874f4cc72566e629a1d09a4d0", "a1b2e34210539e56ac48bdef7ab586e3bcc875230a990a83"]
["3f84f429", "8edb4d856a01f24a5b1046c31366ef1f7c658b69ad14060a", "0c8b149e37e58ecbdfcad2967efe005c05e7a8e57939771f"]
["3f91e882", "44485024244905291b4295132006c443eb4df462840aa406", "d0aa92169e22154b3ceefc1ecc44b44ae856fafad7cc3c75"]
{"end": 4, "sha256": "c667bb4b9bb18a6cac35757f5bf91b90584461215118996af292116c8b3c13f0"}
"""  # noqa: E501


@pytest.fixture
def folder(tmp_path):
    """Where the records and their data are."""
    x = (np.arange(240).reshape(40, 6) * 37 % 251).astype(np.uint8)
    np.savez(tmp_path / "bytes.npz", x=x, y=np.arange(40) % 3)
    (tmp_path / "perceptron.jsonl").write_bytes(PERCEPTRON.encode())
    (tmp_path / "network.jsonl").write_bytes(NETWORK.encode())
    return tmp_path


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("name", "tensors"), [("perceptron", 4), ("network", 3)])
def test_a_record_of_version_0_1_verifies(folder, name, tensors):
    """This version trains the recorded run again, with ops and with kernels."""
    record = folder / f"{name}.jsonl"
    for settings in ("kernels=ops,threads=1", "kernels=numpy"):
        result = run("verify", record, settings, "--dataset", folder / "bytes.npz")
        assert result.exit_code == 0, result.output
        last = f"4 steps, loss, {tensors} gradients, {tensors} weights each: all bits agree"
        assert result.stdout.splitlines()[-1] == last
        assert "recorded by xnn 0.1.0" in result.stdout


@pytest.mark.parametrize("name", ["perceptron", "network"])
def test_a_record_made_now_is_the_one_of_version_0_1(folder, name):
    """The file of the same run has the same lines, apart from the plan: it names machine and libraries."""
    old = (folder / f"{name}.jsonl").read_text().splitlines()
    known = read_record(folder / f"{name}.jsonl").about["run"]
    known.pop("dataset")
    words = ["--batch-size", 8, "--epochs", 1, "--numerics", "exact", "--threads", 1, "--kernels", "ops"]
    if name == "perceptron":
        words += [
            "--hidden",
            "3",
            "--optimizer",
            "adam",
            "--schedule",
            "cosine",
            "--warmup",
            1,
            "--dropout",
            0.25,
        ]
    else:
        dense = '[[layers]]\ntype = "Dense"\n'
        middle = 'outputs = 4\nweight_init = {type = "He"}\n[[layers]]\ntype = "Tanh"\n'
        (folder / "net.toml").write_text(f'{dense}{middle}{dense}outputs = "classes"\nbias = false\n')
        words += ["--model", folder / "net.toml", "--label-smoothing", 0.1]
    new = folder / "new.jsonl"
    result = run("train", "--dataset", folder / "bytes.npz", *words, "--record", new, "--quiet")
    assert result.exit_code == 0, result.output
    lines = new.read_text().splitlines()
    assert lines[1:-1] == old[1:-1]
    first, before = json.loads(lines[0]), json.loads(old[0])
    assert list(first) == list(before)
    assert {**first, "plan": None, "xnn": None} == {**before, "plan": None, "xnn": None}
    assert list(first["plan"]) == list(before["plan"])
    assert json.loads(json.dumps(RunSpec.from_json(known, "0.1.0").as_json())) == known
