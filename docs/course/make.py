"""Run the pages of the course: write what they print, draw their figures, make notebooks of them.

    python docs/course/make.py                      all pages: what is printed and drawn is written anew
    python docs/course/make.py 03_graph.md          this page only
    python docs/course/make.py --check              write nothing; fail if a page prints something else
    python docs/course/make.py --notebooks FOLDER   a notebook of each page, for Jupyter

The blocks of Python of a page run in order, in one namespace. What a block prints stands in a block of text right
after it. Figures are files of the folder `figures`, whose names begin with the page's number.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import xnn

COURSE = Path(__file__).parent
PAGES = sorted(COURSE.glob("[0-9][0-9]_*.md"))
#: A block of Python, and the block of text right after it, if there is one.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"!\[[^\]]+\]\((figures/[^)]+)\)")


class CourseError(Exception):
    """A page that cannot be made: what is wrong, and where."""


@contextlib.contextmanager
def settings(folder):
    """Work in a folder, with figures of the same bytes each time, and undo what a page sets for all of xnn."""
    before = Path.cwd()
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # SVG files have a date, which matplotlib takes from here
    os.environ.setdefault("MPLBACKEND", "Agg")
    drawing: contextlib.AbstractContextManager = contextlib.nullcontext()
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("Agg")
        small = {
            "svg.hashsalt": "xnn",
            "svg.fonttype": "none",
            "figure.figsize": (6, 3),
            "image.cmap": "gray",
        }
        drawing = matplotlib.rc_context({**small, "savefig.bbox": "tight"})
    Path(folder, "figures").mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        with drawing:
            yield
    finally:
        os.chdir(before)
        xnn.use_numerics(None)
        xnn.use_backend(None)
        xnn.use_threads(None)
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


def printed(code, names, path, line):
    """Run one block; return what it prints. An error's traceback has the page's own lines."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * line + code, str(path), "exec"), names)
    return "".join(part.rstrip() + "\n" for part in out.getvalue().splitlines())


def made(path, folder):
    """The text of a page as it is after running it in a folder, where its figures are drawn."""
    text, names = path.read_text(encoding="utf-8"), {"__name__": path.stem}

    def run(match):
        line = text.count("\n", 0, match.start(1))
        output = printed(match[1], names, path, line)
        return f"```python\n{match[1]}```\n" + (f"\n```text\n{output}```\n" if output else "")

    with settings(folder):
        new = BLOCK.sub(run, text)
    linked, number = FIGURE.findall(text), path.name[:2]
    drawn = [f"figures/{file.name}" for file in sorted(Path(folder, "figures").glob(f"{number}_*"))]
    if sorted(linked) != drawn:
        raise CourseError(f"{path.name} links to the figures {sorted(linked)}, and there are {drawn}")
    return new


def write(path):
    """Run a page, and write it and its figures anew. Other files that its code writes are not kept."""
    with tempfile.TemporaryDirectory() as folder:
        text = made(path, folder)
        for old in (COURSE / "figures").glob(f"{path.name[:2]}_*"):
            old.unlink()
        for new in Path(folder, "figures").iterdir():
            shutil.copy(new, COURSE / "figures" / new.name)
    path.write_text(text, encoding="utf-8")


def differences(path):
    """The lines in which a page and what running it gives differ; "" if there are none."""
    with tempfile.TemporaryDirectory() as folder:
        new = made(path, folder).splitlines(keepends=True)
    old = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, str(path), "made"))


def notebook(text):
    """A page as a notebook (nbformat 4.5): a cell for each block of Python, and for the text between them."""
    cells, end = [], 0

    def add(kind, source, **more):
        if source.strip():
            lines = source.strip("\n").splitlines(keepends=True)
            cells.append(
                {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": lines, **more}
            )

    for match in BLOCK.finditer(text):
        add("markdown", text[end : match.start()])
        lines = (match[2] or "").splitlines(keepends=True)
        outputs = [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []
        add("code", match[1], execution_count=None, outputs=outputs)
        end = match.end()
    add("markdown", text[end:])
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}


def write_notebooks(paths, folder):
    """Write a notebook of each page into a folder, with the figures beside them."""
    folder = Path(folder)
    shutil.copytree(COURSE / "figures", folder / "figures", dirs_exist_ok=True)
    for path in paths:
        content = json.dumps(notebook(path.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
        (folder / f"{path.stem}.ipynb").write_text(content + "\n", encoding="utf-8")


def main(arguments=None):
    """Make, check or convert pages; returns the exit code: 1 if a page differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", help="names of pages; all of them by default")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--notebooks", metavar="FOLDER", help="write a notebook of each page into a folder")
    options = parser.parse_args(arguments)
    paths = [COURSE / Path(name).name for name in options.pages] or PAGES
    missing = [path.name for path in paths if path not in PAGES]
    if missing:
        parser.error(f"no pages {missing}; there are {[path.name for path in PAGES]}")
    if options.notebooks:
        write_notebooks(paths, options.notebooks)
        return 0
    failed = False
    for path in paths:
        if options.check:
            found = differences(path)
            failed = failed or bool(found)
            print(found or f"{path.name}: the same", flush=True)
        else:
            write(path)
            print(f"{path.name}: made", flush=True)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CourseError as error:
        sys.exit(f"Error: {error}")
