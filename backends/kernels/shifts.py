"""Convolution as a sum of shifted planes: where each element of a window lies, whatever the stride and dilation.

Take an image of 4 x 4 with a border of zeros, and windows of 3 x 3. Written as one line, row after row of 5 places,
the image of a channel is a plane of 6 rows: a 0 before each row is also the 0 after the row above. Element (i, j) of
the window at (u, v) lies at place p + 5 i + j of it, with p = 5 u + v: the same distance from p for all windows. So
all windows together are

    y[o][p] = sum over c, i, j of w[o, c, i, j] x[c][p + 5 i + j]

which needs no copies of windows. The last place of each row is no window; its results are not used.

With stride s, element i of window u lies at row u s + i d. Rows with the same remainder modulo s are put in a plane
of their own, a phase. In it the element lies at row u + (i d) // s, again at one distance from u. Columns likewise.

So a convolution is `taps` (c, i, j), each with an offset into the planes of an image. The gradient for x is the same
sum with the planes of dy, where offsets are negative: dy has a border of zeros, too.

A zero of a border times an infinity or NaN is NaN. So gradients may have more elements that are not finite than the
op's have, and never fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xnn.ops.windows import Windows

__all__ = ["Phase", "Shifts", "packed"]


@dataclass(frozen=True)
class Phase:
    """The elements of an image that lie at rows u s + a and columns v s + b of the image with its border.

    index: which of them, in the order of (a, b). top, bottom, left, right: the first row of the phase's plane that
    is in the image, the first after it that is not, likewise for columns. taps: the elements (i, j) of a window that
    lie in this phase, with their distances.
    """

    index: int
    top: int
    bottom: int
    left: int
    right: int
    taps: tuple[tuple[int, int, int], ...]


class Shifts:
    """The planes of one image for windows along H and W.

    rows: of a plane. pitch: the places of a row. size: the places of a plane. phases: in the order of (a, b).
    reach: the largest distance of a tap. across: the largest distance of a tap in the windows' first row.
    places: from the first window to the last, both included.
    """

    def __init__(self, windows: tuple[Windows, Windows]) -> None:
        self.windows = windows
        h, w = windows
        down, across = ((s.kernel - 1) * s.dilation // s.stride for s in windows)
        self.rows, self.pitch = h.number + down, self._pitch(across)
        self.across = across
        self.size = self.rows * self.pitch
        self.reach = down * self.pitch + across
        self.places = (h.number - 1) * self.pitch + w.number
        self.phases = [self._phase(a, b) for a in range(h.stride) for b in range(w.stride)]

    def _pitch(self, across: int) -> int:
        """The places of a row. The zeros after a row are also those before the next one, as many as both need."""
        w = self.windows[1]
        widths = [w.number]
        for b in {j * w.dilation % w.stride for j in range(w.kernel)}:
            left, right = _inside(w, b, w.number + across)
            widths += [right, w.number + across - left]
        return max(widths)

    def _phase(self, a: int, b: int) -> Phase:
        h, w = self.windows
        taps = tuple(
            (i, j, (i * h.dilation // h.stride) * self.pitch + j * w.dilation // w.stride)
            for i in range(h.kernel)
            for j in range(w.kernel)
            if i * h.dilation % h.stride == a and j * w.dilation % w.stride == b
        )
        top, bottom = _inside(h, a, self.rows)
        left, right = _inside(w, b, self.pitch)
        return Phase(a * w.stride + b, top, bottom, left, right, taps)

    def inside(self, phase: Phase) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the phase's part of the image lies: in the image, and in the phase's plane."""
        h, w = self.windows
        a, b = divmod(phase.index, w.stride)
        top, left = phase.top * h.stride + a - h.before, phase.left * w.stride + b - w.before
        bottom, right = phase.bottom * h.stride + a - h.before, phase.right * w.stride + b - w.before
        image = slice(top, max(top, bottom), h.stride), slice(left, max(left, right), w.stride)
        return image, (slice(phase.top, phase.bottom), slice(phase.left, phase.right))

    def covers(self) -> bool:
        """Whether every pixel is in a phase with taps, so that every pixel has a gradient."""
        seen = np.zeros([w.extent for w in self.windows], bool)
        for phase in self.phases:
            if phase.taps:
                seen[self.inside(phase)[0]] = True
        return bool(seen.all())

    def forward_taps(self, channels: int) -> np.ndarray:
        """The offset of each tap (c, i, j) in the planes of x, in the order of the weights."""
        h, w = self.windows
        places = np.empty((h.kernel, w.kernel), np.int64)
        for phase in self.phases:
            for i, j, distance in phase.taps:
                places[i, j] = phase.index * self.size + distance
        images = np.arange(channels) * (len(self.phases) * self.size)
        return (images[:, None] + places.reshape(-1)).reshape(-1)

    def backward_taps(self, phase: Phase, outputs: int, plane: int) -> np.ndarray:
        """The offset of each tap (o, i, j) of a phase in the planes of dy, which have `plane` places each."""
        distances = np.array([distance for _, _, distance in phase.taps], np.int64)
        return (np.arange(outputs)[:, None] * plane - distances).reshape(-1)


def _inside(w: Windows, remainder: int, extent: int) -> tuple[int, int]:
    """The first place of a phase that is in the image, and the first after it that is not."""
    begin = max(0, -((remainder - w.before) // w.stride))
    end = min(extent, -((remainder - w.before - w.extent) // w.stride))
    return begin, max(begin, end)


def packed(numbers: np.ndarray, group: int) -> np.ndarray:
    """Weights (results, taps), given by their numbers, in groups of `group` results: (groups, taps, group).

    The last group may have room for more results than there are: these numbers are -1.
    """
    results, taps = numbers.shape
    groups = -(-results // group)
    whole = np.full((groups * group, taps), -1, np.int64)
    whole[:results] = numbers
    return np.ascontiguousarray(whole.reshape(groups, group, taps).transpose(0, 2, 1))
