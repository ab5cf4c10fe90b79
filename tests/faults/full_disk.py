"""Trains on a disk that becomes full after the second epoch, and resumes: a program for a file system of its own.

Arguments: the folder of a small, empty file system, a folder elsewhere, and the epoch after which there is room
again. It prints a JSON object.
"""

import contextlib
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from campaign import command, outcome
from click.testing import CliRunner

from xnn.callbacks import checkpoints_in
from xnn.cli import main
from xnn.training.fit import Fit

__all__ = ["train_on"]

_FILES = {"--log": "run.jsonl", "--record": "record.jsonl", "--save": "model.safetensors"}
if find_spec("matplotlib"):
    _FILES["--plot"] = "curves.png"


def fill(folder):
    """Write a file until no byte more has room."""
    with open(folder / "filler", "wb", 0) as file:
        for size in (2**16, 2**10, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def line_for(elsewhere, folder):
    """The command line of a run that writes all its files into a folder."""
    line = command("sgd", elsewhere, checkpoints=False)[3:]
    line[line.index("--epochs") + 1] = "6"
    for option, name in _FILES.items():
        line += [option, str(folder / name)]
    return [*line, "--checkpoint", str(folder / "checkpoints"), "--resume", "--keep", "2", "--patience", "50"]


def said_by(line):
    """Run a command. Returns its exit code, result and the lines on standard error."""
    result = CliRunner().invoke(main, line)
    return result.exit_code, json.loads(result.stdout), result.stderr.splitlines()


def train_on(small, elsewhere, roomy_after):
    """Train on the small disk, then once more when there is room, and elsewhere. Returns what came of it."""
    end_epoch = Fit.end_epoch

    def ended(self, results):
        end_epoch(self, results)
        for watcher in self.checkpoints:
            watcher.wait()
        if results["epoch"] == 2:
            fill(small)
        if results["epoch"] == roomy_after:
            (small / "filler").unlink()

    Fit.end_epoch = ended
    code, result, said = said_by(line_for(elsewhere, small))
    Fit.end_epoch = end_epoch
    found = {"code": code, "said": said, "weights": result["weights_sha256"]}
    found["log"] = [json.loads(text)["event"] for text in (small / "run.jsonl").read_text().splitlines()]
    found["checkpoints"] = [path.name for path in checkpoints_in(small / "checkpoints")]
    found["steps"] = (small / "record.jsonl").read_text().count("\n")
    found["left"] = sorted(name for name in os.listdir(small) if name.startswith(".xnn-"))
    (small / "filler").unlink(missing_ok=True)
    again = said_by(line_for(elsewhere, small))
    (elsewhere / "whole").mkdir()
    whole = said_by(line_for(elsewhere, elsewhere / "whole"))
    found |= {"again": again[0], "again_said": again[2], "whole": whole[1]["weights_sha256"]}
    found["same"] = outcome(again[1], small) == outcome(whole[1], elsewhere / "whole")
    return found


if __name__ == "__main__":
    print(json.dumps(train_on(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
