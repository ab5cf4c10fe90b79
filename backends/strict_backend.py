"""The array-api-strict backend, for tests: it refuses everything that the Array API standard does not promise.

Its arrays are on one of the library's simulated devices. So an op that creates an array on the host, or moves an
array without being asked to, fails in a test and not only in the first run on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.base import Backend
from xnn.backends.memory import peak_resident_bytes
from xnn.errors import BackendUnavailableError

__all__ = ["StrictBackend"]


class StrictBackend(Backend):
    """NumPy's arithmetic behind a namespace that has only the functions of the Array API standard."""

    name = "array-api-strict"

    def __init__(self) -> None:
        try:
            import array_api_strict
        except ImportError as error:
            raise BackendUnavailableError(
                "array-api-strict: not installed: pip install array-api-strict (it is for tests only)"
            ) from error
        self.xp = array_api_strict
        self.device = array_api_strict.Device("device1")
        self._host = array_api_strict.Device("CPU_DEVICE")
        self._array = type(array_api_strict.ones(1))

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        wanted = None if dtype is None else getattr(self.xp, dtype)
        if isinstance(x, self._array):
            x = x.to_device(self.device)
            return x if wanted is None else self.xp.astype(x, wanted)
        return self.xp.asarray(np.asarray(x), dtype=wanted, device=self.device)

    def to_host(self, x: Any) -> np.ndarray:
        return np.array(x.to_device(self._host)) if hasattr(x, "to_device") else np.asarray(x)

    def memory(self) -> dict[str, int]:
        peak = peak_resident_bytes()
        return {"used": peak, "peak": peak, "total": 0}

    def describe(self) -> dict[str, str]:
        return {"library": f"array-api-strict {self.xp.__version__}", "device": str(self.device)}

    def probe(self) -> None:
        a = self.to_device([[1.0, 2.0], [3.0, 4.0]])
        if self.to_host(self.xp.matmul(a, a) + 1.0).tolist() != [[8.0, 11.0], [16.0, 23.0]]:
            raise BackendUnavailableError("array-api-strict: a 2x2 product came out wrong; reinstall it")
