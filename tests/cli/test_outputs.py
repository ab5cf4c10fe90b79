"""Files that commands write: checked beforehand, never over another file, and never lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.cli.outputs import check_apart
from xnn.errors import DataError, OptionError
from xnn.files import check_writable, write_atomically
from xnn.history import History

# NumPy's kernels, since Numba takes longer to import than all the rest.
TRAIN = ("--hidden", "8", "--epochs", 1, "--batch-size", 50, "--kernels", "numpy")
# Each option of xnn train that names a file to write, with a name that it takes.
OUTPUTS = {"--save": "m.safetensors", "--record": "r.jsonl", "--log": "l.jsonl"}
if find_spec("matplotlib"):
    OUTPUTS["--plot"] = "c.png"


@pytest.fixture(autouse=True)
def spare(tmp_path_factory, monkeypatch):
    """The folder for temporary files during this test."""
    place = tmp_path_factory.mktemp("spare")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def untrained(monkeypatch):
    """Training fails the test."""
    monkeypatch.setattr("xnn.training.Trainer.fit", lambda *args, **options: pytest.fail("trained"))


# Checked beforehand.


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize(
    "kind", ["no folder", "a folder", "a name that is too long", "NUL", "a loop of links"]
)
def test_a_place_that_cannot_be_written_is_refused_before_training(digits, tmp_path, untrained, option, kind):
    path = tmp_path / OUTPUTS[option]
    if kind == "a folder":
        path.mkdir()
    elif kind == "no folder":
        path = tmp_path / "no" / path.name
    elif kind == "a loop of links":
        path.symlink_to(path)
    else:
        path = path.with_name(("n" * 260 if "long" in kind else "a\0b") + path.name)
    before = sorted(tmp_path.rglob("*"))
    refused(run("train", "--dataset", digits, *TRAIN, option, path), 2, "cannot write")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_folder_that_takes_no_file_is_refused_before_training(
    digits, tmp_path, untrained, monkeypatch, option
):
    """Also where the permissions say that it does, as for root on a read-only file system: a file is really made."""
    right = os.open

    def refuse(path, flags, *mode, **options):
        if flags & os.O_CREAT and Path(path).parent == tmp_path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return right(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    refused(run("train", "--dataset", digits, *TRAIN, option, tmp_path / OUTPUTS[option]), 5, "Read-only")


def test_a_file_that_is_a_mount_is_refused_before_training(tmp_path):
    """A new file cannot replace it: as with a container's --volume FILE:FILE."""
    path = tmp_path / "m.safetensors"
    path.touch()
    mounted = f"mount --bind {path} {path} && python=$0 && exec $python -c"
    program = "from xnn.files import check_writable as check\n"
    program += f"try: check({str(path)!r})\nexcept ValueError as error: print(error)"
    words = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        f'{mounted} "$1"',
        os.sys.executable,
        program,
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this user may not mount")
    assert "a mount of its own" in done.stdout, done.stderr
    assert check_writable(path) == path


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_name_of_250_characters(digits, tmp_path, option):
    path = tmp_path / ("n" * (250 - len(OUTPUTS[option])) + OUTPUTS[option])
    result = run("train", "--dataset", digits, *TRAIN, option, path)
    assert (result.exit_code, path.stat().st_size > 0) == (0, True)
    assert list(tmp_path.iterdir()) == [path]


# One file for one purpose.


@pytest.mark.parametrize("link", ["same name", "other name", "symbolic link", "hard link"])
@pytest.mark.parametrize("first", OUTPUTS)
@pytest.mark.parametrize("second", [*OUTPUTS, "--dataset", "--model"])
def test_no_output_is_another_file_of_the_run(tmp_path, first, second, link):
    """All pairs of options; two names of one file are one file."""
    one = tmp_path / "one"
    names = {"same name": one, "other name": tmp_path / "." / "sub" / ".." / "one"}
    (tmp_path / "sub").mkdir()
    other = names.get(link, tmp_path / "other")
    if link.endswith("link"):
        one.write_bytes(b"x")
        (other.symlink_to if link == "symbolic link" else other.hardlink_to)(one)
    reads = second in ("--dataset", "--model")
    one.write_bytes(b"x")
    outputs = {first: str(one), **({} if reads or first == second else {second: str(other)})}
    check_apart({first: str(one)}, {"--dataset": "mnist", "--model": None})
    if first != second:
        with pytest.raises(OptionError, match=f"would overwrite .*{second if reads else '--'}"):
            check_apart(outputs, {second: str(other)} if reads else {})


@pytest.mark.parametrize("option", ["--log", "--record"])
@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x00\x01", b'{"a": 1}', b"{"])
def test_a_file_that_is_no_log_or_record_is_not_overwritten(digits, tmp_path, untrained, option, content):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    if content == b"{":  # cut short by a full disk: a log that may be written again
        assert check_writable(path, begins='{"event"') == path
        return
    refused(run("train", "--dataset", digits, *TRAIN, option, path), 2, "with other content")
    assert path.read_bytes() == content


def test_the_data_are_not_overwritten_by_the_log(folder, tmp_path, untrained):
    """Through a link of another name too."""
    link = tmp_path / "log.jsonl"
    link.symlink_to(folder / "two.csv")
    before = (folder / "two.csv").read_bytes()
    for path in (folder / "two.csv", link):
        refused(run("train", "--dataset", folder / "two.csv", *TRAIN, "--log", path), 2, "would overwrite")
    assert (folder / "two.csv").read_bytes() == before


@pytest.mark.parametrize("option", OUTPUTS)
def test_an_older_file_of_the_same_kind_is_replaced(digits, tmp_path, option):
    path = tmp_path / OUTPUTS[option]
    for _ in range(2):
        assert run("train", "--dataset", digits, *TRAIN, option, path, "--quiet").exit_code == 0
    assert list(tmp_path.iterdir()) == [path]
    if option == "--log":
        assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
            "start",
            "epoch",
            "end",
        ]


def test_bench_overwrites_no_other_file(tmp_path):
    for name, content in (("data.csv", "1,2\n"), ("results.json", '{"environment": {}}')):
        path = tmp_path / name
        path.write_text(content)
        words = ("--json", path) if name == "data.csv" else ("--json", path, "--compare", path)
        assert run("bench", *words).exit_code == 2
        assert path.read_text() == content


def small_training(path, watcher=None):
    x = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(64, 1)
    watchers = [callbacks.JsonLines(path), *([watcher] if watcher else [])]
    model = xnn.Sequential(layers.Dense(1, 1), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), callbacks=watchers)
    return trainer.fit((x, x), epochs=2, progress=False)


def test_two_runs_do_not_write_one_log(tmp_path):
    """The second one is refused as long as the first trains, and the first log stays whole."""
    pytest.importorskip("fcntl")
    path, refusals = tmp_path / "log.jsonl", []

    class Another(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            with pytest.raises(OptionError, match="another run is writing it") as caught:
                small_training(path)
            refusals.append(caught)

    small_training(path, Another())
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert (len(refusals), events) == (2, ["start", "epoch", "epoch", "end"])
    small_training(path)  # and now it is free


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has these files")
@pytest.mark.parametrize("log", ["/dev/stdout", "pipe"])
def test_a_log_may_go_to_a_pipe(digits, tmp_path, log):
    """As in `xnn train --log /dev/stdout | program`."""
    words = [
        os.sys.executable,
        "-m",
        "xnn",
        "train",
        "--dataset",
        digits,
        *map(str, TRAIN),
        "--quiet",
        "--log",
    ]
    if log == "/dev/stdout":
        done = subprocess.run([*words, log], capture_output=True, text=True, timeout=60, check=True)
        lines = done.stdout.splitlines()
    else:
        os.mkfifo(tmp_path / "pipe")
        with subprocess.Popen([*words, tmp_path / "pipe"]) as process:
            lines = (tmp_path / "pipe").read_text().splitlines()
            assert process.wait(60) == 0
    assert [json.loads(line)["event"] for line in lines] == ["start", "epoch", "end"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_leads_to_the_file(digits, tmp_path, there):
    """Also one whose file is not there yet."""
    link, file = tmp_path / "link.safetensors", tmp_path / "sub" / "m.safetensors"
    file.parent.mkdir()
    link.symlink_to(file)
    if there:
        file.touch()
    assert run("train", "--dataset", digits, *TRAIN, "--save", link, "--quiet").exit_code == 0
    assert link.is_symlink()
    assert xnn.load(file).layers


# Saved all the same.


def test_content_that_cannot_be_written_is_saved_where_the_error_says(tmp_path, spare, monkeypatch):
    (tmp_path / "old.bin").write_bytes(b"old")
    right = os.replace

    def refuse(source, target):
        if Path(target).parent == tmp_path:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        right(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        DataError, match="busy; what was there before is untouched; it was saved as"
    ) as caught:
        write_atomically(tmp_path / "old.bin", b"new")
    (kept,) = spare.rglob("*.bin")
    assert str(caught.value).endswith(f"saved as {kept} instead")
    assert kept.read_bytes() == b"new"
    assert kept.parent.stat().st_mode & 0o077 == 0
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("name", ["no/m.safetensors", "n" * 300 + ".safetensors"])
def test_a_model_saved_in_python_to_a_wrong_place_is_not_lost(tmp_path, spare, name):
    model = xnn.Sequential(layers.Dense(3, 2), seed=1)
    with pytest.raises(OptionError, match="it was saved as"):
        model.save(tmp_path / name)
    (kept,) = spare.rglob("*.safetensors")
    np.testing.assert_array_equal(xnn.load(kept).layers[0].weight.value, model.layers[0].weight.value)


@pytest.mark.parametrize("name", ["m", "m.pt", "safetensors", ".safetensors", "m.npy.", "."])
@pytest.mark.parametrize("write", ["model", "plot"])
def test_a_name_with_another_ending_is_refused_before_anything_is_written(tmp_path, spare, write, name):
    if write == "plot":
        pytest.importorskip("matplotlib")
    model = xnn.Sequential(layers.Dense(3, 2), seed=1)
    with pytest.raises(OptionError, match=r"its name must end in .*(safetensors|svg)$"):
        (model.save if write == "model" else History().plot)(tmp_path / name)
    assert [*tmp_path.iterdir(), *spare.iterdir()] == []


def test_the_tests_have_a_folder_for_temporary_files_of_their_own(tmp_path_factory):
    """What is saved elsewhere by a test, also in another process, goes when pytest's own folders do."""
    base = tmp_path_factory.getbasetemp()
    assert base in Path(os.environ["TMPDIR"]).parents
    code = "import tempfile; print(tempfile.gettempdir())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert base in Path(told.stdout.strip()).parents


@pytest.mark.sampled(8)
@pytest.mark.parametrize("option", [option for option in OUTPUTS if option != "--log"])
def test_a_folder_that_goes_while_training(digits, tmp_path, spare, monkeypatch, option):
    """The file is saved elsewhere, the results and all other files are there, and the exit code is 5."""
    folder = tmp_path / "folder"
    folder.mkdir()
    others = {o: tmp_path / name for o, name in OUTPUTS.items() if o not in (option, "--log")}
    monkeypatch.setattr(callbacks.EarlyStopping, "on_fit_end", lambda self, history: shutil.rmtree(folder))
    words = [word for pair in others.items() for word in pair]
    path = folder / OUTPUTS[option]
    result = run("train", "--dataset", digits, *TRAIN, "--patience", 9, option, path, *words, "--json")
    assert (result.exit_code, json.loads(result.stdout)["epochs"]) == (5, 1)
    assert all(other.exists() for other in others.values())
    (kept,) = (file for file in spare.rglob("*") if file.is_file())
    assert kept.suffix == path.suffix
    assert f"there is no folder {folder}; make it first; it was saved as {kept} instead" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_a_file_that_cannot_be_written_is_named_although_the_results_cannot_be_printed(
    digits, tmp_path, spare
):
    """Both the disk and standard output are full."""
    program = (
        "import os, sys, xnn.files\n"
        "def refuse(path, content): raise OSError(28, 'No space left on device')\n"
        "xnn.files.replace_file = refuse\n"
        "from xnn.cli import main\n"
        "main(sys.argv[1:])"
    )
    words = ["train", "--dataset", digits, *map(str, TRAIN), "--save", tmp_path / "m.safetensors"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [os.sys.executable, "-c", program, *words],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert f"cannot write {tmp_path / 'm.safetensors'}: No space left on device" in done.stderr


def test_any_error_while_training_leaves_the_model(digits, tmp_path, monkeypatch):
    """Not only a divergence."""
    path = tmp_path / "m.safetensors"

    def broken(self, history, entry):
        raise MemoryError("Unable to allocate 57.0 TiB")

    monkeypatch.setattr(callbacks.EpochLines, "on_epoch_end", broken)
    result = run("train", "--dataset", digits, *TRAIN, "--save", path)
    assert result.exit_code == 6
    assert f"{path} holds the model as it was before that" in result.stderr
    assert "57.0 TiB" in result.stderr
    assert xnn.load(path).layers


# Permissions.


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask of this kind")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("old", [None, 0o600, 0o664])
def test_permissions_without_touching_the_umask(tmp_path, monkeypatch, mask, old):
    """A new file has those of open(); one that is replaced keeps its own."""
    before, right = os.umask(mask), os.umask
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
        path = tmp_path / "f"
        if old is not None:
            path.touch()
            path.chmod(old)
        (tmp_path / "plain").touch()
        write_atomically(path, b"x")
        expected = (tmp_path / "plain").stat().st_mode & 0o777 if old is None else old
        assert path.stat().st_mode & 0o777 == expected
    finally:
        right(before)


def test_no_file_changes_the_umask():
    root = Path(xnn.__file__).parents[1]
    files = [file for part in ("xnn", "backends", "benchmarks") for file in (root / part).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if "umask(" in file.read_text(encoding="utf-8")] == []
