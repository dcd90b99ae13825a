"""Laws of output: whatever names, tensors, configs and command lines hold, each line the program prints is one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile_text import ESCAPED, FILE_NAME, HOSTILE

from llama.checkpoint import convert as converting


def refused(run_ascii: Any, *arguments: object, code: int = 1) -> str:
    """One line on stderr, and nothing else."""
    found, out, err = run_ascii(*arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return str(err)


def test_a_folder_with_a_hostile_name(run_ascii: Any, meta: Path) -> None:
    """Sound inside, of Hugging Face's layout, since torch opens no name that is not UTF-8."""
    hostile = meta.parent / FILE_NAME
    assert run_ascii("convert", meta, hostile, "--to", "hf")[:2] == (
        0,
        run_ascii("convert", meta, meta.parent / "plain", "--to", "hf")[1].replace("plain", ESCAPED),
    )
    assert run_ascii("info", hostile)[::2] == (0, "")
    assert run_ascii("verify", hostile)[::2] == (0, "")
    code, out, _ = run_ascii("estimate", "--model", hostile)
    assert code == 0
    assert ESCAPED in out.splitlines()[0]
    assert ESCAPED in refused(run_ascii, "convert", meta, hostile, "--to", "hf")
    assert ESCAPED in refused(run_ascii, "info", hostile / "inner")
    for verb in (("info",), ("verify",), ("estimate", "--model")):
        assert "none" in refused(run_ascii, *verb, meta.parent / f"no{FILE_NAME}")
    assert ESCAPED in refused(run_ascii, "info", meta, "--tokenizer", hostile / "none.model")


def test_hostile_names_of_files(run_ascii: Any, meta: Path) -> None:
    """In a listing of what is there, in a checklist, in what stands in the way."""
    (meta.parent / "other").mkdir()
    (meta.parent / "other" / FILE_NAME).touch()
    assert ESCAPED in refused(run_ascii, "info", meta.parent / "other")
    assert ESCAPED in refused(run_ascii, "convert", meta, meta.parent / "other", "--to", "hf", "--force")
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in meta.iterdir()]
    (meta / "checklist.chk").write_text("".join(sums))
    (meta / f"consolidated.{FILE_NAME}.pth").touch()
    code, out, _ = run_ascii("verify", meta, "--quick")
    assert code == 0
    code, out, _ = run_ascii("verify", meta)
    assert code == 1
    assert f"consolidated.{ESCAPED}.pth is not in checklist.chk" in out
    assert [line[:4] for line in out.splitlines()] == ["fail", *["pass"] * 4, "skip", "skip"]


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_hostile_names_of_tensors_and_keys(run_ascii: Any, meta: Path, layout: str) -> None:
    text = HOSTILE.replace("\ud800\udce9", "")  # a header is UTF-8
    if layout == "meta":
        path = meta / "consolidated.00.pth"
        torch.save(torch.load(path, weights_only=True) | {text: torch.ones(1)}, path)
        config = meta / "params.json"
    else:
        assert run_ascii("convert", meta, meta.parent / "hf", "--to", "hf")[0] == 0
        meta = meta.parent / "hf"
        path = meta / "model.safetensors"
        safetensors.torch.save_file(safetensors.torch.load_file(path) | {text: torch.ones(1)}, path)
        config = meta / "config.json"
    for verb in (("info",), ("estimate", "--model"), ("convert",)):
        more = (meta.parent / "out", "--to", "meta") if verb == ("convert",) else ()
        assert r"\x1b[2J" in refused(run_ascii, *verb, meta, *more)
    code, out, _ = run_ascii("verify", meta)
    assert code == 1
    assert r"\x1b[2J" in out
    content = json.loads(config.read_text())
    config.write_text(
        json.dumps(content | {HOSTILE: HOSTILE, "model_type": HOSTILE, "hidden_act": HOSTILE * 5000})
    )
    assert r"\x1b[2J" in refused(run_ascii, "info", meta)


def test_hostile_words_of_the_command_line(run_ascii: Any, meta: Path) -> None:
    for arguments in (
        (HOSTILE,),
        ("info", meta, FILE_NAME),
        ("info", HOSTILE),
        ("convert", meta, "b", "--to", HOSTILE),
        ("convert", meta, "a\0b", "--to", "hf"),
        ("convert", meta, "", "--to", "hf", "--force"),
        ("info", ""),
        ("info", meta, "--tokenizer", ""),
        ("estimate", "--model", "7b", "--seq", HOSTILE),
    ):
        code, out, err = run_ascii(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.splitlines()[-1].startswith("codellama")
        assert not any(line.startswith("error: none") for line in err.splitlines())
    assert r"'a\x1b[2J" in refused(run_ascii, "estimate", "--model", HOSTILE)


@pytest.mark.parametrize(
    "text", ["0", "-1", "1" + "0" * 400, "9" * 5000, "²", "1.5", "nan", "1e3", "", "٣", "00"]
)
@pytest.mark.parametrize("flag", ["--mp", "--seq", "--batch"])
def test_a_number_out_of_range_is_wrong_usage(run_ascii: Any, flag: str, text: str) -> None:
    code, out, err = run_ascii("estimate", "--model", "7b", f"{flag}={text}")
    assert (code, out) == (2, "")
    assert f"argument {flag}: " in err.splitlines()[-1]
    assert "_positive" not in err


def test_the_largest_numbers_are_answered(run_ascii: Any) -> None:
    most = "9" * 12
    assert (
        run_ascii("estimate", "--model", "70b", "--seq", most, "--batch", most, "--dtype", "float32")[0] == 0
    )
    assert "size 999999999999" in refused(run_ascii, "estimate", "--model", "7b", "--mp", most)


def test_convert_tells_the_names_it_wrote_in_ascii(
    run_ascii: Any, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = converting.Converted(meta / FILE_NAME, (FILE_NAME,), 1, torch.float32)
    monkeypatch.setattr(converting, "convert", lambda *_, **__: done)
    code, out, _ = run_ascii("convert", meta, meta.parent / "x", "--to", "hf")
    assert code == 0
    assert out.splitlines()[1] == f"  {ESCAPED}"
