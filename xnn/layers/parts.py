"""Runs a model on a batch in parts, where memory is short."""

from __future__ import annotations

from typing import Any

from xnn.errors import DeviceMemoryError
from xnn.layers.prediction import predicted

__all__ = ["Parts"]


class Parts:
    """Runs a model for its outputs alone; calling it with a batch returns the outputs, a list of arrays.

    model: a Sequential. kernels: the name of the backend's table of kernels; by default "auto", the fastest.

    Usually the list holds one array. Where memory is not enough for all rows at once, they go through the
    model in parts of half as many, and half again, down to one. The next batches begin with what was enough. In exact
    numerics the outputs keep their bits; in fast numerics the last bits of products depend on the number of rows.

    Raises DeviceMemoryError if there is no room for one row.
    """

    def __init__(self, model: Any, kernels: str = "auto") -> None:
        self.model, self.lib, self.kernels = model, model.backend, kernels
        self.most = 0  # rows at a time; 0 is all of the batch

    def __call__(self, x: Any) -> list[Any]:
        lib = self.lib
        n = max(1, int(x.shape[0]))  # a batch without rows gives outputs without rows
        while True:
            rows = min(self.most or n, n)
            try:
                with lib.guard():
                    return [self._run(x[start : start + rows, ...]) for start in range(0, n, rows)]
            except DeviceMemoryError as error:
                if rows == 1:
                    raise lib.without_room(error, "one sample") from error.__cause__
            self.most = rows // 2  # here, where the error and the arrays that it holds are gone

    def together(self, x: Any) -> Any:
        """The outputs for a batch as one array."""
        outputs = self(x)
        return outputs[0] if len(outputs) == 1 else self.lib.xp.concat(outputs)

    def _run(self, x: Any) -> Any:
        x = self.lib.to_device(x)
        y = predicted(self.model, x, self.kernels)
        return self.model.run(x, training=False) if y is None else y
