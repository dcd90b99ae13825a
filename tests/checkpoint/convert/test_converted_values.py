"""Laws of `convert`: every value comes through bit for bit, or is torch's own conversion of it."""

from __future__ import annotations

import json
import shutil
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import (
    DTYPES,
    WIDE,
    WQ,
    assert_is_twin,
    assert_shards,
    left_in,
    meta_folder,
    overflowing,
    to,
    weights_of,
)
from tiny_models import save_checkpoint, split
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import base, open_checkpoint
from llama.checkpoint.convert import conversion, convert
from llama.errors import (
    ConfigError,
)


def with_dtypes(*shapes: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Each shape with and without grouped heads, and each of these with one dtype or another: shapes move values, and
    look at no dtype."""
    grouped = [(*shape, kv_heads) for shape in shapes for kv_heads in (None, 4)]
    return [(*each, dtype) for each, dtype in zip(grouped, cycle(DTYPES), strict=False)]


@pytest.mark.parametrize(
    ("n", "m", "kv_heads", "dtype"),
    with_dtypes((1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 4), (4, 2)),
    ids=str,
)
def test_shards_there_and_back(
    tmp_path: Path, n: int, m: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    weights = weights_of(kv_heads, dtype)
    meta_folder(tmp_path / "a", n, kv_heads, dtype)
    done = to("meta", tmp_path / "a", tmp_path / "b", shards=m)
    assert (done.folder, done.dtype) == (tmp_path / "b", dtype)
    assert_shards(tmp_path / "b", weights, m)
    to("meta", tmp_path / "b", tmp_path / "c", shards=n)
    assert_shards(tmp_path / "c", weights, n)


@pytest.mark.parametrize(("shards", "kv_heads", "dtype"), with_dtypes((1,), (2,), (4,)), ids=str)
def test_to_hugging_face_and_back(
    tmp_path: Path, shards: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    weights = weights_of(kv_heads, dtype)
    meta_folder(tmp_path / "a", shards, kv_heads, dtype)
    to("hf", tmp_path / "a", tmp_path / "b")
    assert_is_twin(tmp_path / "b", {**WIDE, "n_kv_heads": kv_heads}, weights)
    to("meta", tmp_path / "b", tmp_path / "c", shards=shards)
    assert_shards(tmp_path / "c", weights, shards)


@pytest.mark.parametrize("window", [1, 700, 3000])
def test_tensors_larger_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(conversion, "_WINDOW", window)
    monkeypatch.setattr(base, "_WINDOW", window)
    weights = weights_of(4, torch.float32)
    meta_folder(tmp_path / "a", 2)
    to("meta", tmp_path / "a", tmp_path / "b", shards=4)
    assert_shards(tmp_path / "b", weights, 4)
    to("hf", tmp_path / "b", tmp_path / "c")
    assert_is_twin(tmp_path / "c", {**WIDE, "n_kv_heads": 4}, weights)
    to("meta", tmp_path / "c", tmp_path / "d", shards=1, dtype=torch.bfloat16)
    assert_shards(tmp_path / "d", {k: v.to(torch.bfloat16) for k, v in weights.items()}, 1)


@pytest.mark.parametrize("layout", ["meta", "hf"])
@pytest.mark.parametrize("new", DTYPES, ids=str)
@pytest.mark.parametrize("old", DTYPES, ids=str)
def test_another_dtype_is_torchs_own_conversion(
    tmp_path: Path, old: torch.dtype, new: torch.dtype, layout: str
) -> None:
    meta_folder(tmp_path / "a", 2, 4, old)
    to(layout, tmp_path / "a", tmp_path / "b", dtype=new)
    expected = {name: value.to(new) for name, value in weights_of(4, old).items()}
    if layout == "meta":
        assert_shards(tmp_path / "b", expected, 2)
    else:
        assert_is_twin(tmp_path / "b", {**WIDE, "n_kv_heads": 4}, expected)
        assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == str(new)[6:]


def test_hugging_face_to_hugging_face(tmp_path: Path) -> None:
    meta_folder(tmp_path / "a")
    to("hf", tmp_path / "a", tmp_path / "b")
    to("hf", tmp_path / "b", tmp_path / "c")
    assert left_in(tmp_path / "b") == left_in(tmp_path / "c")
    for name in left_in(tmp_path / "b"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_tied_embeddings_become_two_tensors(tmp_path: Path) -> None:
    from hf_models import random_model, save

    model = random_model(2, True)
    save(model, tmp_path / "a")
    to("meta", tmp_path / "a", tmp_path / "b")
    tensors = torch.load(tmp_path / "b" / "consolidated.00.pth", weights_only=True)
    embedding = model.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(tensors["tok_embeddings.weight"], embedding)
    assert torch.equal(tensors["output.weight"], embedding)


@pytest.mark.parametrize(("blanks", "tied"), [*((i, i % 3 == 1) for i in range(8)), (1, False), (2, True)])
def test_an_unaligned_file_converts_and_loads_like_an_aligned_one(
    tmp_path: Path, meta: Path, blanks: int, tied: bool
) -> None:
    """Its weights are read in windows, some more than once, and stay what they are."""
    to("hf", meta, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b" " * blanks
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    weights = dict(weights_of(4, torch.float32))
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    source = open_checkpoint(tmp_path / "hf")
    for shards in (2, 4):
        convert(source, tmp_path / f"mp{shards}", layout="meta", shards=shards)
        assert_shards(tmp_path / f"mp{shards}", weights, shards)


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_values_that_float16_has_not_are_refused(tmp_path: Path, layout: str) -> None:
    overflowing(tmp_path / "a")
    with pytest.raises(
        ConfigError, match=rf"{WQ} holds values up to 70\d\d\d.*float16 ends at 65504; keep float32"
    ) as caught:
        to(layout, tmp_path / "a", tmp_path / "b", dtype=torch.float16)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == ["a"]


def test_values_that_bfloat16_has_not_are_refused(tmp_path: Path) -> None:
    """float32 goes a little further than bfloat16 rounds to."""
    overflowing(tmp_path / "a", 3.4e38)
    with pytest.raises(ConfigError, match=r"values up to 3\.4e\+38, but bfloat16 ends"):
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.bfloat16)
    assert left_in(tmp_path) == ["a"]


def test_values_of_float64_that_no_dtype_has_are_refused(tmp_path: Path) -> None:
    weights = {name: value.double() for name, value in weights_of(4, torch.float32).items()}
    weights[WQ] = weights[WQ].clone()
    weights[WQ][3, 3] = 1e300
    save_checkpoint(
        tmp_path / "a", {**WIDE, "n_kv_heads": 4}, weights, tiny_model_path(), dtype=torch.float64
    )
    with pytest.raises(ConfigError, match=r"holds values up to 1e\+300, but float32 ends"):
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.float32)


def test_infinite_values_stay_as_they_are(tmp_path: Path) -> None:
    """They are for `verify` to find; float16 has them too."""
    for value in (float("inf"), float("nan")):
        overflowing(tmp_path / "a", value)
        tensors = torch.load(tmp_path / "a" / "consolidated.00.pth", weights_only=True)
        tensors[WQ].fill_(value)
        torch.save(tensors, tmp_path / "a" / "consolidated.00.pth")
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.float16)
        for i in range(2):
            before = torch.load(tmp_path / "a" / f"consolidated.{i:02d}.pth", weights_only=True)[WQ].half()
            after = torch.load(tmp_path / "b" / f"consolidated.{i:02d}.pth", weights_only=True)[WQ]
            assert torch.equal(before.view(torch.int16), after.view(torch.int16))
        shutil.rmtree(tmp_path / "a")
        shutil.rmtree(tmp_path / "b")


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    for layout, dtype in (("meta", torch.float32), ("hf", torch.bfloat16)):
        counted: list[int] = []
        meta_folder(tmp_path / "a", 2)
        done = to(layout, tmp_path / "a", tmp_path / layout, dtype=dtype, progress=counted.append)
        if layout == "hf":
            assert sum(counted) == done.nbytes
        else:  # norms are in both shards
            assert (
                sum(counted)
                == done.nbytes
                == sum(value.nbytes for shard in split(weights_of(4, dtype), 2) for value in shard.values())
            )
