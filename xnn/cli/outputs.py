"""Checks the files that a command is to write, before it begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from xnn.callbacks import Checkpoint
from xnn.errors import OptionError

__all__ = ["check_apart"]

_FOLDER = "--checkpoint"


def check_apart(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Raise OptionError if two files to be written are one file, or one of them is a file that is read.

    outputs, inputs: the option, such as "--save", and the path given with it; None if it was not given. That of
        --checkpoint is a folder. Other files may be in it if no checkpoint will have their names.

    Links are followed: two names of one file are one file.
    """
    written = [(option, path) for option, path in outputs.items() if path]
    read = [(option, path) for option, path in inputs.items() if path and os.path.exists(path)]
    for number, (option, path) in enumerate(written):
        for other, place in [*read, *written[:number]]:
            if _is_same(path, place) or (option == _FOLDER and _is_in(path, place)):
                first = "reads" if (other, place) in read else "writes"
                raise OptionError(
                    f"{option} would overwrite {place}, which {other} {first}: give each file a name of its own"
                )


def _is_in(folder: str, path: str) -> bool:
    """Whether a file is in a folder of checkpoints and has the name of one of its files."""
    name = Path(path).resolve()
    return Checkpoint.writes(name.name) and _is_same(folder, str(name.parent))


def _is_same(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.normcase(Path(one).resolve()) == os.path.normcase(Path(other).resolve())
