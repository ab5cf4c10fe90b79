"""Runs a program in a mount namespace of its own, in which a folder is a small file system in memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["on_small_disk"]


def on_small_disk(folder, size, program, *words):
    """Run a Python program whose first argument is a folder that is a disk of this size, such as "1m".

    Returns what it printed. Skips the test where this user may not mount.
    """
    mount = f'mount -t tmpfs -o size={size} none {folder} && exec "$@"'
    words = [sys.executable, str(program), str(folder), *map(str, words)]
    unshare = [
        "unshare",
        "--mount",
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        "sh",
        "-c",
        mount,
        "sh",
    ]
    paths = [str(Path(program).parent), str(Path(program).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            [*unshare, *words], capture_output=True, text=True, timeout=120, check=False, env=environment
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"this user may not mount: {done.stderr.strip()[:80]}")
    assert done.returncode == 0, done.stderr
    return done.stdout
