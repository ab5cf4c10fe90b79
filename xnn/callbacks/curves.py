"""Draws learning curves as an SVG picture, without matplotlib: fast enough to be drawn again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

__all__ = ["curves"]

#: (epoch, value)
_Points: TypeAlias = list[tuple[float, float]]

_WIDTH, _HEIGHT = 300, 190  # of a panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 34, 28  # around the axes
_MOST = 2 * (_WIDTH - _LEFT - _RIGHT)  # points of a curve: two for each pixel
_LARGEST = 1e300  # larger numbers have no differences in floating point; NaN is not smaller, either
_TRAINING, _VALIDATION = "#3a7fc1", "#d9772b"


def curves(epochs: Sequence[Mapping[str, Any]], begun: Mapping[str, Any] | None = None) -> str:
    """An SVG picture of learning curves: a panel for the loss and each metric, of training and validation.

    epochs: a dict for each epoch, as of `History.epochs`. NaN, infinity, numbers beyond 1e300, and matrices are left
        out.
    begun: one more for the epoch that is not over yet; its "epoch" is a fraction, such as 2.3. Default None.

    Returns the text of an <svg> element, or "" if there is nothing to draw. Its size does not grow with the number of
    epochs. Text and axes have the color of the page's text.

        >>> from xnn.callbacks.curves import curves
        >>> picture = curves([{"epoch": 1, "loss": 0.9, "val_loss": 1.0}, {"epoch": 2, "loss": 0.5, "val_loss": 0.7}])
        >>> picture[:4], picture.count("<polyline")
        ('<svg', 2)
    """
    entries = [*epochs, *([] if begun is None else [begun])]
    names = dict.fromkeys(name for entry in entries for name in entry if not name.startswith("val_"))
    panels = []
    for name in names:
        both = [_points(entries, column) for column in (name, f"val_{name}")]
        if name != "epoch" and any(both):
            panels.append(_panel(name, *both))
    if not panels:
        return ""
    placed = "".join(
        f'<g transform="translate({number * _WIDTH},0)">{panel}</g>' for number, panel in enumerate(panels)
    )
    width = _WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" '
        f'style="max-width:100%;height:auto" role="img" aria-label="learning curves" fill="currentColor" '
        f'font-family="sans-serif" font-size="11">{placed}</svg>'
    )


def _points(entries: Sequence[Mapping[str, Any]], column: str) -> _Points:
    numbers = [(float(entry["epoch"]), entry.get(column)) for entry in entries]
    return [(x, y) for x, y in numbers if isinstance(y, float) and abs(y) < _LARGEST]


def _panel(name: str, training: _Points, validation: _Points) -> str:
    """One pair of curves with its axes, its name and a legend."""
    xs, ys = zip(*training, *validation, strict=True)
    first, last = math.floor(min(1.0, *xs)), max(2, math.ceil(max(xs)))
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def across(x: float) -> float:
        return float(_LEFT + (x - first) / (last - first) * (right - _LEFT))

    def down(y: float) -> float:
        return float(bottom - (y - low) / (high - low) * (bottom - _TOP))

    parts = [f'<text x="{_LEFT}" y="13" font-weight="bold">{escape(name)}</text>']
    for y, text in _ticks(low, high):
        parts.append(f'<path d="M{_LEFT} {down(y):.1f}H{right}" stroke="currentColor" opacity="0.15"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{down(y) + 4:.1f}" text-anchor="end">{text}</text>')
    for x, text in _ticks(first, last, whole=True):
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 3}" text-anchor="end">epoch</text>')
    parts.append(
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.5"/>'
    )
    place = _LEFT
    for points, label, color, dashes in (
        (training, "training", _TRAINING, ""),
        (validation, "validation", _VALIDATION, ' stroke-dasharray="5 3"'),
    ):
        if not points:
            continue
        line = f'fill="none" stroke="{color}" stroke-width="1.8"{dashes}'
        parts.append(
            f'<path d="M{place} 25H{place + 16}" {line}/><text x="{place + 20}" y="29">{label}</text>'
        )
        place += 90
        drawn = [(across(x), down(y)) for x, y in _thinned(points)]
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)}" {line}/>')
        x, y = drawn[-1]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>')
    return "".join(parts)


def _thinned(points: _Points) -> _Points:
    """A curve of few enough points: of each stretch its lowest and its highest one, and the last point."""
    if len(points) <= _MOST:
        return points
    length = -(-len(points) // (_MOST // 2))
    kept = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _ticks(low: float, high: float, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers between two numbers, with their text: steps of 1, 2 or 5 times a power of ten.

    whole: whether they are whole numbers.
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-300)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough)
    step = max(step, 1.0) if whole else step
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    plain = digits <= 5 and max(abs(low), abs(high)) < 1e5
    return [(n * step, f"{n * step:.{digits}f}" if plain else f"{n * step:.3g}") for n in numbers]
