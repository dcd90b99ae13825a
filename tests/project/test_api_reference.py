"""`make docs`: the generator finds every public name and warns of nothing."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from forked import Forked

import llama

ROOT = Path(__file__).resolve().parents[2]


def write_it(folder: Path) -> int:
    sys.argv = ["api_reference.py", str(folder)]
    runpy.run_path(
        str(ROOT / "tools" / "api_reference.py"), run_name="__main__"
    )  # a warning is an error in it
    return 0


def test_the_api_reference_shows_every_public_name(tmp_path: Path) -> None:
    done = Forked(tmp_path / "said", write_it, tmp_path)
    assert (done.wait(), done.stderr) == (0, "")
    page = (tmp_path / "llama.html").read_text(encoding="utf-8")
    assert [name for name in llama.__all__ if f'<section id="{name}">' not in page] == []
    assert 'id="Llama.build"' in page
    for name in ("generation", "errors", "engine", "serving"):
        assert (tmp_path / "llama" / f"{name}.html").exists()


def test_make_docs_writes_it_to_a_folder_that_git_ignores() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\t$(BIN)/python tools/api_reference.py build/api\n" in makefile
    assert "build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
