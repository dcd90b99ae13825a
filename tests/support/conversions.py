"""Conversions for tests: tiny models to convert, and what a converted folder must hold.

The split axes and the rotary order are those of tiny_models.py; files are read by torch.load and safetensors.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint, split
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import Converted, convert
from llama.checkpoint.layouts.hugging_face import COMPANION_FILES
from llama.errors import LlamaError

WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 2}
VOCAB = tiny_tokenizer().n_words
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WQ = "layers.0.attention.wq.weight"
# A smaller model, for tests of files and folders.
TINY: dict[str, Any] = {**SHAPE, "dim": 32, "n_layers": 1, "n_heads": 4}
TINY_WEIGHTS = random_weights(TINY, VOCAB)


@functools.cache
def weights_of(kv_heads: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    params = {**WIDE, "n_kv_heads": kv_heads}
    return {name: value.to(dtype) for name, value in random_weights(params, VOCAB).items()}


def meta_folder(
    folder: Path, shards: int = 1, kv_heads: int | None = 4, dtype: torch.dtype = torch.float32
) -> Path:
    params = {**WIDE, "n_kv_heads": kv_heads}
    return save_checkpoint(folder, params, weights_of(kv_heads, dtype), tiny_model_path(), shards, dtype)


def to(layout: str, folder: Path, target: Path, **options: Any) -> Converted:
    return convert(open_checkpoint(folder), target, layout=layout, **options)


def assert_shards(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    """The files are exactly what Meta's ranks would have saved."""
    assert len(list(folder.glob("consolidated.*"))) == shards
    for i, expected in enumerate(split(weights, shards)):
        found = torch.load(folder / f"consolidated.{i:02d}.pth", weights_only=True)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), f"{name} in shard {i} of {shards}"


def assert_is_twin(folder: Path, params: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """The files are exactly transformers' own weights."""
    expected = hugging_face_twin(params, weights).state_dict()
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    assert found.keys() == expected.keys()
    dtype = weights[WQ].dtype
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value.to(dtype)), name


def left_in(folder: Path) -> list[str]:
    # A folder that a conversion made for its target goes with it.
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def overflowing(folder: Path, value: float = 70000.0) -> Path:
    meta_folder(folder, 2)
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    tensors[WQ][3, 3] = value
    torch.save(tensors, path)
    return folder


def content(folder: Path) -> dict[str, Any]:
    """Everything below a folder: bytes of files, targets of links, None for anything else."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def refused(
    error: type[LlamaError],
    layout: str,
    source: Path,
    target: Path,
    everything: Path | None = None,
    **options: Any,
) -> str:
    """The message. Nothing below `everything` (by default the parents of source and target) has changed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    places = [everything] if everything is not None else [source.parent, target.parent]
    before = [content(place) for place in places]
    with pytest.raises(LlamaError) as caught:
        to(layout, source, target, **options)
    assert type(caught.value) is error, repr(caught.value)
    assert [content(place) for place in places] == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_everything(hf: Path) -> Path:
    """All files that go along from one Hugging Face folder to the next."""
    for name in COMPANION_FILES:
        if not (hf / name).exists():
            (hf / name).write_text("{}")
    return hf
