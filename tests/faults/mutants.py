"""Mutated checkpoints: each is refused in one line, or what comes of it is right.

    python tests/faults/mutants.py 1000

makes so many, seven of ten of them damaged and three changed and signed anew, and prints what came of them. The
process may have 256 MB of addresses more than before the first one.
"""

import hashlib
import json
import random
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import XnnError
from xnn.layers.files import weights_sha256

__all__ = ["ODD", "WANTED", "campaign", "check", "fit", "resigned", "trainer_of"]

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


def check(path, content, signature_fits):
    """Resume from these bytes. Returns what came of it, in words; "refused" is an error of xnn in one line.

    signature_fits: whether the bytes have the digest that fits them, so that they may say what they like.
    """
    path.write_bytes(content)
    trainer = trainer_of()
    before = weights_sha256(trainer.model), trainer.optimizer.steps
    try:
        trainer.resume(path)
    except XnnError as error:
        said, after = str(error), (weights_sha256(trainer.model), trainer.optimizer.steps)
    else:
        said, after = "", before
    assert after == before or not said
    assert "\n" not in said
    if said:
        return "refused"
    try:
        found = fit(trainer)
    except XnnError:
        return "refused"
    except Exception:
        return "ended by an error"
    assert signature_fits or found == WANTED
    return "the right run" if found == WANTED else "another run"


def damaged(content, chance, number):
    """The bytes with a flipped bit, cut short, with other bytes in them, or with another length of the header."""
    mutant = bytearray(content)
    at = chance.randrange(len(mutant))
    if number % 4 == 0:
        mutant[at] ^= 1 << chance.randrange(8)
    elif number % 4 == 1:
        del mutant[at:]
    elif number % 4 == 2:
        mutant[at : at + 40] = chance.randbytes(chance.randrange(80))
    else:
        length = chance.choice([0, 7, 2**62, 2**32, len(mutant), chance.randrange(2**20)])
        mutant[:8] = length.to_bytes(8, "little")
    return bytes(mutant)


def changed(content, chance, number):
    """The file with an odd value in its description, or without one of its values, and signed anew."""
    size = int.from_bytes(content[:8], "little")
    about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["xnn_checkpoint"])
    place = chance.choice(sorted(leaves(about), key=str))

    def change(head, about):
        holder = about
        for key in place[:-1]:
            holder = holder[key]
        if number % 5:
            holder[place[-1]] = ODD[number % len(ODD)]
        else:
            del holder[place[-1]]

    return resigned(content, change)


def campaign(content, path, damages, changes, seed=0):
    """What comes of so many damaged files and so many that are changed and signed anew, one after the other."""
    chance = random.Random(seed)
    yield check(path, content, False)
    for number in range(damages):
        mutant = damaged(content, chance, number)
        yield check(path, mutant, mutant == content)
    for number in range(changes):
        yield check(path, changed(content, chance, number), True)


def memory(name):
    """A number of kilobytes in /proc/self/status, such as VmHWM, the most that was in memory."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main(number):
    """Make so many mutants and print what came of them, and the memory that the worst of them took."""
    import resource  # which Windows does not have

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(callbacks.Checkpoint(folder, every="4steps"))
        fit(trainer, epochs=4)
        content = callbacks.checkpoints_in(Path(folder))[0].read_bytes()
        path, found, most = Path(folder, "mutant"), Counter(), 0
        path = path.with_suffix(".safetensors")
        [*campaign(content, path, 4, 15)]  # what is imported takes memory too
        addresses = memory("VmSize") * 1024 + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        outcomes = campaign(content, path, number * 7 // 10, number - number * 7 // 10, seed=1)
        for _ in range(number + 1):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            before = memory("VmRSS")
            found[next(outcomes)] += 1
            most = max(most, memory("VmHWM") - before)
    found["the right run"] -= 1  # of the file as it was written
    told = ", ".join(f"{many:,} {what}" for what, many in found.most_common())
    print(f"{number:,} mutated checkpoints: {told}; {most:,} kB of memory at most")
    assert not found["ended by an error"]


if __name__ == "__main__":
    main(int(sys.argv[1]))
