"""Runs a Python program with the emulated GPU: `python -m cuda_emulator -m xnn train`, or with a script's name."""

from __future__ import annotations

import os
import sys

from cuda_emulator import attach

usage = f"{__doc__}\nWhat follows is given to {sys.executable}."
if len(sys.argv) < 2:
    sys.stderr.write(f"{usage}\n")
    sys.exit(2)
if sys.argv[1] in ("-h", "--help"):
    print(usage)
    sys.exit(0)
if reason := attach.obstacle():
    sys.exit(reason)
attach.attach()  # builds the libraries if they are not there yet
os.execve(sys.executable, [sys.executable, *sys.argv[1:]], attach.environment())
