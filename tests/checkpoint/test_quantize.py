"""Laws of quantizing while reading: which matrices, the same codes in every window, the bytes that they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import Checkpoint, open_checkpoint
from llama.checkpoint.memory import weight_memory
from llama.errors import CheckpointFormatError, ConfigError
from llama.kernels.quantized import dequantize, to_int8
from llama.kernels.quantizers import to_int4, to_k4
from llama.sizing.estimate import estimate

VOCAB = tiny_tokenizer().n_words
# Rows of 256 and of 704 = 2.75 x 256 weights: k4 and int4; on two and four ranks, slices begin within a group of 256.
WIDE: dict[str, Any] = {**SHAPE, "dim": 256, "n_layers": 2, "multiple_of": 64, "ffn_dim_multiplier": 1.0}
# Rows of 512 in w2: on four ranks, slices of half a group.
HALVES: dict[str, Any] = {**WIDE, "ffn_dim_multiplier": 0.75}
# Rows of 1536: on four ranks, slices of one group and a half.
LONG: dict[str, Any] = {**WIDE, "n_layers": 1, "ffn_dim_multiplier": 2.25}


def folder_of(place: Path, params: dict[str, Any], **changes: torch.Tensor) -> Path:
    weights = random_weights(params, VOCAB) | {name.replace("__", "."): x for name, x in changes.items()}
    return save_checkpoint(place, params, weights, tiny_model_path(), 2)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("wide"), WIDE)


def whole(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    out = torch.empty(checkpoint.shapes[name])
    checkpoint.copy_slice(name, out, 0, 1)
    return out


def test_each_matrix_is_what_its_quantizer_makes_of_it(wide: Path) -> None:
    plain = open_checkpoint(wide)
    for quantize in ("int8", "int4"):
        found = open_checkpoint(wide, quantize=quantize)
        assert (found.is_quantized, found.quantization, found.dtype) == (True, quantize, plain.dtype)
        for name, shape in plain.shapes.items():
            values = whole(plain, name)
            if len(shape) == 1 or name.startswith("tok_embeddings"):
                assert found.is_mapped(name)
                assert torch.equal(whole(found, name), values)
                continue
            eight = quantize == "int8" or "wv" in name or name.startswith("output") or name == WO
            quantizer = to_int8 if eight else to_k4 if shape[1] % 256 == 0 else to_int4
            assert not found.is_mapped(name)
            assert torch.equal(whole(found, name), dequantize(quantizer(values))), name


WO = "layers.0.attention.wo.weight"


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("params", [WIDE, HALVES, LONG], ids=["704", "512", "1536"])
def test_a_ranks_window_has_the_codes_of_the_whole(
    tmp_path: Path, params: dict[str, Any], quantize: str
) -> None:
    """So that all numbers of ranks compute with the same weights, bit for bit."""
    found = open_checkpoint(folder_of(tmp_path, params), quantize=quantize)
    for name, shape in found.shapes.items():
        if len(shape) == 1:
            continue
        all_of_it = whole(found, name)
        for size in (2, 4):
            for rank in range(size):
                rows, columns = found.slice_of(name, rank, size)
                assert columns is not None
                wanted = all_of_it[slice(*rows), slice(*columns)]
                part = torch.empty(wanted.shape)
                found.copy_slice(name, part, rank, size)
                assert torch.equal(part, wanted), f"{name} of rank {rank} of {size}"
                form = found.form(name, columns)
                if form is not None:
                    blocks = found.blocks(name, rows, columns)
                    assert blocks.codes.shape == (len(wanted), form.columns)
                    assert blocks.scales.shape[:2] == (len(wanted), form.groups)
                    assert form.columns % 32 == form.group % 32 == 0


def test_rows_that_are_not_whole_blocks_stay_plain_and_it_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {**SHAPE, "multiple_of": 8})  # w2 has rows of 176 = 5.5 x 32
    found = open_checkpoint(folder, quantize="int4")
    assert found.form("layers.0.feed_forward.w2.weight", (0, 176)) is None
    assert found.form("layers.0.feed_forward.w1.weight", (0, 64)) is not None
    assert found.notes == [
        "2 matrices are not quantized: their rows of 176 are not whole blocks of 32",
    ]
    w2 = "layers.0.feed_forward.w2.weight"
    assert torch.equal(whole(found, w2), whole(open_checkpoint(folder), w2))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_the_estimate_is_what_is_loaded(wide: Path, quantize: str, size: int) -> None:
    checkpoint = open_checkpoint(wide, quantize=quantize)
    expected = estimate(checkpoint.args, size, 16, 1, torch.bfloat16, quantize).weights
    sizes = [
        weight_memory(checkpoint, rank, size, torch.device("cpu"), torch.bfloat16).nbytes
        for rank in range(size)
    ]
    assert max(sizes) == expected


def test_what_cannot_be_quantized_is_refused(wide: Path, tmp_path: Path) -> None:
    for wrong in ("int3", "", 8, True, b"int8"):
        with pytest.raises(ConfigError, match=r"quantize is .*; use 'int8' or 'int4', or leave it out"):
            open_checkpoint(wide, quantize=wrong)  # type: ignore[arg-type]
    bad = random_weights(WIDE, VOCAB)[WO]
    for value in (torch.nan, torch.inf, 1e9):
        bad[3, 77] = value
        folder = folder_of(tmp_path / str(value), WIDE, **{WO: bad})
        found = open_checkpoint(folder, quantize="int4")
        with pytest.raises(CheckpointFormatError, match=f"{WO} in .* in rows 0 to 256; check it"):
            whole(found, WO)
