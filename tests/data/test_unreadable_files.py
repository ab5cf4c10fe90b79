"""Files that cannot be opened or read: the error names the file, and says that reading failed, and why."""

from __future__ import annotations

import builtins
import errno
import os
import pathlib

import pytest
from command_line import run

import xnn
from xnn import data, layers
from xnn.data.arrays import read_array, read_npz
from xnn.data.tables import read_csv
from xnn.errors import DataError, OptionError, XnnError
from xnn.layers import files
from xnn.runs import architecture
from xnn.runs.digests import read_record

READERS = {
    "load.csv": data.load,
    "load.npz": data.load,
    "read_csv.csv": read_csv,
    "read_npz.npz": read_npz,
    "read_array.npy": read_array,
    "read_idx": data.read_idx,
    "load.safetensors": xnn.load,
    "load_weights.safetensors": xnn.Sequential(layers.Dense(2, 2)).load_weights,
    "metadata.safetensors": files.metadata,
    "architecture.toml": architecture.read,
    "record.jsonl": read_record,
}


def places(folder, name):
    loop = folder / f"loop.{name}"
    loop.symlink_to(loop)
    (folder / f"folder.{name}").mkdir()
    return {
        "missing": folder / f"missing.{name}",
        "a folder": folder / f"folder.{name}",
        "no folder": folder / "nosuch" / name,
        "a name of 300 letters": folder / f"{'a' * 300}.{name}",
        "a link to itself": loop,
        "a file as a folder": pathlib.Path(__file__) / name,
    }


@pytest.mark.parametrize("name", READERS)
def test_places_that_hold_no_file(tmp_path, name):
    for path in places(tmp_path, name).values():
        for given in (path, str(path)):
            with pytest.raises((DataError, OptionError)) as caught:
                READERS[name](given)
            assert path.name[:40] in str(caught.value)
            assert "writ" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_names_with_a_nul(name, tmp_path):
    with pytest.raises(XnnError) as caught:
        READERS[name](str(tmp_path / f"a\0b.{name}"))
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", READERS)
def test_what_the_system_says_is_passed_on(tmp_path, monkeypatch, name, number):
    path = tmp_path / f"a.{name}"
    path.write_bytes(b"content")
    real = builtins.open

    def failing(file, *args, **options):
        if isinstance(file, (str, os.PathLike)) and os.fspath(file) == str(path):
            raise OSError(number, os.strerror(number), str(file))
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", failing)
    monkeypatch.setattr("io.open", failing)
    with pytest.raises(DataError, match=f"cannot read .*{os.strerror(number)}") as caught:
        READERS[name](path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    "home", ["~nobody-of-this-name/data", "a" * 300, "a\0b", "loop"], ids=["user", "long", "NUL", "loop"]
)
def test_data_homes_that_cannot_be_read(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("loop").symlink_to("loop")
    with pytest.raises(OptionError, match="data_home="):
        data.load("mnist", home)


def test_the_command_line_says_what_could_not_be_read(tmp_path):
    """Not `cannot write the output`."""
    model = tmp_path / "m.safetensors"
    xnn.Sequential(layers.Dense(2, 2)).save(model)
    for words in (
        ("predict", model, "a" * 300 + ".npy"),
        ("predict", "a" * 300, "b.npy"),
        ("train", "--dataset", "a" * 300 + ".csv"),
        ("train", "--model", "a" * 300 + ".toml"),
        ("train", "--dataset", tmp_path / "m.csv"),
    ):
        result = run(*words)
        assert result.exit_code in (2, 4)
        assert "writ" not in result.stderr
        assert "read" in result.stderr or "no file" in result.stderr
