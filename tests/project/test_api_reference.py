"""`make docs`: the generator finds every public name and warns of nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llama

ROOT = Path(__file__).resolve().parents[2]


def test_the_api_reference_shows_every_public_name(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "api_reference.py"  # a warning is an error in it
    done = subprocess.run([sys.executable, tool, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "llama.html").read_text(encoding="utf-8")
    assert [name for name in llama.__all__ if f'<section id="{name}">' not in page] == []
    assert 'id="Llama.build"' in page
    for name in ("generation", "errors", "engine", "serving"):
        assert (tmp_path / "llama" / f"{name}.html").exists()


def test_make_docs_writes_it_to_a_folder_that_git_ignores() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\t$(BIN)/python tools/api_reference.py build/api\n" in makefile
    assert "build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
