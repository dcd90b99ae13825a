"""Damages folders, and holds a refusal to its form: the named error, one line, no file changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import tiny_tokenizer

from llama import Llama
from llama.errors import (
    LlamaError,
)

VOCAB = tiny_tokenizer().n_words


INDEX = "model.safetensors.index.json"


WQ = "model.layers.0.self_attn.q_proj.weight"


NORM = "model.norm.weight"


def snapshot(place: Path) -> dict[str, Any]:
    """Names, links and bytes of all that is there."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(place):
        for name in folders + files:
            path = Path(folder) / name
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def refuse(folder: Path, kind: type[LlamaError], *words: object) -> None:
    place = folder.parent
    before = snapshot(place)
    with pytest.raises(LlamaError) as caught:
        Llama.build(folder, None, 64, 2, 1, device="cpu")
    assert type(caught.value) is kind, repr(caught.value)
    text = str(caught.value)
    for word in words:
        assert str(word) in text, f"{word!r} is not in {text!r}"
    assert "\n" not in text
    assert len(text) < 1500
    assert snapshot(place) == before


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put(path: Path, header: dict[str, Any] | str | bytes, data: bytes) -> None:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def weights_in(folder: Path) -> Path:
    return folder / "model.safetensors"


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> dict[str, str]:
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    where: dict[str, str] = index["weight_map"]
    return where
