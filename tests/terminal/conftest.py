"""The commands, run in this process, with an input of their own."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from endless_model import endless_checkpoint

from llama.cli import main


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose every answer is words until it is stopped or cut."""
    return endless_checkpoint(tmp_path_factory.mktemp("checkpoints") / "endless")


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
