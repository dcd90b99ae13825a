"""The names at the top level of `llama`: complete, the same objects as at their homes, and loaded on first use."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import llama
from llama import errors

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in `sys.modules` after `statement`, in a process of its own."""
    program = (
        f"{statement}\nimport json, sys; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", llama.__all__)
def test_a_public_name_is_the_object_of_its_home(name: str) -> None:
    home = import_module(f"llama.{llama._HOMES.get(name, 'errors')}")
    assert name in home.__all__
    assert getattr(llama, name) is getattr(home, name)


def test_all_errors_are_public_and_all_public_names_are_listed() -> None:
    assert set(errors.__all__) <= set(llama.__all__)
    assert set(llama._HOMES) == set(llama.__all__) - set(errors.__all__)
    assert set(llama.__all__) <= set(dir(llama))
    assert len(set(llama.__all__)) == len(llama.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'llama' has no attribute 'Lama'"):
        llama.Lama  # noqa: B018


@pytest.mark.parametrize("statement", ["import llama", "from llama import SamplingError", "import llama.cli"])
def test_importing_llama_and_its_errors_loads_only_the_standard_library(statement: str) -> None:
    ours = loaded_by("pass")  # what site loads, such as the hook of an editable install
    added = loaded_by(statement) - ours
    assert added - set(sys.stdlib_module_names) == {"llama"}


@pytest.mark.parametrize("module", ["__init__", "model"])
def test_a_type_checker_sees_no_getattr_that_makes_any_name_valid(module: str) -> None:
    tree = ast.parse((ROOT / "llama" / f"{module}.py").read_text("utf-8"))
    assert not [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
    ]
