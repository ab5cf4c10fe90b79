"""Writes the pages of the API reference, docs/api/*.md, from the docstrings. Sphinx's docs/conf.py calls `write`.

Docstrings are plain English with Markdown's code marks. Lines such as `inputs: the size of ...` become a list of
definitions, `>>>` blocks code with its output, indented blocks code, and names of public things in code marks links.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["MODULES", "entries", "markdown", "members", "page", "signature", "summary", "write"]

#: The modules with a page of their own, in the order of the site's menu.
MODULES = (
    "xnn", "xnn.layers", "xnn.losses", "xnn.optimizers", "xnn.schedules", "xnn.initializers", "xnn.metrics",
    "xnn.callbacks", "xnn.data", "xnn.ops", "xnn.graph", "xnn.history", "xnn.exchange", "xnn.sklearn", "xnn.backends",
    "xnn.errors",
)  # fmt: skip
#: A line that begins an option's description: `name: text`, `name, other: text`.
_OPTION = re.compile(r"(\*{0,2}[a-zA-Z_]\w*(?:, \*{0,2}\w+)*): (\S.*)")
_PLAIN = "A constant, or a type for annotations."
_NO_OPTIONS = (
    "Source",
    "Sources",
    "Formula",
    "Formulas",
    "Example",
    "Examples",
    "Note",
    "Raises",
    "Returns",
    "Of",
)


def entries(name: str) -> dict[str, Any]:
    """The public names of a module and what they are, in the order of the alphabet, without its modules."""
    module = importlib.import_module(name)
    found = {each: getattr(module, each) for each in sorted(module.__all__, key=str.lower)}
    return {each: value for each, value in found.items() if not isinstance(value, ModuleType)}


@cache
def _places() -> tuple[dict[str, str], dict[int, str]]:
    """Each public thing's full names, and for each thing the name under which it is described."""
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for module in MODULES:
        for name, value in entries(module).items():
            described = first.setdefault(id(value), f"{module}.{_own_name(module, name, value)}")
            for alias in (f"{module}.{name}", f"{module}.{name}".removeprefix("xnn.")):
                names[alias] = described
    return names, first


def _own_name(module: str, name: str, value: Any) -> str:
    """The name in the class statement, if the module has it too: Dense for Affine."""
    own = getattr(value, "__name__", name)
    return own if own in entries(module) and entries(module)[own] is value else name


def signature(value: Any) -> str:
    """What a class, function or op is called with, without types: the docstrings say them."""
    if not callable(value) and not hasattr(value, "forward"):
        return ""
    is_op = not isinstance(value, type | FunctionType) and hasattr(value, "forward")
    try:
        parameters = list(inspect.signature(value.forward if is_op else value).parameters.values())
    except (TypeError, ValueError):
        return ""
    shown = []
    for parameter in parameters[1 if is_op else 0 :]:
        if parameter.name.startswith("_") or "Never" in str(parameter.annotation):
            continue
        default = parameter.default
        if default is not inspect.Parameter.empty and repr(default).startswith("<"):
            parameter = parameter.replace(default=_Dots())
        shown.append(parameter.replace(annotation=inspect.Parameter.empty))
    return str(inspect.Signature(shown))


class _Dots:
    def __repr__(self) -> str:
        return "..."


def _blocks(text: str) -> list[list[str]]:
    """The paragraphs of a docstring; an indented one goes on over blank lines as long as lines are indented."""
    found: list[list[str]] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if lines[0].startswith(
            ">>> "
        ):  # where nothing else follows the first line, cleandoc takes the indent away
            lines = [f"    {line}" for line in lines]
        while lines:
            indented = lines[0].startswith("    ")
            end = next((i for i, line in enumerate(lines) if line.startswith("    ") != indented), len(lines))
            if not indented:  # an option's later lines are indented and belong to it
                end = next((i for i, line in enumerate(lines) if line.startswith("    >>> ")), len(lines))
            part, lines = lines[:end], lines[end:]
            both_code = indented and found and found[-1][0].startswith("    ")
            if both_code and (">>> " in part[0]) == (">>> " in found[-1][0]):
                found[-1] += ["", *part]
            else:
                found.append(part)
    return found


def _inline(text: str) -> str:
    """A text with links in the place of public names in code marks, and other signs of Markdown escaped."""
    pieces = re.split(r"(`[^`]+`)", text)
    for place, piece in enumerate(pieces):
        if piece.startswith("`") and piece.endswith("`") and len(piece) > 2:
            target = _places()[0].get(piece[1:-1].removesuffix("()"))
            if target and "." in piece:
                pieces[place] = f"{{py:obj}}`{piece[1:-1]} <{target}>`"
        else:
            piece = re.sub(r"(?<!\*)\*(?!\*)|(?<=\w)\*\*(?=\w)|[\\<\[\]|~$]", r"\\\g<0>", piece)
            pieces[place] = re.sub(r"(?<!\w)_+|_+(?!\w)", lambda m: "\\_" * len(m[0]), piece)
    return "".join(pieces)


def _options(lines: list[str]) -> list[tuple[str, list[str]]] | None:
    """The options that a paragraph lists, each with its lines; None if it is something else."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        match = _OPTION.match(line)
        if match and match[1] not in _NO_OPTIONS:
            found.append((match[1], [match[2]]))
        elif found and line.startswith("  "):
            found[-1][1].append(line.strip())
        else:
            return None
    return found


def _language(lines: list[str]) -> str:
    """Whether lines are Python, with a call or an assignment, or text."""
    try:
        ast.parse("\n".join(lines))
    except SyntaxError:
        return "text"
    return "python" if re.search(r"\w\(| = |^import |^from ", "\n".join(lines)) else "text"


def markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    written = []
    for number, lines in enumerate(_blocks(inspect.cleandoc(docstring))):
        options = _options(lines) if number else None
        if lines[0].startswith("    "):
            language = "pycon" if ">>> " in lines[0] else _language([line[4:] for line in lines])
            written.append("\n".join([f"```{language}", *(line[4:] for line in lines), "```"]))
        elif options:
            written += [
                f"`{name}`\n: " + "\n  ".join(_inline(text) for text in texts) for name, texts in options
            ]
        elif re.match(r"\s*- ", lines[0]):
            written.append("\n".join(_inline(line) for line in lines))
        elif any(re.search(r"\S {3,}\S", line) for line in lines):
            written.append("\n".join(["```text", *lines, "```"]))
        elif _language(lines) == "python":
            written.append("\n".join(["```python", *lines, "```"]))
        else:
            written.append(_inline("\n".join(line.strip() for line in lines)))
    return "\n\n".join(written)


def summary(value: Any) -> str:
    """The first sentence of what a thing's docstring says."""
    first = (_docstring(value) or "").strip().split("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", re.sub(r"\s+", " ", first))[0].split("; dy/d")[0]
    return sentence if not sentence or sentence.endswith((".", "!", "?")) else f"{sentence}."


def _docstring(value: Any) -> str | None:
    """The docstring of a class, function or op, and of nothing else: a dict's is of no use."""
    places = (getattr(value, "__module__", None) or "", type(value).__module__)
    found = inspect.getdoc(value) if any(place.startswith("xnn") for place in places) else None
    return found if isinstance(found, str) else None


def _members(value: type) -> dict[str, Any]:
    """The documented methods and properties of a class, those of bases without an entry of their own included."""
    public, found = _places()[1], {}
    for base in value.__mro__:
        if base is not value and (id(base) in public or not base.__module__.startswith("xnn")):
            break
        for name, member in vars(base).items():
            plain = getattr(member, "__func__", member)
            is_member = isinstance(plain, FunctionType | property)
            if is_member and not name.startswith("_") and plain.__doc__ and name not in found:
                found[name] = member
    return found


def members() -> list[tuple[str, Any]]:
    """Each documented method and property of the public classes, as `Class.name`."""
    classes = [value for module in MODULES for value in entries(module).values() if isinstance(value, type)]
    return [(f"{each.__name__}.{name}", what) for each in classes for name, what in _members(each).items()]


def _fenced(kind: str, head: str, body: list[str], ticks: str, *options: str) -> str:
    return "\n".join([f"{ticks}{{py:{kind}}} {head}", *options, "", *body, ticks])


def _described(module: str, name: str, value: Any) -> str:
    """The entry of one public name."""
    full, described = f"{module}.{name}", _places()[1].get(id(value))
    own = [f":module: {module}"]
    is_class = isinstance(value, type) and "__origin__" not in vars(value)
    kind = "class" if is_class else "function" if callable(value) else "data"
    if is_class and issubclass(value, BaseException):
        kind = "exception"
    if described not in (None, full) and _docstring(value):
        return _fenced(kind, name, [f"The same as {{py:obj}}`{described}`."], "```````", *own)
    body = [markdown(_docstring(value) or _PLAIN)]
    for member, what in sorted(_members(value).items()) if is_class else ():
        if isinstance(what, property):
            inner = _fenced(
                "property", f"{name}.{member}", [markdown(what.fget.__doc__ or "")], "``````", *own
            )
        else:
            how = ":classmethod:" if isinstance(what, classmethod) else ""
            how = ":staticmethod:" if isinstance(what, staticmethod) else how
            function = getattr(what, "__func__", what)
            bare = signature(function)
            bare = bare if how == ":staticmethod:" else re.sub(r"^\((self|cls)(, )?", "(", bare)
            settings = [*own, how] if how else own
            inner = _fenced(
                "method", f"{name}.{member}{bare}", [markdown(function.__doc__)], "``````", *settings
            )
        body += ["", inner]
    return _fenced(kind, name + signature(value), body, "```````", *own)


def page(module: str) -> str:
    """The page of one module: what it says of itself, a table of its names, and an entry for each of them."""
    found = entries(module)
    intro = importlib.import_module(module).__doc__ or ""
    rows = [
        f"| {{py:obj}}`{name} <{module}.{name}>` | {_inline(summary(value) or _PLAIN)} |"
        for name, value in found.items()
    ]
    described = [_described(module, name, value) for name, value in found.items()]
    lines = [f"# {module}", markdown(intro), "\n".join(["| name | what it is |", "|---|---|", *rows])]
    return "\n\n".join([*lines, *described]) + "\n"


def write(folder: Path) -> None:
    """Write the pages of all modules, and an index, into a folder. Pages that are as they were stay untouched."""
    links = [f"- [{module}]({module}.md): {_first(module)}" for module in MODULES]
    pages = {f"{module}.md": page(module) for module in MODULES}
    pages["index.md"] = (
        "# API reference\n\nEvery public name, from the docstrings.\n\n" + "\n".join(links) + "\n"
    )
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _first(module: str) -> str:
    return _inline((importlib.import_module(module).__doc__ or "").split("\n")[0])
