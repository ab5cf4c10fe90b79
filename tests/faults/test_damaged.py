"""Damaged, hostile and foreign checkpoints: each is refused in one line, and the one before it is used."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import stat

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import CorruptFileError, OptionError, XnnError
from xnn.layers.files import weights_sha256

X = np.linspace(-1, 1, 120, dtype=np.float32).reshape(40, 3)
Y = X[:, :1] * X[:, 1:2]


def trainer_of(*watchers):
    model = xnn.Sequential(layers.Dense(3, 6), layers.BatchNorm(6), layers.ReLU(), layers.Dense(6, 1), seed=0)
    own = [callbacks.EarlyStopping("loss", patience=50), *watchers]
    return xnn.Trainer(model, losses.MSE(), optimizers.Adam(0.01), callbacks=own)


def fit(trainer, epochs=6):
    history = trainer.fit((X, Y), epochs=epochs, batch_size=16, progress=False)
    return weights_sha256(trainer.model), history.losses_sha256


WANTED = fit(trainer_of())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with checkpoints of a run that was not finished, and the bytes of the last one."""
    folder = tmp_path_factory.mktemp("good") / "checkpoints"
    trainer = trainer_of(callbacks.Checkpoint(folder, every="4steps"))
    fit(trainer, epochs=4)
    return folder, callbacks.checkpoints_in(folder)[0].read_bytes()


def signed(content):
    """The bytes with a digest that fits them, as someone makes it who means harm."""
    place = re.search(rb'(?<="file_sha256":")[0-9a-f]{64}(?=")', content)
    if place is None:
        return content
    empty = content[: place.start()] + b"0" * 64 + content[place.end() :]
    return content[: place.start()] + hashlib.sha256(empty).hexdigest().encode() + content[place.end() :]


def resigned(content, change):
    """The file with its description changed, and signed again."""
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    about = json.loads(head["__metadata__"]["xnn_checkpoint"])
    change(head, about)
    head["__metadata__"]["xnn_checkpoint"] = json.dumps(about)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return signed(len(text).to_bytes(8, "little") + text + content[8 + size :])


def leaves(value, path=()):
    """The path of each value in a JSON description."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


ODD = (
    None, -1, 2**70, 1.5, "x", [], {}, [[]], {"$array": "nothing", "device": False}, {"$code": "class os"}, True,
    {"$object": "Trainer", "vars": {"__class__": 1}}, {"$same": "model"}, {"$state": []}, float("nan"),
)  # fmt: skip


def check(path, content, signature_fits, in_fit=False):
    """Resume from these bytes. Returns whether they were refused; if not, the run must be the right one."""
    path.write_bytes(content)
    trainer = trainer_of()
    before = weights_sha256(trainer.model), trainer.optimizer.steps
    try:
        trainer.resume(path)
    except XnnError as error:
        lines, after = str(error).splitlines(), (weights_sha256(trainer.model), trainer.optimizer.steps)
    else:
        lines, after = [], before
    assert after == before
    if lines:
        assert len(lines) == 1
        return True
    try:
        found = fit(trainer)
    except XnnError:
        return True
    except Exception:
        if not signature_fits or in_fit:
            raise
        return True
    assert signature_fits or found == WANTED
    return False


def test_damaged_bytes_are_refused_or_the_run_is_right(good, tmp_path):
    chance, content, refused = random.Random(0), good[1], 0
    path = tmp_path / "damaged.safetensors"
    assert not check(path, content, False)
    for number in range(700):
        damaged = bytearray(content)
        kind = number % 4
        at = chance.randrange(len(damaged))
        if kind == 0:
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del damaged[at:]
        elif kind == 2:
            damaged[at : at + 40] = chance.randbytes(chance.randrange(80))
        else:
            damaged[:8] = chance.choice([0, 7, 2**62, 2**32, len(damaged), chance.randrange(2**20)]).to_bytes(
                8, "little"
            )
        refused += check(path, bytes(damaged), bytes(damaged) == content)
    assert refused >= 690


def test_hostile_descriptions_never_crash(good, tmp_path):
    """Signed as if they were whole: they are refused in one line, or what they say is data and not code."""
    chance, content = random.Random(1), good[1]
    path = tmp_path / "hostile.safetensors"
    size = int.from_bytes(content[:8], "little")
    about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["xnn_checkpoint"])
    places = sorted(leaves(about), key=str)
    for number in range(300):
        place, odd = chance.choice(places), ODD[number % len(ODD)]

        def change(head, about, place=place, odd=odd, number=number):
            holder = about
            for key in place[:-1]:
                holder = holder[key]
            if number % 5:
                holder[place[-1]] = odd
            else:
                del holder[place[-1]]

        check(path, resigned(content, change), True, place[0] == "fit")


@pytest.mark.parametrize("odd", [[], 5, {}, [{"$ref": "layers.1"}]], ids=str)
def test_a_model_without_its_layers_is_refused(odd, good, tmp_path):
    def change(head, about):
        (model,) = [part for part in about["state"].values() if "layers" in part]
        model["layers"] = odd

    assert check(tmp_path / "hostile.safetensors", resigned(good[1], change), True)


@pytest.mark.parametrize("folded", [2**70, -64, 63])
def test_a_digest_of_an_impossible_length_is_refused(folded, good, tmp_path):
    def change(head, about):
        about["fit"]["history"]["digest"]["folded"] = folded

    assert check(tmp_path / "hostile.safetensors", resigned(good[1], change), True, True)


def test_a_newer_version_is_named(good, tmp_path):
    path = tmp_path / "newer.safetensors"
    path.write_bytes(resigned(good[1], lambda head, about: about.update(format=7)))
    with pytest.raises(CorruptFileError, match=r"has the format 7, this xnn reads 1: update xnn"):
        trainer_of().resume(path)


def test_the_checkpoint_before_a_damaged_one_is_used_and_the_run_is_the_run(good, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(good[0], folder)
    newest, second, *_ = callbacks.checkpoints_in(folder)
    newest.write_bytes(newest.read_bytes()[:-9])
    for _ in range(2):
        trainer = trainer_of(callbacks.Checkpoint(folder, every="4steps", keep=9))
        found = trainer.resume(folder)
        said = capsys.readouterr().err
    assert found == second
    assert said.count("\n") == 1
    assert f"{newest} is not" in said or f"{newest} does not match" in said
    assert f"{second.name} is used" in said
    assert fit(trainer) == WANTED
    assert newest.with_name(f"{newest.name}.old").exists()


@pytest.mark.parametrize("keep", [1, 3])
def test_files_that_were_given_up_go_when_there_are_as_many_new_ones(keep, good, tmp_path):
    """A training that went back to an older checkpoint renames the later ones."""
    folder, there = tmp_path / "checkpoints", []
    shutil.copytree(good[0], folder)
    given_up = [f"{path.name}.old" for path in callbacks.checkpoints_in(folder) if "step" in path.name]
    oldest = shutil.copy(folder / given_up[-1].removesuffix(".old"), tmp_path / "back.safetensors")
    assert len(given_up) == 3

    class Look(callbacks.Callback):
        bystander = True

        def on_step(self, history, epoch, step, loss):
            saver.wait()
            there.append(len([name for name in given_up if (folder / name).exists()]))

    saver = callbacks.Checkpoint(folder, every="1steps", keep=keep)
    trainer = trainer_of(saver, Look())
    trainer.resume(oldest)
    assert fit(trainer) == WANTED
    assert there[: keep + 2] == [2] * keep + [0, 0]  # the oldest one is not later than the training


def test_where_all_are_damaged_nothing_is_begun_afresh(good, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(good[0], folder)
    for path in callbacks.checkpoints_in(folder):
        path.write_bytes(b"")
    with pytest.raises(
        CorruptFileError, match=r"no checkpoint in .* can be read: remove them to begin afresh"
    ):
        trainer_of().resume(folder)
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_an_empty_folder_begins_afresh(tmp_path):
    trainer = trainer_of(callbacks.Checkpoint(tmp_path / "new"))
    assert trainer.resume(tmp_path / "new") is None
    assert trainer.resume(tmp_path / "none") is None
    assert fit(trainer) == WANTED


def test_a_folder_with_later_checkpoints_is_not_overwritten(good, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(good[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        OptionError, match=r"holds step-000000012\.safetensors, later than this training's step 0"
    ):
        fit(trainer_of(callbacks.Checkpoint(folder)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_ones_and_the_best_are_kept(keep, tmp_path):
    class Worsens(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            if entry["epoch"] == 4:
                self.model[3].weight.value = self.model[3].weight.value * 50.0

    fit(trainer_of(Worsens(), callbacks.Checkpoint(tmp_path, keep=keep)))
    steps = [f"step-{3 * epoch:09d}.safetensors" for epoch in range(7 - keep, 7)]
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "lock", *steps]
    best = trainer_of(Worsens())
    best.resume(tmp_path / "best.safetensors")
    assert best.epoch == 4


#: A call that fails on the way of a checkpoint to the disk, and the error.
FAILS = {
    "full": ("fsync", errno.ENOSPC),
    "over its quota": ("fsync", errno.EDQUOT),
    "broken": ("fsync", errno.EIO),
    "read-only": ("open", errno.EROFS),
    "forbidden": ("open", errno.EACCES),
    "busy": ("replace", errno.EBUSY),
}


class Breaks(callbacks.Callback):
    """Makes a folder unwritable, or removes it, after the second epoch, and mends it after the fourth."""

    bystander = True

    def __init__(self, folder, how):
        self.folder, self.how = folder, how

    def on_epoch_end(self, history, entry):
        self.checkpoint.wait()
        broken, mended = entry["epoch"] == 2, entry["epoch"] == 4
        if self.how == "removed":
            shutil.rmtree(self.folder) if broken else self.folder.mkdir(exist_ok=True) if mended else None
            return
        name, number = FAILS[self.how]
        if broken:
            self.before = getattr(os, name)

            def fails(first, *others, **options):
                path = getattr(first, "name", "") if name != "fsync" else ".xnn-"
                if path.startswith(".xnn-") and (name != "fsync" or stat.S_ISREG(os.fstat(first).st_mode)):
                    raise OSError(number, os.strerror(number))
                return self.before(first, *others, **options)

            setattr(os, name, fails)
        elif mended:
            setattr(os, name, self.before)


@pytest.mark.parametrize("how", ["removed", *FAILS])
def test_training_goes_on_where_checkpoints_cannot_be_written(how, tmp_path, capsys, monkeypatch):
    for name in ("fsync", "open", "replace"):
        monkeypatch.setattr(os, name, getattr(os, name))  # put back at the end
    why = os.strerror(errno.ENOENT if how == "removed" else FAILS[how][1])
    folder = tmp_path / "checkpoints"
    breaks = Breaks(folder, how)
    breaks.checkpoint = callbacks.Checkpoint(folder, keep=2)
    trainer = trainer_of(breaks, breaks.checkpoint)
    assert fit(trainer) == WANTED
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(why in line and "training goes on" in line for line in said)
    assert (
        "there is no other one" in said[0]
        if how == "removed"
        else "step-000000003.safetensors, stays" in said[0]
    )
    assert not [path for path in folder.iterdir() if path.name.startswith(".xnn-")]
    again = trainer_of()
    again.resume(folder)
    assert fit(again) == WANTED


def test_two_trainings_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    first = callbacks.Checkpoint(tmp_path)
    first.open(0, resumed=False)
    with pytest.raises(OptionError, match="another training writes checkpoints into"):
        fit(trainer_of(callbacks.Checkpoint(tmp_path)))
    first.close()
    assert fit(trainer_of(callbacks.Checkpoint(tmp_path))) == WANTED


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match="no permission; choose another folder"):
        callbacks.Checkpoint(tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": "5"}, "every must be such as '1epoch', '500steps' or '10min', got '5'"),
        ({"every": "0steps"}, "every must be"),
        ({"every": 5}, "every must be"),
        ({"keep": 0}, "keep must be a positive integer"),
    ],
)
def test_options_are_checked(options, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        callbacks.Checkpoint(tmp_path, **options)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file is a file; choose another folder"):
        callbacks.Checkpoint(tmp_path / "file")
