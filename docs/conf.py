"""Sphinx's settings. `make docs` builds the site, docs/_build/html, from the Markdown pages and the docstrings.

The pages are plain Markdown, with links that work on a code host too. The menu follows the lists of docs/index.md,
and the pages of the API reference are written by docs/reference.py. Links to other files of the repository become
downloads.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402

import xnn  # noqa: E402

project, author, copyright = "xnn", "the xnn authors", "the xnn authors"
version = release = xnn.__version__
extensions = ["myst_parser", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "docs/**.md",
    "examples/README.md",
    "benchmarks/README.md",
    "tests/cuda_emulator/README.md",
]
exclude_patterns = ["**/.*", "docs/_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # "numpy" in a text is to be typed as it stands there
html_theme, html_title = "furo", f"xnn {release}"
html_static_path: list[str] = []
html_show_sphinx = False
html_copy_source = False


def menu(index: str) -> str:
    """Sphinx's menu: a hidden toctree for each section of a page, of the pages that the section's list links to."""
    parts = []
    for section in index.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        pages = [
            link.removesuffix(".md")
            for link in re.findall(r"^- \[[^\]]+\]\(([^)#:]+\.md)\)", body, re.MULTILINE)
        ]
        if "api/index" in pages:
            pages += [f"api/{module}" for module in reference.MODULES]
        if "course/index" in pages:
            pages += sorted(f"course/{path.stem}" for path in (HERE / "course").glob("[0-9]*.md"))
        parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"]))
    return "\n\n".join(parts)


def add_menu(app: Any, docname: str, source: list[str]) -> None:
    """Give the front page its menu."""
    if docname == root_doc:
        source[0] += "\n" + menu(source[0]) + "\n"


def source_of(app: Any, module: str) -> tuple[str, dict[str, tuple[str, int, int]]]:
    """A module's text, and the lines of what it defines. Ops and second names are found by their classes' names."""
    from sphinx.pycode import ModuleAnalyzer

    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.find_tags()
    tags = dict(analyzer.tags)
    for name, value in vars(sys.modules[module]).items():
        made_by = value if isinstance(value, type) else type(value)
        if made_by.__module__ == module and made_by.__qualname__ in tags:
            tags.setdefault(name, tags[made_by.__qualname__])
    for name, member in reference.members():
        function = function_of(member)
        if function.__module__ == module and function.__qualname__ in tags:
            tags.setdefault(name, tags[function.__qualname__])
    return analyzer.code, tags


def defined_in(app: Any, module: str, name: str) -> str | None:
    """The module that defines a public name."""
    value: Any = sys.modules[module]
    for part in name.split("."):
        value = getattr(value, part, None)
    place = getattr(function_of(value), "__module__", None) or type(value).__module__
    return place if place.startswith("xnn") else None


def function_of(member: Any) -> Any:
    """The function that a property or method runs; anything else as it is."""
    inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return inspect.unwrap(inner)


def without_back_links(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Take viewcode's links from sources to the reference away: it looks for all names of a file in one module."""
    if page.startswith("_modules/") and "body" in context:
        context["body"] = re.sub(r'<a class="viewcode-back"[^>]*>.*?</a>', "", context["body"])


def add_front_door(app: Any, exception: Exception | None) -> None:
    """Let the site's address without a file name lead to the front page."""
    if exception is None and app.builder.format == "html":
        door = (
            '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>xnn</title>\n'
        )
        (Path(app.outdir) / "index.html").write_text(door, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    reference.write(HERE / "api")
    app.connect("source-read", add_menu)
    app.connect("viewcode-find-source", source_of)
    app.connect("viewcode-follow-imported", defined_in)
    app.connect("html-page-context", without_back_links)
    app.connect("build-finished", add_front_door)
    return {"parallel_read_safe": True}
