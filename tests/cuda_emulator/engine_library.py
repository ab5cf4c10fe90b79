"""The engine as a loaded library, and the settings with which it runs kernels."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

from cuda_emulator import build

__all__ = ["Settings", "engine"]

ORDERS = ("forward", "backward", "random")


@functools.cache
def engine() -> ctypes.CDLL:
    """The engine, loaded so that kernels find its functions."""
    library = ctypes.CDLL(str(build.engine()), mode=ctypes.RTLD_GLOBAL)
    library.emu_error.restype = ctypes.c_char_p
    return library


@dataclass(frozen=True)
class Settings:
    """How kernels run.

    order: of threads and blocks: "forward", "backward" or "random". Default "forward".
    seed: of the random order.
    poison: whether shared memory begins as NaN. Default True.
    bounds: whether checked kernels may touch only known buffers. Default False; `Module(check=True)` sets it.
    """

    order: str = "forward"
    seed: int = 1
    poison: bool = True
    bounds: bool = False

    def apply(self) -> None:
        engine().emu_options(
            ORDERS.index(self.order), ctypes.c_ulonglong(self.seed), self.poison, self.bounds
        )
