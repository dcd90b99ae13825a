"""Flags of verbs that talk to a server: what says how a model is loaded is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.cli.app import main


@pytest.mark.parametrize(
    "verb", [["chat"], ["complete"], ["infill"], ["batch"], ["eval", "humaneval"]], ids=" ".join
)
@pytest.mark.parametrize(
    "option",
    [
        ["--adapter", "folder"],
        ["--quantize", "int8"],
        ["--cache-dtype", "int8"],
        ["--dtype", "float32"],
        ["--device", "cpu"],
        ["--tokenizer", "file"],
    ],
    ids=lambda option: option[0],
)
def test_how_a_model_is_loaded_is_not_said_of_a_server(
    verb: list[str], option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be as if it had been asked for nothing."""
    files = [str(tmp_path / "in"), str(tmp_path / "out")] if verb == ["batch"] else []
    assert main([*verb, "http://127.0.0.1:9", *files, *option]) == 1
    told = f"error: {option[0]} says how a model of DIR is loaded; the server at http://127.0.0.1:9 has loaded its own"
    assert told in capsys.readouterr().err
