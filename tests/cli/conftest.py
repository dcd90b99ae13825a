"""Checkpoints of both layouts, and the commands run in this process."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.cli import main

VOCAB = tiny_tokenizer().n_words


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "meta", SHAPE, random_weights(SHAPE, VOCAB), tiny_model_path(), 2)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    hugging_face_twin(SHAPE, random_weights(SHAPE, VOCAB)).bfloat16().save_pretrained(tmp_path / "hf")
    shutil.copy(tiny_model_path(), tmp_path / "hf" / "tokenizer.model")
    return tmp_path / "hf"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


class Ascii(io.TextIOWrapper):
    """A terminal that knows ASCII only, and says so only when it is too late."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)

    def text(self) -> str:
        buffer: Any = self.buffer
        return str(buffer.getvalue().decode("ascii"))


@pytest.fixture
def run_ascii(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of the command, on an ASCII terminal; all of it is printable."""

    def run(*arguments: object) -> tuple[int, str, str]:
        out, err = Ascii(), Ascii()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                code = main(list(map(str, arguments)))
            except SystemExit as stop:  # argparse
                code = int(stop.code or 0)
        for text in (out.text(), err.text()):
            assert all(line.isprintable() and len(line) <= 4000 for line in text.split("\n")), repr(text)
        return code, out.text(), err.text()

    return run
