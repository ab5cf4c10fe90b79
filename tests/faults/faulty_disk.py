"""Runs `xnn train` on a disk that is slow, or that refuses files at random.

    python tests/faults/faulty_disk.py slow|failing SEED train ...

slow: files are written in halves, and waited for before and after each half, so that a signal comes in the middle.
failing: half of all checkpoints cannot be written, each for a reason of its own.
"""

import errno
import os
import random
import sys
import time

import xnn.callbacks.line_file
import xnn.files
from xnn.cli import main

__all__ = ["make_failing", "make_slow"]

_PAUSE = 0.05  # seconds


def make_slow(chance):
    """Let every write, flush and renaming take long."""
    real_open, fsync, replace, write = open, os.fsync, os.replace, os.write

    def slow_open(*arguments, **options):
        file = real_open(*arguments, **options)
        if "w" not in file.mode:
            return file
        whole = file.write

        class Halves:
            def write(self, content):
                for half in (content[: len(content) // 2], content[len(content) // 2 :]):
                    whole(half)
                    file.flush()
                    time.sleep(_PAUSE * chance.random())

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

        return Halves()

    def slowly(function):
        def slow(*arguments, **options):
            time.sleep(_PAUSE * chance.random())
            result = function(*arguments, **options)
            time.sleep(_PAUSE * chance.random())
            return result

        return slow

    def in_halves(descriptor, content):
        if chance.random() < 0.05:
            content = content[: max(1, len(content) // 2)]
            time.sleep(_PAUSE * chance.random())
        return write(descriptor, content)

    xnn.files.open = slow_open
    os.fsync, os.replace, os.write = slowly(fsync), slowly(replace), in_halves


def make_failing(chance):
    """Let half of all checkpoints fail."""
    numbers = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES]
    for name in ("fsync", "replace", "link"):
        own = getattr(os, name)

        def fails(*arguments, own=own, **options):
            if chance.random() < 0.2:
                number = chance.choice(numbers)
                raise OSError(number, os.strerror(number))
            return own(*arguments, **options)

        setattr(os, name, fails)


if __name__ == "__main__":
    how, seed, *words = sys.argv[1:]
    {"slow": make_slow, "failing": make_failing}[how](random.Random(seed))
    main(words, prog_name="xnn")
