"""The benchmarks start: each can be imported, and its --help runs nothing."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported_and_knows_its_flags(path, monkeypatch):
    """Fire hands `--help` to a `main` that takes any flag, as one more flag, and so runs it."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    classes = [
        each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == spec.name
    ]
    assert [each for each in classes if inspect.isabstract(each)] == []  # its base has got a new method
    if hasattr(module, "main"):
        kinds = [each.kind for each in inspect.signature(module.main).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert inspect.getdoc(module.main) or path.stem == "linear"  # argparse, with the module's docstring
