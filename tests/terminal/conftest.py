"""The commands, run in this process, with an input of their own."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama.cli import main


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., SimpleNamespace]:
    """Run `codellama` on an input -> code, out, err."""

    def command(*arguments: object, given: str | bytes = "") -> SimpleNamespace:
        content = given if isinstance(given, bytes) else given.encode()
        (tmp_path / "stdin").write_bytes(content)
        capsys.readouterr()
        with (tmp_path / "stdin").open("rb") as raw:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
            os.environ.pop("CODELLAMA_API_KEY", None)
            try:
                code = main(list(map(str, arguments)))
            except SystemExit as stop:  # argparse
                code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return command
