"""What `make` installs: the lock files are complete, within the ranges, and hold hashes; torch alone has none."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CORE = ("requirements-build.lock", "requirements.lock")
LOCKS = (*CORE, "requirements-dev.lock")
# What `make ray` installs besides.
RAY = "tests/ray/requirements.lock"
# Of each dependency group of pyproject.toml: an environment of real clients.
CLIENTS = {
    group: f"tests/clients/requirements-{group}.lock" for group in ("clients", "lm-eval", "text-generation")
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# A release, its marker, and the hashes of its files.
BLOCK = re.compile(r"([\w.-]+)==(\S+)(?: ; ([^\n]+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
# With torch's own build come CUDA's packages, at versions that torch's metadata names.
WITH_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def lines(name: str) -> list[str]:
    """Of a file of requirements, without comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


def extra(name: str) -> list[str]:
    """The requirements of an extra of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"][name]


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["dependency-groups"][name]


def locked_extras() -> list[str]:
    """The requirements of the extras that the tests need."""
    return [each for name in ("dev", "server", "terminal") for each in extra(name)]


def on(python: str) -> dict[str, str]:
    """What markers ask for, on Linux with that Python."""
    linux = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }
    return {**default_environment(), **linux, "python_version": python, "python_full_version": python + ".1"}


def pins(*names: str, python: str) -> dict[str, str]:
    """Project -> the one version that the lock files pin for that Python."""
    found: dict[str, str] = {}
    for name in names:
        for project, version, marker, _ in BLOCK.findall((ROOT / name).read_text(encoding="utf-8")):
            requirement = Requirement(f"{project}=={version}" + (f"; {marker}" if marker else ""))
            if requirement.marker is None or requirement.marker.evaluate(on(python)):
                assert found.setdefault(canonicalize_name(project), version) == version, project
    return found


@pytest.mark.parametrize("name", [*LOCKS, RAY, *CLIENTS.values()])
def test_every_release_has_its_hashes_and_no_address_is_named(name) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    rest = BLOCK.sub("", text)
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert BLOCK.search(text)
    assert "://" not in text


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_package_asks_for_is_pinned_within_its_range(python) -> None:
    core, dev = pins(*CORE, python=python), pins(*LOCKS, python=python)
    asked = [(core, each) for each in (*lines("requirements.txt"), "setuptools", "wheel")]
    for pinned, text in [*asked, *((dev, each) for each in locked_extras())]:
        requirement = Requirement(text)
        if requirement.name != "torch":
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", CLIENTS)
def test_the_clients_are_pinned_and_come_without_torch(name, python) -> None:
    pinned = pins("requirements-build.lock", CLIENTS[name], python=python)
    for text in group(name):
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text
    assert not [each for each in pinned if WITH_TORCH.fullmatch(each)]


def test_the_clients_of_npm_are_locked_with_hashes_and_name_no_registry() -> None:
    folder = ROOT / "tests" / "clients" / "node"
    asked = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
    packages = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert packages.pop("")["dependencies"] == asked
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert [name for name, each in packages.items() if not each["integrity"].startswith("sha512-")] == []
    assert [name for name, each in packages.items() if "resolved" in each] == []
    assert "ignore-scripts=true" in (folder / ".npmrc").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_files_hold_what_constraints_txt_says(python) -> None:
    chosen = [Requirement(line) for line in lines("constraints.txt")]
    dev = pins(*LOCKS, RAY, python=python)
    by_hand = {Requirement(each).name for each in extra("bench")} | {"torch"}
    for requirement in chosen:
        if requirement.name not in by_hand and (
            requirement.marker is None or requirement.marker.evaluate(on(python))
        ):
            assert dev[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)
    (torch,) = [each for each in chosen if each.name == "torch"]
    (asked,) = [each for each in map(Requirement, lines("requirements.txt")) if each.name == "torch"]
    (version,) = [each.version for each in torch.specifier]
    assert version in asked.specifier
    assert not [name for name in dev if WITH_TORCH.fullmatch(name)]


def test_nothing_that_an_installed_package_needs_is_left_out_of_the_lock_files() -> None:
    """pip is told to install what they hold and no more."""
    for names, direct in ((CORE, lines("requirements.txt")), (LOCKS, locked_extras())):
        pinned = pins(*names, python=".".join(default_environment()["python_full_version"].split(".")[:2]))
        todo, seen = [Requirement(each) for each in direct], set()
        while todo:
            requirement = todo.pop()
            name = canonicalize_name(requirement.name)
            if name in seen:
                continue
            seen.add(name)
            if not WITH_TORCH.fullmatch(name):
                assert name in pinned, f"{name}: run tools/lock.py"
            elif name != "torch":
                continue
            for each in map(Requirement, metadata.requires(name) or []):
                extras = [{"extra": one} for one in ("", *requirement.extras)]
                if each.marker is None or any(each.marker.evaluate(one) for one in extras):
                    todo.append(each)


def test_make_installs_by_hash_all_but_torch_and_the_package_itself() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^LOCKED = \$\(INSTALL\) .*--require-hashes$", text, re.MULTILINE)
    unlocked = re.findall(r"^\t.*(?:\$\(INSTALL\)|pip install)(.*)$", text, re.MULTILINE)
    # For `make test`, and for `make ray`.
    assert unlocked == 2 * [
        " --constraint constraints.txt torch",
        " --no-deps --no-build-isolation --editable .",
    ]
    for name in (*LOCKS, RAY):
        rule = text.partition("\n.venv-ray/ready: requirements")[2].partition("\n\n")[0]
        assert f" {name} " in f" requirements{rule.partition(chr(10))[0]} "
        assert f"\t$(LOCKED) --requirement {name}\n" in rule
    for name in LOCKS:
        assert re.search(rf"^\.venv/(core|dev):.* {re.escape(name)}", text, re.MULTILINE), (
            "a stamp depends on it"
        )
        assert f"\t$(LOCKED) --requirement {name}\n" in text
    # The clients' environments: one rule for all of their lock files.
    rule = "\n.venv-%/ready: $(CLIENTS)/requirements-%.lock requirements-build.lock\n"
    assert "\t$(LOCKED) --requirement $<\n" in text.partition(rule)[2].partition("\n\n")[0]
    for name in CLIENTS:
        assert f" .venv-{name}/ready " in re.search(r"^clients:.*$", text, re.MULTILINE)[0]
