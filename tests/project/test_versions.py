"""The versions that the metadata claims are those that CONTRIBUTING.md lists as tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def columns_of_table() -> dict[str, list[Version]]:
    """The columns of the table: a project -> its versions, the row of `make test` first."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Tested versions\n")[2]
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert "make test" in rows[0][-1]
    columns = zip(head[:-1], zip(*(row[:-1] for row in rows), strict=True), strict=True)
    return {name: [Version(cell.split()[0]) for cell in cells] for name, cells in columns}


def lowest(specifier: SpecifierSet) -> Version:
    """Of a range that has a lower bound and no other."""
    (bound,) = specifier
    assert bound.operator == ">="
    return Version(bound.version)


def minor(version: Version) -> Version:
    return Version(f"{version.major}.{version.minor}")


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


def test_the_pythons_that_are_claimed_are_those_that_were_tested() -> None:
    pythons = columns_of_table()["Python"]
    prefix = r"Programming Language :: Python :: (\d+\.\d+)"
    claimed = [re.fullmatch(prefix, each) for each in PROJECT["project"]["classifiers"]]
    assert {Version(each[1]) for each in claimed if each} == set(pythons)
    least = lowest(SpecifierSet(PROJECT["project"]["requires-python"]))
    assert least == min(pythons)
    assert Version(PROJECT["tool"]["mypy"]["python_version"]) == least
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{least.major}{least.minor}"


@pytest.mark.parametrize("requirement", requirements("requirements.txt"), ids=lambda each: each.name)
def test_the_lower_bound_of_a_dependency_was_tested(requirement: Requirement) -> None:
    bound, found = lowest(requirement.specifier), min(columns_of_table()[requirement.name])
    assert bound == found or (bound == minor(found) and found.micro == 0)


def test_make_test_runs_the_releases_that_the_table_says() -> None:
    pinned = {each.name: str(each.specifier) for each in requirements("constraints.txt")}
    for name, versions in columns_of_table().items():
        if name != "Python":
            assert pinned[name] == f"=={versions[0]}"
