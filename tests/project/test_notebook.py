"""examples/codellama.ipynb runs from its folder, and what it shows is what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "codellama.ipynb"


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path: Path) -> None:
    """Greedy and seeded, in float32, so to the letter. After a change that is meant, run tools/run_notebook.py."""
    target = tmp_path / "ran.ipynb"
    tool = ROOT / "tools" / "run_notebook.py"
    done = subprocess.run(
        [sys.executable, tool, NOTEBOOK, target],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # the cores are shared with other tests
        capture_output=True,
        text=True,
        timeout=300,  # a guard against a hang
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [cell["outputs"] for cell in code_cells(target)] == [
        cell["outputs"] for cell in code_cells(NOTEBOOK)
    ]


def test_the_notebook_shows_each_kind_of_call_with_its_output() -> None:
    cells = code_cells(NOTEBOOK)
    calls = (
        "Llama.build",
        "text_completion",
        "text_infilling",
        "chat_completion",
        ".stream(",
        "n=3",
        "seed=7",
    )
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert [call for call in (*calls, "logprobs=True") if call not in source] == []
    shown = [cell["outputs"] for cell in cells]
    assert [len(outputs) for outputs in shown[1:-1]] == [1] * (len(cells) - 2)
    assert {output["output_type"] for outputs in shown for output in outputs} == {"stream", "execute_result"}
