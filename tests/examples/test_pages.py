"""The Python of README.md and docs/*.md runs as it stands, and the README's reading list is an evening's."""

import doctest
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("examples/*.md"))]


def run(path):
    """Run a page's blocks of Python one after the other; the names they leave."""
    names = {"__name__": path.name}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        if ">>> " not in block:
            exec(compile(block, path.name, "exec"), names)
    return names


def faults(text, name):
    """What the doctests of a text print when they fail."""
    said = []
    found = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_doctests_of_a_page(path):
    assert faults(path.read_text(encoding="utf-8"), path.name) == ""


def test_a_wrong_doctest_is_seen():
    assert "Expected:\n    3\nGot:\n    2" in faults(">>> 1 + 1\n3\n", "wrong")


@pytest.mark.parametrize("path", PAGES[1:], ids=lambda path: path.name)
def test_the_python_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "mlp.toml", "network.toml")
    run(path)


@pytest.mark.data
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "README.md")
    assert (tmp_path / "digits.safetensors").exists()
    assert names["history"]["val_accuracy"][-1] > 0.96
    assert names["trainer"].evaluate((names["x_test"], names["y_test"]))["top5"] > 0.9
    assert capsys.readouterr().out.count("gradients agree") == 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_files_that_a_page_links_to_exist(path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_reading_list_is_an_evenings():
    """Under 2,000 lines, each file's count as the README has it."""
    section = README.split("To read it in an evening", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", section, re.MULTILINE)
    assert len(rows) > 12
    counted = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name, _ in rows}
    assert {name: int(lines) for name, lines in rows} == counted
    assert sum(counted.values()) < 2000
    assert f"{sum(counted.values()):,} lines" in section
