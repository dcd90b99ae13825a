"""The list of `make mutants` stays one that can run: each change has its place in the code, each test is there."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_mutant_has_its_place_and_its_tests() -> None:
    spec = importlib.util.spec_from_file_location("mutants_run", ROOT / "tests" / "mutants" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(runner)
        found = runner.mutants()  # SystemExit, with all that is wrong, where one has no place
    finally:
        sys.path[:] = path
    assert len(found) > 100
    names = {test.partition("[")[0] for mutant in found for test in mutant.tests}
    known: dict[str, set[str]] = {}
    for file in {name.partition("::")[0] for name in names}:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        known[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    gone = [n for n in names if "::" in n and n.rpartition("::")[2] not in known[n.partition("::")[0]]]
    assert gone == []
