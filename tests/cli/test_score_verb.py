"""Laws of `codellama score`: a row for each file, in order; what cannot be scored is named before loading."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from llama import Llama

TEXTS = {
    "one.py": "def return self\r\n",
    "empty.py": "",
    "mark.py": "\ufeffvalue list\n" * 40,
    "nul.bin": "x\0y",
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text.encode())
    return [tmp_path / name for name in TEXTS]


def table(text: str) -> dict[str, list[str]]:
    """What stands in the last column -> the figures before it."""
    head, *rows = [line.split(maxsplit=4) for line in text.splitlines()]
    assert head == ["bits/byte", "nats/token", "tokens", "bytes", "file"]
    return {name: figures for *figures, name in rows}


def figures(llama: Llama, text: str) -> list[str]:
    """A row by the library's own log-probabilities, in one window."""
    given = llama.text_completion([text], 0, max_gen_len=0, logprobs=True, echo=True)[0]["logprobs"][1:]
    nats, size = -math.fsum(given), len(text.encode())
    bits, per_token = (
        (f"{nats / math.log(2) / size:.4f}", f"{nats / len(given):.4f}") if given else ("-", "-")
    )
    return [bits, per_token, f"{len(given):,}", f"{size:,}"]


def test_files_are_scored_as_they_are_in_the_order_given(
    run: Any, tiny_checkpoint: Path, files: list[Path]
) -> None:
    """Line ends and byte order marks count; the last row is of all together."""
    code, out, err = run("score", tiny_checkpoint, *files)
    assert code == 0, err
    found = table(out)
    assert list(found) == [*map(str, files), "all 4"]
    llama = Llama.build(tiny_checkpoint, None, 1024, 4, device="cpu")
    for path, text in zip(files, TEXTS.values(), strict=True):
        assert found[str(path)] == figures(llama, text)
    assert found["all 4"][3] == f"{sum(len(text.encode()) for text in TEXTS.values()):,}"


def test_one_file_needs_no_total_and_may_be_empty(run: Any, tiny_checkpoint: Path, files: list[Path]) -> None:
    code, out, _ = run("score", tiny_checkpoint, files[1])
    assert (code, table(out)) == (0, {str(files[1]): ["-", "-", "0", "0"]})


def test_a_dash_is_standard_input(
    run: Any, tiny_checkpoint: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files[0].read_bytes())))
    code, out, _ = run("score", tiny_checkpoint, "-", files[0])
    found = table(out)
    assert code == 0
    assert found["-"] == found[str(files[0])]


def test_a_longer_context_predicts_better_or_the_same_tokens(
    run: Any, tiny_checkpoint: Path, files: list[Path]
) -> None:
    """--max-seq-len is the window: another one gives other figures of the same tokens."""
    rows = [
        table(run("score", tiny_checkpoint, files[2], "--max-seq-len", n)[1])[str(files[2])] for n in (8, 900)
    ]
    assert rows[0][2:] == rows[1][2:]
    assert rows[0][0] != rows[1][0]


def test_all_that_cannot_be_scored_is_named_before_the_model_is_loaded(
    run: Any, tmp_path: Path, files: list[Path]
) -> None:
    (tmp_path / "latin.py").write_bytes("é\n".encode("latin-1"))
    nowhere = tmp_path / "no model here"
    code, out, err = run("score", nowhere, files[0], tmp_path, tmp_path / "latin.py", tmp_path / "gone.py")
    assert (code, out) == (1, "")
    assert [line.partition(str(tmp_path))[0] for line in err.splitlines()] == [
        "error: Is a directory: ",
        "error: ",
        "error: No such file or directory: ",
    ]
    assert "latin.py is not UTF-8: byte 0xe9 in line 1" in err
    assert run("score", nowhere, files[0])[0] == 1
    assert "no model here" in run("score", nowhere, files[0])[2]


def test_standard_input_is_read_once(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    code, _, err = run("score", tmp_path, "-", "-")
    assert code == 1
    assert "- is there twice" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\xff")))
    assert "standard input is not UTF-8" in run("score", tmp_path, "-")[2]


def test_a_file_is_needed(run: Any, tmp_path: Path) -> None:
    code, _, err = run("score", tmp_path)
    assert code == 2
    assert "FILE" in err


def test_a_hostile_name_is_printed_escaped(run_ascii: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "a\x1b[2J\n漢\u202e"
    hostile.write_text("def")
    code, out, _ = run_ascii("score", tiny_checkpoint, hostile)
    assert code == 0
    assert r"a\x1b[2J\n" in out
