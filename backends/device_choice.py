"""Which GPU "cupy" means: that of XNN_DEVICE, else one for each process that a launcher of MPI has started here."""

from __future__ import annotations

import os

from xnn.backends.cupy_failures import import_cupy
from xnn.backends.ranks.launch import launched
from xnn.errors import BackendUnavailableError
from xnn.options import shown

__all__ = ["device_number"]


def device_number() -> int:
    """The number in XNN_DEVICE. If it is not set: of several processes, each takes the next GPU, in turn; else 0.

    Raises BackendUnavailableError if XNN_DEVICE is something else than a number.
    """
    text = os.environ.get("XNN_DEVICE", "").strip()
    if not text:
        launch = launched()
        return 0 if launch is None else launch.local % _gpu_count()
    if not (text.isascii() and text.isdecimal()):
        raise BackendUnavailableError(
            f"cupy: XNN_DEVICE={shown(text)} is not the number of a GPU: give 0 for the first one (nvidia-smi lists "
            "them)"
        )
    return int(text)


def _gpu_count() -> int:
    """How many GPUs CUDA shows to this process; 1 if it shows none: the backend then says why it cannot run."""
    try:
        return max(1, int(import_cupy().cuda.runtime.getDeviceCount()))
    except Exception:
        return 1
