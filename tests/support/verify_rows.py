"""The rows of `verify`, and what a folder with one defect must show."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import tiny_tokenizer

from llama.checkpoint.verify import Finding, verify

ROWS = ["checksums", "tensors", "shard agreement", "values", "tokenizer", "infilling ids", "rope_theta"]


WQ = "layers.0.attention.wq.weight"


VOCAB = tiny_tokenizer().n_words


def write_checklist(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "checklist.chk")
    lines = [f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "checklist.chk").write_text("".join(lines))


def rows(folder: Path, **options: Any) -> dict[str, Finding]:
    found = list(verify(folder, **options))
    assert [each.name for each in found] == ROWS
    return {each.name: each for each in found}


def edit(folder: Path, shard: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def fails_alone(folder: Path, cli: Any, name: str, *words: object, skipped: tuple[str, ...] = ()) -> None:
    """The defect fails in its own row, with the words in its reason; rows that do not depend on it pass."""
    found = rows(folder)
    assert found[name].status == "fail"
    for word in words:
        assert str(word) in found[name].why, f"{word!r} is not in {found[name].why!r}"
    assert "\n" not in found[name].why
    others = {row: each.status for row, each in found.items() if row != name}
    assert "fail" not in others.values(), found
    for row in ("checksums", "tensors", "values", "tokenizer"):
        if row != name:
            assert others[row] == ("skip" if row in skipped else "pass"), found[row]
    code, printed = cli(folder)
    assert code == 1
    assert printed == {row: each.status for row, each in found.items()}
