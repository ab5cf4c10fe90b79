"""Draws docs/speed.svg from the figures in benchmarks/results: python docs/speed.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = HERE.parent / "benchmarks" / "results" / "targets-2cores-numpy2.4.6.json"
#: The contestants that are shown: their names in the figures, in the picture, and the class of their bars.
SHOWN = (
    ("xnn-fast", "xnn (fast)", "own"), ("xnn-numpy", "xnn (NumPy)", "own pale"), ("jax-scan", "JAX, scan", "other"),
    ("torch-compile", "torch.compile", "other"), ("torch", "PyTorch", "other"), ("sklearn", "scikit-learn", "other"),
)  # fmt: skip
#: Two networks of those that were measured, a small and a large one.
NETWORKS = ((784, 100, 200, 10), 32), ((784, 512, 256, 10), 128)
STYLE = """
  .card { fill: #ffffff; } text { font: 14px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; } .own { fill: #0969da; } .pale { opacity: 0.6; } .other { fill: #9aa4b2; }
  .limit { stroke: #1f2328; stroke-dasharray: 3 3; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; } text { fill: #e6edf3; } .own { fill: #58a6ff; } .other { fill: #6e7681; }
    .limit { stroke: #e6edf3; } }
"""


def ratios(figures: dict[str, Any], widths: tuple[int, ...], batch: int) -> dict[str, float]:
    """The median time of a step of each contestant, as a multiple of that of the matrix products alone."""
    (result,) = [r for r in figures["results"] if tuple(r["widths"]) == widths and r["batch"] == batch]
    medians = {entry["contestant"]: entry["median"] for entry in result["entries"]}
    return {name: medians[name] / medians["gemm"] for name, _, _ in SHOWN}


def picture(figures: dict[str, Any]) -> str:
    """The picture: bars of each contestant, and a line at 1, where a step would be its products alone."""
    left, unit, row, y = 130, 118, 24, 34
    lines = ['<text class="title" x="16" y="26">Time of a training step / its matrix products alone</text>']
    for widths, batch in NETWORKS:
        y += 30
        lines.append(f'<text x="16" y="{y - 8}">{"-".join(map(str, widths))}, batch {batch}</text>')
        top = y
        for name, label, style in SHOWN:
            ratio = ratios(figures, widths, batch)[name]
            width = ratio * unit
            lines += [
                f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{label}</text>',
                f'<rect class="{style}" x="{left}" y="{y + 3}" width="{width:.1f}" height="{row - 6}" rx="2"/>',
                f'<text x="{left + width + 6:.1f}" y="{y + 16}">{ratio:.2f}</text>',
            ]
            y += row
        lines.append(f'<line class="limit" x1="{left + unit}" y1="{top}" x2="{left + unit}" y2="{y}"/>')
    size = f'viewBox="0 0 660 {y + 16}" width="660" height="{y + 16}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Time of a training step as multiples of its matrix products</title>"
    card = f'<rect class="card" width="660" height="{y + 16}" rx="8"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", card, *lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    (HERE / "speed.svg").write_text(
        picture(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8"
    )
