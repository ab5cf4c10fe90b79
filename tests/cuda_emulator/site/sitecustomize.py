"""Attaches the emulated GPU when Python starts. It is used in processes whose PYTHONPATH begins with this folder."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[2])
sys.path.insert(0, _TESTS)
try:
    from cuda_emulator import attach

    if not attach.obstacle():
        attach.attach()
except ImportError:  # a Python without NumPy, such as that of a fresh virtual environment
    pass
finally:
    sys.path.remove(_TESTS)
