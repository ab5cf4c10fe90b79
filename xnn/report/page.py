"""The page of a report: one HTML file that holds its data, style and script, and asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Sequence
from pathlib import Path

from xnn.errors import OptionError
from xnn.files import to_json, write_atomically
from xnn.report.gather import gather
from xnn.report.run import Run

__all__ = ["BEGINS", "LARGEST", "page_of", "write"]

_HERE = Path(__file__).parent
#: How a report begins. A file that begins otherwise is not replaced.
BEGINS = "<!doctype html>\n<!-- a report by xnn -->"
#: The bytes of a page, at most.
LARGEST = 2_000_000
#: Bytes for pictures and examples that are tried, until the page is small enough.
_BUDGETS = (1_400_000, 700_000, 300_000, 100_000, 0)
_SCRIPTS = ("tools.js", "curves.js", "snapshots.js", "classes.js", "page.js")


def page_of(runs: Sequence[Run]) -> str:
    """The text of the page. Raises OptionError if it would be too large for a browser to open at ease."""
    for budget in _BUDGETS:
        text = _filled(runs, budget)
        if len(text.encode()) < LARGEST:
            return text
    raise OptionError(
        f"the report of {len(runs)} runs has {len(text.encode()):,} bytes without any picture, and may "
        f"have {LARGEST:,}: compare fewer runs"
    )


def _filled(runs: Sequence[Run], budget: int) -> str:
    """The page, with what `gather` returns as JSON in it.

    In the JSON text < > & are written as \\u003c and so on: no text of a file can end the element that holds it.
    """
    data = to_json(gather(runs, budget))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(", ".join(run.name for run in runs)),
        "script_sha256": digest,
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "data": data,
    }
    before, *rest = page.split("{{")
    for part in rest:  # not by replace, since what is put in may hold {{ }} itself
        name, _, after = part.partition("}}")
        before += parts[name] + after
    return before


def write(runs: Sequence[Run], path: str | os.PathLike[str]) -> None:
    """Write the report of some runs, whole or not at all.

    path: the .html file; an older report is replaced.

    Raises OptionError for a place that cannot be written, or another file there; DiskError when the disk is full.
    """
    write_atomically(path, page_of(runs).encode(), (".html",), BEGINS)
