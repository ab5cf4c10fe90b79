"""Model files: every byte is covered by the digest, and files that version 0.1 wrote still load."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load as safetensors_load

import xnn
from xnn import layers
from xnn.errors import CorruptFileError, OptionError
from xnn.layers import files

# A model that version 0.1.0 saved: see `test_a_file_of_version_0_1_loads` for its layers.
OF_0_1 = base64.b64decode("""
YAUAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJ4bm4iOiJ7XCJmb3JtYXRcIjogMSwgXCJ0eXBlXCI6IFwiU2VxdWVudGlhbFwiLCBcInNlZWRc
IjogMywgXCJsYXllcnNcIjogW3tcInR5cGVcIjogXCJSZXNjYWxlXCIsIFwic2NhbGVcIjogWzAuNSwgMi4wLCAxLjBdLCBcIm9mZnNldFwi
OiBbMC4wLCAtMS4wLCAwLjI1XSwgXCJkdHlwZVwiOiBcImZsb2F0MzJcIn0sIHtcInR5cGVcIjogXCJEZW5zZVwiLCBcImlucHV0c1wiOiAz
LCBcIm91dHB1dHNcIjogNCwgXCJiaWFzXCI6IHRydWUsIFwiZHR5cGVcIjogXCJmbG9hdDMyXCJ9LCB7XCJ0eXBlXCI6IFwiQmF0Y2hOb3Jt
XCIsIFwiZmVhdHVyZXNcIjogNCwgXCJlcHNpbG9uXCI6IDFlLTA1LCBcIm1vbWVudHVtXCI6IDAuMSwgXCJhZmZpbmVcIjogdHJ1ZSwgXCJk
dHlwZVwiOiBcImZsb2F0MzJcIn0sIHtcInR5cGVcIjogXCJSZUxVXCJ9LCB7XCJ0eXBlXCI6IFwiRHJvcG91dFwiLCBcInJhdGVcIjogMC4y
NX0sIHtcInR5cGVcIjogXCJEZW5zZVwiLCBcImlucHV0c1wiOiA0LCBcIm91dHB1dHNcIjogMiwgXCJiaWFzXCI6IHRydWUsIFwiZHR5cGVc
IjogXCJmbG9hdDMyXCJ9XSwgXCJudW1lcmljc1wiOiBcImZhc3RcIiwgXCJub3Rlc1wiOiB7XCJsYWJlbHNcIjogW1wibm9cIiwgXCJ5ZXNc
Il0sIFwidGFza1wiOiBcImNsYXNzaWZpY2F0aW9uXCIsIFwiZmVhdHVyZXNcIjogMywgXCJjb2x1bW5zXCI6IG51bGwsIFwiZGF0YXNldFwi
OiBcInRveVwiLCBcImVwb2Noc1wiOiAxfSwgXCJmcm96ZW5cIjogW1wiMS5iaWFzXCJdfSIsIndlaWdodHNfc2hhMjU2IjoiMmM0OWE1ZWJi
ZjU3ZWQ0YjBlMjI1M2NiNDI1MGQxZmE0ZjE5ZjNkZmQ4OTNhZDNmNjRkOThmOGY0NTMyOTY2MiJ9LCIxLmJpYXMiOnsiZHR5cGUiOiJGMzIi
LCJzaGFwZSI6WzRdLCJkYXRhX29mZnNldHMiOlswLDE2XX0sIjEud2VpZ2h0Ijp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlszLDRdLCJkYXRh
X29mZnNldHMiOlsxNiw2NF19LCIyLmJpYXMiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzRdLCJkYXRhX29mZnNldHMiOls2NCw4MF19LCIy
LnJ1bm5pbmdfbWVhbiI6eyJkdHlwZSI6IkYzMiIsInNoYXBlIjpbNF0sImRhdGFfb2Zmc2V0cyI6WzgwLDk2XX0sIjIucnVubmluZ192YXIi
OnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzRdLCJkYXRhX29mZnNldHMiOls5NiwxMTJdfSwiMi53ZWlnaHQiOnsiZHR5cGUiOiJGMzIiLCJz
aGFwZSI6WzRdLCJkYXRhX29mZnNldHMiOlsxMTIsMTI4XX0sIjUuYmlhcyI6eyJkdHlwZSI6IkYzMiIsInNoYXBlIjpbMl0sImRhdGFfb2Zm
c2V0cyI6WzEyOCwxMzZdfSwiNS53ZWlnaHQiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzQsMl0sImRhdGFfb2Zmc2V0cyI6WzEzNiwxNjhd
fX0gICAgIAAAAAAAAAAAAAAAAAAAAABtHJC9w4vrvv7lTT5Vd/G9cnoPP9f9pD+yIQA/8yRQP2j1Gr/ZPx6/t63AvRxoBz8AAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AAAAAAAAAACwY4a/w4c+vuqzdz/0FRg/0QII
P6W0GT7f9I++6n2CPw==
""")
NOTES = {
    "labels": ["no", "yes"], "task": "classification", "features": 3, "columns": None, "dataset": "toy", "epochs": 1
}  # fmt: skip


def built():
    """The model of the file above."""
    model = xnn.Sequential(
        layers.Rescale([0.5, 2.0, 1.0], [0.0, -1.0, 0.25]), layers.Dense(3, 4), layers.BatchNorm(4), layers.ReLU(),
        layers.Dropout(0.25), layers.Dense(4, 2), seed=3,
    )  # fmt: skip
    model.layers[1].bias.frozen = True
    return model


def state(model):
    """Everything that a file keeps of a model."""
    host = model.backend.to_host
    arrays = [(name, host(p.value).tobytes(), p.frozen) for name, p in model.named_state()]
    return repr(model), model.seed, model.numerics, arrays


READERS = {
    "load": xnn.load,
    "load_weights": lambda path: built().load_weights(path),
    "metadata": files.metadata,
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    files.save(built(), path, NOTES)
    return path.read_bytes()


def assert_refused(path, content, readers=READERS):
    path.write_bytes(content)
    for read in readers.values():
        with pytest.raises(CorruptFileError) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_a_flipped_bit_is_refused(content, tmp_path):
    """A bit in every fourth byte. A run over all 13,056 bits of this file refused each of them."""
    for place in range(0, len(content), 4):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place // 4 % 8)
        assert_refused(tmp_path / "m.safetensors", damaged, {"metadata": files.metadata})


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_checks_the_whole_file(content, tmp_path, reader):
    length = int.from_bytes(content[:8], "little")
    for place in (0, 8, 30, content.index(b"Dropout"), length + 7, length + 8, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 4
        assert_refused(tmp_path / "m.safetensors", damaged, {reader: READERS[reader]})


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c + b"x",
        lambda c: c + bytes(8),
        lambda c: c + c,
        lambda c: c[:8] + c[8:] * 2,
        lambda c: c[:600] + c[500:],
        lambda c: c[:-100] + c[-104:-4] + c[-4:],
        lambda c: c[:-32] + bytes(32),
        lambda c: c.replace(b"file_sha256", b"FILE_SHA256"),
        lambda c: c.replace(b'\\"format\\": 2', b'\\"format\\": 1'),
    ],
    ids=[
        "a byte behind", "zeros behind", "twice", "header twice", "a piece twice", "shifted", "zeros in the weights",
        "no digest", "format of 0.1",
    ],
)  # fmt: skip
def test_other_damage_is_refused(content, tmp_path, damage):
    assert damage(content) != content
    assert_refused(tmp_path / "m.safetensors", damage(content))


def test_every_cut_is_refused(content, tmp_path):
    for length in range(0, len(content), 11):
        assert_refused(tmp_path / "m.safetensors", content[:length], {"metadata": files.metadata})


def test_a_digest_without_its_entry_is_refused(content, tmp_path):
    """Whoever removes the digest removes the format that needs none, too."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]["file_sha256"]
    text = json.dumps(header).encode()
    damaged = len(text).to_bytes(8, "little") + text + content[8 + length :]
    assert_refused(tmp_path / "m.safetensors", damaged)


def test_the_file_is_that_of_the_model(content, tmp_path):
    """What the file holds is what was saved, and the safetensors library reads its tensors."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    loaded = xnn.load(path)
    assert (*state(loaded)[:2], state(loaded)[3]) == (*state(built())[:2], state(built())[3])
    assert files.metadata(path)["notes"] == NOTES
    tensors = safetensors_load(content)
    assert tensors.keys() == dict(built().named_state()).keys()
    for name, parameter in built().named_state():
        np.testing.assert_array_equal(tensors[name], built().backend.to_host(parameter.value))


def test_tensors_of_two_widths_lie_as_the_format_wants_it(tmp_path):
    model = xnn.Sequential(layers.Dense(3, 3), layers.Dense(3, 3, dtype="float64"), seed=1)
    model.save(tmp_path / "m.safetensors")
    tensors = safetensors_load((tmp_path / "m.safetensors").read_bytes())
    assert {name: array.dtype.name for name, array in tensors.items()} == {
        "0.weight": "float32", "0.bias": "float32", "1.weight": "float64", "1.bias": "float64"
    }  # fmt: skip
    assert state(xnn.load(tmp_path / "m.safetensors"))[3] == state(model)[3]


def test_the_same_model_gives_the_same_bytes_in_another_process(content, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_model_files as t;"
        "t.files.save(t.built(), sys.argv[2], t.NOTES)"
    )
    from pathlib import Path

    path = tmp_path / "m.safetensors"
    subprocess.run([sys.executable, "-c", code, Path(__file__).parent, path], check=True, timeout=100)
    assert path.read_bytes() == content


@pytest.mark.parametrize("text", ["0" * 64, 'x"file_sha256":"' + "0" * 64 + '"', '\\"file_sha256\\":\\"'])
def test_notes_that_look_like_a_digest(tmp_path, text):
    path = tmp_path / "m.safetensors"
    files.save(built(), path, {"text": text, text: [text]})
    assert files.metadata(path)["notes"] == {"text": text, text: [text]}


@pytest.mark.parametrize("notes", [{"a": np.float32(1)}, {"a": {1, 2}}, {"a": object()}, {(1, 2): 3}])
def test_notes_that_are_no_json(tmp_path, notes):
    with pytest.raises(OptionError, match="JSON"):
        files.save(built(), tmp_path / "m.safetensors", notes)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_version_0_1_loads(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(OF_0_1)
    loaded, same = xnn.load(path), built()
    assert state(loaded)[0] == state(same)[0]
    assert state(loaded)[3] == state(same)[3]
    assert loaded.numerics == "fast"
    assert files.metadata(path)["notes"] == NOTES
    same.load_weights(path)
    loaded.save(tmp_path / "again.safetensors")
    assert state(xnn.load(tmp_path / "again.safetensors")) == state(loaded)


def test_the_weights_of_a_file_of_version_0_1_are_checked(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(OF_0_1[:-1] + bytes([OF_0_1[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match="damaged"):
        xnn.load(path)
