"""What pyproject.toml requires: every package has an oldest version, which .ci/oldest.py installs, and a reason."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("oldest", ROOT / ".ci" / "oldest.py")
oldest = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(oldest)
PROJECT = oldest.project()["project"]


def table(*requirements):
    """A pyproject.toml with these dependencies."""
    extras = {extra: ["some[all]", "other>=3"] for extra in oldest.EXTRAS}
    project = {"name": "some", "dependencies": [*requirements], "optional-dependencies": extras}
    return {"build-system": {"requires": ["builder>=1"]}, "project": project}


def test_the_oldest_versions_are_those_of_pyproject():
    assert oldest.floors(table("a>=1.2,!=1.3", "b-c[d]>=2")) == ["builder==1", "a==1.2", "b-c==2", "other==3"]
    lines = oldest.floors(oldest.project())
    required = {re.split(r"[\[>=<!]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert required | {"setuptools", "numba", "pytest"} <= {line.split("==")[0] for line in lines}


@pytest.mark.parametrize("requirement", ["a", "a==1", "a<2", "a!=1", "other>=2"])
def test_a_requirement_without_an_oldest_version_is_refused(requirement):
    with pytest.raises(ValueError, match=r"no oldest version|two oldest versions"):
        oldest.floors(table(requirement))


def test_the_page_on_installing_says_why_each_package_is_needed():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").split("## What it needs, and why", 1)[1]
    reasons = re.findall(r"^\| ([\w-]+) \|", text.split("\n## ", 1)[0], re.M)
    required = [re.split(r"[\[>=<!]", requirement)[0] for requirement in PROJECT["dependencies"]]
    assert sorted(required) == sorted(set(reasons) - {"package"})
