"""What a report says of a run in words: the run itself, the plan by which it was executed, and digests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xnn.history import History

__all__ = ["ending", "facts_of"]


def facts_of(run: Mapping[str, Any], plan: Mapping[str, Any], digests: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of facts, without those that are None or empty.

    run: what was run, and how far it came. plan: `History.plan`. digests: SHA-256 in hexadecimal.
    """
    groups = {"Run": run, "Plan and environment": plan, "Digests (SHA-256)": digests}
    return {
        title: {
            str(name).replace("_", " "): value for name, value in group.items() if value not in (None, "")
        }
        for title, group in groups.items()
    }


def ending(history: History | Mapping[str, Any]) -> str:
    """How a run ended, of a history or of the last line of a log."""
    said = vars(history) if isinstance(history, History) else history
    if said.get("error"):
        return f"by an error: {said['error']}"
    return str(said.get("stopped") or ("interrupted" if said.get("interrupted") else "after all its epochs"))
