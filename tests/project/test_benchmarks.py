"""The benchmarks start: each can be imported, and its --help runs nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
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


class _Says:
    """A peer that continues each prompt with the same ids."""

    def __init__(self, name: str, *ids: int) -> None:
        self.name, self.ids = name, list(ids)

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        return [self.ids[:new] for _ in prompts]


@pytest.mark.parametrize(
    ("ids", "same", "refused"),
    [
        ((5, 6, 7, 8, 9, 1), True, False),
        ((5, 6, 7, 8, 9, 2), True, True),  # other ids in float32: other weights, or another rotation
        ((5, 6, 7, 8, 9, 2), False, False),  # a near-tie of 16 bits
        ((5, 6, 7, 8, 9), False, True),  # it does less work
    ],
)
def test_a_peer_that_does_other_work_is_not_measured(monkeypatch, ids, same, refused):
    monkeypatch.syspath_prepend(FOLDER)
    peers = importlib.import_module("peers")
    beside = [_Says("ours", 5, 6, 7, 8, 9, 1), _Says("theirs", *ids)]
    with pytest.raises(SystemExit, match="theirs continues") if refused else contextlib.nullcontext():
        peers.warm(beside, same)


def test_a_row_of_a_table_has_a_cell_for_each_peer_and_the_ratios_of_each_round(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    peers = importlib.import_module("peers")
    taken = {"ours": [2.0, 9.0, 3.0], "theirs": [1.0, 3.0, 6.0]}
    peers.report("decode", "tokens/s", taken, ["ours", "absent", "theirs"])
    assert capsys.readouterr().out == "| decode | 3.0 |  | 3.0 | tokens/s |  | 2.00 x (0.50 to 3.00) |\n"
