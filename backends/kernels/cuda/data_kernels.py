"""Kernels for what comes into a step: the batch's rows of the data, and dropout's masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import (
    MOST_BLOCKS,
    THREADS,
    TYPES,
    Launch,
    by_element,
    compiled,
    cupy,
    structure,
)
from xnn.backends.random import Mask, mask_threshold

__all__ = [
    "Gather", "copies", "drawn_from", "dropout", "dropout_backward", "gather", "keep_mask", "rescale",
    "serves_dropout", "serves_gather", "serves_mask",
]  # fmt: skip

_PLAIN, _IN_REAL, _IN_DOUBLE = 0, 1, 2
_SIDES = 3


def serves_gather(call: Call) -> bool:
    """Whether the batch is floating-point, or a copy of the data's rows in words of 4 bytes."""
    source, target = call.options["source"], call.writes[0]
    if target is None or str(source.dtype) not in TYPES or not source.size:
        return False
    if tuple(target.shape[1:]) != source.shape[1:]:  # numbers of a Rescale may make a sample wider
        return False
    known = set(call.options) <= {"source", "cursor", "scale", "offset", "shift"}
    return known and (np.dtype(target.dtype).name in ("float32", "float64") or copies(call))


def copies(call: Call) -> bool:
    """Whether the rows are copied as they are, and consist of words of 4 bytes."""
    source, target = call.options["source"], call.writes[0]
    assert target is not None
    words = math.prod(source.shape[1:]) * source.dtype.itemsize % 4 == 0
    return not {"scale", "offset", "shift"} & set(call.options) and source.dtype == target.dtype and words


@dataclass(eq=False)
class Gather:
    """Copies the rows of a batch, and those of up to three other arrays whose rows are copied as they are."""

    call: Call
    feed: DeviceFeed
    sides: list[Gather] = field(default_factory=list)

    @property
    def copies(self) -> bool:
        return copies(self.call)

    @property
    def streamed(self) -> bool:
        """Whether only the rows of the chunk are on the GPU."""
        return self.feed.data.streams(self.call.options["source"])

    def join(self, other: Gather) -> Gather | None:
        """This gather and another one as one launch, or None if they cannot be."""
        main, side = (self, other) if other.copies else (other, self)
        if self.streamed != other.streamed:
            return None
        if not side.copies or side.sides or self.call.options["cursor"] is not other.call.options["cursor"]:
            return None
        if len(main.sides) + 1 + main.copies > _SIDES:
            return None
        main.sides.append(side)
        return main

    def side(self) -> Any:
        """The kernel's structure for rows that are copied as they are."""
        source, target = self.feed.data.there(self.call.options["source"]), self.call.writes[0]
        assert target is not None
        words = math.prod(source.shape[1:]) * source.dtype.itemsize // 4
        return structure("Side", source=source, to=target.array, words=words)

    def build(self) -> list[Runnable]:
        source, batch = self.feed.data.there(self.call.options["source"]), self.call.writes[0]
        assert batch is not None
        n, width = batch.shape[0], 0 if self.copies else math.prod(batch.shape[1:])
        real = batch.array.dtype if batch.array.dtype.kind == "f" else np.float32
        module = self.module(real, str(source.dtype))
        there = None if self.copies else source, None if self.copies else batch.array
        return self.launches(module, "gather", (n, width), there, (rescale(self.call),))

    def module(self, real: Any, source: str) -> Any:
        """The module of the kernels, for these types of the batch and of the data."""
        return compiled("gather", real, SOURCE=source)

    def launches(
        self, module: Any, name: str, shape: tuple[int, int], arrays: Sequence[Any], last: Sequence[Any] = ()
    ) -> list[Runnable]:
        """The launch of a kernel that copies the rows, with those of the other arrays. shape: of the batch."""
        sides = [side.side() for side in ([self] if self.copies else []) + self.sides]
        nothing = structure("Side", source=None, to=None, words=0)
        most = max([shape[1], *(side.words for side in sides)])
        grid = -(-most // THREADS), min(shape[0], MOST_BLOCKS)
        if not all(grid):
            return []
        feed = self.feed
        first = feed.state[3:] if self.streamed else None
        where = feed.rows, first, feed.position, *shape
        given = *arrays, *where, *last, *sides, *[nothing] * (_SIDES - len(sides))
        return [Launch(module, name, grid, (THREADS,), given, feed.stream)]


def gather(call: Call, feed: DeviceFeed) -> Gather:
    """Copy the step's rows of one array."""
    return Gather(call, feed)


def rescale(call: Call) -> Any:
    """The kernel's structure with the numbers of a Rescale."""
    options, target = call.options, call.writes[0]
    assert target is not None
    numbers = {
        name: options.get(name, default)
        for name, default in (("scale", 1.0), ("offset", 0.0), ("shift", 0.0))
    }
    each: dict[str, Any] = {f"{name}s": None for name in numbers}
    for name, number in numbers.items():
        if not isinstance(number, float):
            wide = cupy().broadcast_to(cupy().asarray(number, "float64"), target.shape[1:])
            numbers[name], each[f"{name}s"] = 0.0, cupy().ascontiguousarray(wide)
    how = _IN_DOUBLE if "shift" in options else _IN_REAL if "scale" in options else _PLAIN
    return structure("Rescale", how=how, **numbers, **each)


def serves_mask(call: Call) -> bool:
    """Whether the program says what the mask is drawn from."""
    return isinstance(call.options.get("recipe"), Mask)


def drawn_from(call: Call, feed: DeviceFeed) -> tuple[Any, ...]:
    """The arguments of a kernel that say which random numbers a draw call takes."""
    recipe = call.options["recipe"]
    return feed.state, feed.position, call.options.get("again", 0), recipe.index, int(recipe.purpose)


def keep_mask(call: Call, feed: DeviceFeed) -> Any:
    """Draw dropout's mask of this step."""
    target, mask = call.writes[0], call.options["recipe"]
    assert target is not None
    numbers = *drawn_from(call, feed), mask_threshold(mask.rate)
    size, module = math.prod(target.shape), compiled("dropout", np.float32)
    return by_element(module, "keep_mask", size, (target.array, size, *numbers), feed.stream, each=8)


def serves_dropout(call: Call) -> bool:
    """Whether the input is float32 or float64, and the mask is boolean and has the input's shape."""
    x, keep = (call.forward or call).reads
    return bool(
        np.dtype(x.dtype) in (np.float32, np.float64)
        and x.shape == keep.shape
        and np.dtype(keep.dtype) == np.bool_
        and math.prod(x.shape) < 2**31
    )


def dropout(call: Call, feed: DeviceFeed) -> Any:
    """Compute x / (1 - rate), or 0 where the mask is false."""
    return _masked(call.reads[0].array, call, call, feed)


def dropout_backward(call: Call, feed: DeviceFeed) -> Any:
    """Compute the gradient of dropout, which is dropout of dy by the same mask."""
    assert call.forward is not None
    return _masked(call.reads[0].array, call, call.forward, feed)


def _masked(x: Any, call: Call, forward: Call, feed: DeviceFeed) -> Any:
    target, scale = call.writes[0], 1.0 / (1.0 - forward.options["rate"])
    assert target is not None
    arguments = x, forward.reads[1].array, target.array, x.size, scale
    return by_element(compiled("dropout", x.dtype), "dropout", x.size, arguments, feed.stream)
