"""Undamaged folders, and the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path
from verify_rows import ROWS, VOCAB, write_checklist

from llama.cli import main


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """Two shards, with a checklist."""
    folder = save_checkpoint(tmp_path / "meta", SHAPE, random_weights(SHAPE, VOCAB), tiny_model_path(), 2)
    write_checklist(folder)
    return folder


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    hugging_face_twin(SHAPE, random_weights(SHAPE, VOCAB)).save_pretrained(tmp_path / "hf")
    shutil.copy(tiny_model_path(), tmp_path / "hf" / "tokenizer.model")
    return tmp_path / "hf"


@pytest.fixture
def both(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    return lambda name: request.getfixturevalue(name)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str]]]:
    """Exit code and the status of each row that the command printed."""

    def run(folder: Path, *more: str) -> tuple[int, dict[str, str]]:
        capsys.readouterr()  # transformers' progress bars
        code = main(["verify", str(folder), *more])
        out, err = capsys.readouterr()
        printed = {line[6:21].strip(): line[:4] for line in out.splitlines()}
        assert list(printed) == ROWS, out
        failed = list(printed.values()).count("fail")
        assert err == (f"error: {failed} of the checks failed\n" if failed else "")
        return code, printed

    return run
