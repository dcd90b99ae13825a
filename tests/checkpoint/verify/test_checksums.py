"""Laws of `verify`'s first row: md5 of checklist.chk, and the CRCs in a .pth."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from verify_rows import ROWS, WQ, edit, fails_alone, rows, write_checklist

from llama.checkpoint import verify as verifying
from llama.checkpoint.verify import verify
from llama.checkpoint.weight_files.pth import open_pth, records_of


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model", "consolidated.01.pth"])
def test_a_wrong_md5(meta: Path, cli: Any, name: str) -> None:
    path = meta / "checklist.chk"
    digest = hashlib.md5((meta / name).read_bytes()).hexdigest()
    path.write_text(path.read_text().replace(digest, f"{int(digest, 16) ^ 1:032x}"))
    fails_alone(meta, cli, "checksums", name, "checklist.chk")


def test_one_flipped_bit_of_a_weight(meta: Path, cli: Any) -> None:
    path = meta / "consolidated.00.pth"
    data = bytearray(path.read_bytes())
    at = path.read_bytes().index(torch.load(path, weights_only=True)[WQ].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    fails_alone(meta, cli, "checksums", "consolidated.00.pth")


def flip_in(path: Path, name: str) -> None:
    """The last bit of one value: still finite, of the same shape, in the same place."""
    stored = open_pth(path)[name].clone()
    with path.open("r+b") as file:
        at = file.read().index(stored.reshape(-1)[:8].view(torch.uint8).numpy().tobytes())
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 1]))


def test_without_a_checklist_the_crcs_in_a_pth_are_checked(meta: Path, cli: Any) -> None:
    (meta / "checklist.chk").unlink()
    found = rows(meta)["checksums"]
    assert found.status == "pass"
    assert "2 of 2 weight files have the CRCs" in found.why
    flip_in(meta / "consolidated.01.pth", WQ)
    key = list(torch.load(meta / "consolidated.01.pth", weights_only=True)).index(WQ)
    fails_alone(meta, cli, "checksums", "consolidated.01.pth is damaged", f"consolidated.01/data/{key}'")
    assert rows(meta, quick=True)["checksums"].status == "skip"


def test_a_checklist_of_a_damaged_pth_does_not_hide_it(meta: Path, cli: Any) -> None:
    flip_in(meta / "consolidated.00.pth", WQ)
    write_checklist(meta)
    fails_alone(meta, cli, "checksums", "consolidated.00.pth is damaged", "CRC")


def test_a_pth_that_was_saved_without_crcs_is_sound(meta: Path) -> None:
    (meta / "checklist.chk").unlink()
    had = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        edit(meta, 0, lambda _: None)
    finally:
        torch.serialization.set_crc32_options(had)
    found = rows(meta)["checksums"]
    assert found.status == "pass"
    assert "1 of 2 weight files have the CRCs" in found.why


def test_the_crcs_in_a_bin_are_checked(hf: Path, cli: Any) -> None:
    path = hf / "pytorch_model.bin"
    torch.save(safetensors.torch.load_file(hf / "model.safetensors"), path)
    (hf / "model.safetensors").unlink()
    assert rows(hf)["checksums"].status == "pass"
    flip_in(path, "model.layers.0.self_attn.q_proj.weight")
    fails_alone(hf, cli, "checksums", "pytorch_model.bin is damaged")


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_crcs_are_the_same_however_a_file_is_read(
    meta: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Chunks end within records, between them, and in headers."""
    monkeypatch.setattr(verifying, "_CHUNK", size)
    (meta / "checklist.chk").unlink()
    if size < 64:  # small files only: a byte at a time is slow
        for i in range(2):
            torch.save({"a": torch.arange(3), "b": torch.arange(2)}, meta / f"consolidated.{i:02d}.pth")
    found = next(iter(verify(meta)))
    assert found.status == "pass"
    flipped = bytearray((meta / "consolidated.01.pth").read_bytes())
    flipped[next(iter(records_of(meta / "consolidated.01.pth").values())).start] ^= 1
    (meta / "consolidated.01.pth").write_bytes(flipped)
    assert next(iter(verify(meta))).status == "fail"


def test_a_file_that_is_cut_while_it_is_verified_fails_its_row(meta: Path) -> None:
    (meta / "checklist.chk").unlink()
    found = []
    for row in verify(meta):
        found.append(row)
        if row.name == "tensors":
            os.truncate(meta / "consolidated.01.pth", (meta / "consolidated.01.pth").stat().st_size - 1)
    assert [each.name for each in found] == ROWS
    for row in found[2:4]:
        assert row.status == "fail"
        assert "was cut from" in row.why


def test_a_file_of_the_checklist_that_is_missing(meta: Path, cli: Any) -> None:
    path = meta / "checklist.chk"
    path.write_text(path.read_text() + f"{'0' * 32}  LICENSE\n")
    fails_alone(meta, cli, "checksums", "LICENSE is missing")


def test_a_shard_that_the_checklist_does_not_know(meta: Path, cli: Any) -> None:
    path = meta / "checklist.chk"
    lines = [line for line in path.read_text().splitlines(keepends=True) if "01.pth" not in line]
    path.write_text("".join(lines))
    fails_alone(meta, cli, "checksums", "consolidated.01.pth is not in checklist.chk")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/x", "..", "."])
def test_a_checklist_that_leads_out_of_its_folder(meta: Path, cli: Any, name: str) -> None:
    """Even where the file is there and has that md5: verify must not tell whether it does."""
    (meta.parent / "secret").write_text("x")
    (meta / "sub").mkdir()
    (meta / "sub" / "x").write_text("x")
    digest = hashlib.md5(b"x").hexdigest()
    path = meta / "checklist.chk"
    path.write_text(path.read_text() + f"{digest}  {name}\n")
    fails_alone(meta, cli, "checksums", name)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("<!DOCTYPE html>", "<!DOCTYPE html>"),
        ("abc  params.json\n", "abc  params.json"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_checklist_that_is_none(meta: Path, cli: Any, text: str | bytes, word: str) -> None:
    raw = text.encode() if isinstance(text, str) else text
    (meta / "checklist.chk").write_bytes(raw)
    fails_alone(meta, cli, "checksums", word)


def test_a_checklist_as_other_programs_write_it(meta: Path) -> None:
    """A star from md5sum -b, ./ from find, CR LF from Windows, digests in capitals."""
    path = meta / "checklist.chk"
    lines = [line.split() for line in path.read_text().splitlines()]
    for mark in ("*", " ./", "*./"):
        path.write_bytes("".join(f"{digest.upper()} {mark}{name}\r\n" for digest, name in lines).encode())
        assert rows(meta)["checksums"].status == "pass"
