"""Checks the links within the built site: python docs/check.py docs/_build/html.

Every file and anchor that a page links to must be there. Links to other sites are not followed. Prints what is
missing and exits with 1, or the number of links.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Page", "missing"]


class Page(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value and tag != "base":
                self.links.add(value)


def missing(folder: Path) -> tuple[int, list[str]]:
    """How many links within the site there are, and a line for each that leads nowhere."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.html")
        if "_static" not in path.parts
    }
    count, faults = 0, []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else {"", unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in known:
                faults.append(f"{path.relative_to(folder.resolve())}: {link}")
    return count, faults


if __name__ == "__main__":
    links, faults = missing(Path(sys.argv[1]))
    print("\n".join(faults) or f"{links} links within the site lead somewhere")
    sys.exit(1 if faults else 0)
