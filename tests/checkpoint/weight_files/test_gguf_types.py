"""Laws of the types of GGUF: any bytes mean what the package `gguf` says they mean, bit for bit."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import QUANTIZED, TAKEN, random_blocks, size_of

from llama.checkpoint.weight_files.gguf_types import REFUSED, TYPES, codes_of, scales_of, values_of

KINDS = {kind.name: kind for kind in TYPES.values()}


def theirs(raw: np.ndarray[Any, Any], kind: str) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).copy())


def bits(x: torch.Tensor) -> torch.Tensor:
    """NaNs have no sign that anyone promises."""
    return torch.where(x.isnan(), torch.nan, x).view(torch.int32)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_random_blocks_have_the_values_of_the_package(kind: str) -> None:
    """Any bytes: scales may be NaN, infinite, subnormal or negative."""
    weights, nbytes = size_of(kind)
    raw = np.random.default_rng(1).integers(0, 256, (40, 25 * nbytes), dtype=np.uint8)
    ours = values_of(torch.from_numpy(raw).view(40, 25, nbytes), KINDS[kind])
    assert ours.shape == (40, 25 * weights)
    assert torch.equal(bits(ours), bits(theirs(raw, kind)))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_window_of_blocks_is_read_where_it_lies(kind: str) -> None:
    """Blocks that are a part of longer rows, as views of a mapped file are."""
    nbytes = size_of(kind)[1]
    raw = random_blocks(kind, 6, 256 * 5)
    blocks = torch.from_numpy(raw).view(6, -1, nbytes)
    some = slice(1, blocks.shape[1] - 1)
    whole = values_of(blocks, KINDS[kind]).view(6, blocks.shape[1], -1)
    assert torch.equal(values_of(blocks[2:5, some], KINDS[kind]), whole[2:5, some].reshape(3, -1))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_scales_are_where_they_are_said_to_be(kind: str) -> None:
    """A NaN in any of them, and only there, makes a NaN of all or half of the block."""
    raw = torch.from_numpy(random_blocks(kind, 3, 512)).view(3, -1, size_of(kind)[1])
    assert values_of(raw, KINDS[kind]).isfinite().all()
    scales = scales_of(raw, KINDS[kind])
    for part in range(scales.shape[-1]):
        kept = scales[1, 0, part].clone()
        scales[1, 0, part] = torch.nan
        bad = values_of(raw, KINDS[kind]).isnan().view(3, raw.shape[1], -1)
        assert bad[1, 0].all()
        assert bad.sum() == bad[1, 0].numel()
        scales[1, 0, part] = kept


@pytest.mark.parametrize("kind", TAKEN)
def test_codes_are_unsigned(kind: str) -> None:
    raw = torch.from_numpy(random_blocks(kind, 3, 512)).view(3, -1, size_of(kind)[1])
    codes = codes_of(raw, KINDS[kind])
    assert codes.dtype == torch.uint8
    assert codes.shape == (3, raw.shape[1], size_of(kind)[0])
    assert int(codes.max()) == (255 if TAKEN[kind] == "int8" else 15)


def test_every_type_of_the_package_is_known_by_its_number() -> None:
    """And has its size."""
    for kind in gguf.GGMLQuantizationType:
        number = int(kind)
        assert (number in TYPES) != (number in REFUSED), kind
        if number in TYPES:
            assert (TYPES[number].name, TYPES[number].length, TYPES[number].nbytes) == (
                kind.name,
                *size_of(kind.name),
            )
        else:
            assert REFUSED[number] == kind.name
