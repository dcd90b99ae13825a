"""Laws of the estimate: it is what a built model takes, grows with tokens and sequences, and fills the table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama import Llama
from llama.distributed.parallel import Parallel
from llama.model import ModelArgs, Transformer
from llama.sizing import estimate
from llama.sizing.estimate import table
from llama.sizing.family import MEMBERS, args_of
from llama.sizing.shapes import expected_shapes

GIB = 1 << 30
# A shape that 1, 2, 4 and 8 ranks share, where ranks come to outnumber key/value heads.
ARGS = ModelArgs(dim=64, n_layers=3, n_heads=8, n_kv_heads=4, vocab_size=440, multiple_of=16, rope_theta=1e6)
# Its heads have 32 numbers, as an int8 cache takes them.
WIDE = replace(ARGS, dim=256)


@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_weights_and_cache_are_those_of_a_built_model(
    size: int, dtype: torch.dtype, cache_dtype: str
) -> None:
    """Of every rank: tensors that are really there, and a cache that is really reserved."""
    args = ARGS if cache_dtype == "auto" else WIDE
    found = estimate.estimate(args, size, 100, 3, dtype, cache_dtype=cache_dtype)
    for rank in range(size):
        with torch.device("meta"):
            model = Transformer(args, parallel=Parallel(rank, size), cache_dtype=cache_dtype).to(dtype)
        assert found.weights == sum(value.nbytes for value in model.state_dict().values())
        assert found.cache == model.new_pool(3 * 25, 4).nbytes
    assert found.total == found.weights + found.cache + found.work
    assert found.per_token * 300 == found.cache


def test_weights_are_those_that_are_loaded(tiny_checkpoint: Path) -> None:
    with Llama.build(tiny_checkpoint, None, 64, 2, 1, device="cpu", dtype="float32") as llama:
        loaded = sum(value.nbytes for value in llama.model.state_dict().values())
        args = llama.model.params
    assert estimate.estimate(args, 1, 1, 1, torch.float32).weights == loaded


def test_quantized_weights_counted_by_hand() -> None:
    """Of 7B, whose rows all divide by 256. int8: 8 bits and a scale of 16 for 32 weights, so 8.5. k4: 4, two factors of
    8 bits for 32 and two of 16 for 256 weights, so 4.625; but wv, the first wo and the output are int8."""
    eight, four, plain = 0, 0, 0
    for name, shape in expected_shapes(args_of(MEMBERS[0])).items():
        count = math.prod(shape)
        if len(shape) == 1 or name.startswith("tok_embeddings"):
            plain += 2 * count
        elif "wv" in name or name in ("output.weight", "layers.0.attention.wo.weight"):
            eight += count
        else:
            four += count
    args = args_of(MEMBERS[0])
    int8, int4 = (estimate.estimate(args, 1, 1, 1, torch.bfloat16, q).weights for q in ("int8", "int4"))
    assert int8 == plain + (eight + four) * 8.5 / 8
    assert int4 == plain + eight * 8.5 / 8 + four * 4.625 / 8
    assert int4 / GIB == pytest.approx(4.1, abs=0.05)


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(0, 1 << 39))
def test_the_largest_is_the_largest_that_fits(limit: int) -> None:
    assert estimate.largest(lambda n: n <= limit) == limit


@settings(max_examples=100, deadline=None)
@given(
    size=st.sampled_from([1, 2, 4, 8]),
    seq=st.integers(1, 100_000),
    batch=st.integers(1, 64),
)
def test_more_tokens_and_sequences_never_take_less(size: int, seq: int, batch: int) -> None:
    """What the search for the largest rests on."""
    for args in (ARGS, args_of(MEMBERS[0]), args_of(MEMBERS[3])):
        found = estimate.estimate(args, size, seq, batch, torch.bfloat16)
        longer = estimate.estimate(args, size, seq + 1, batch, torch.bfloat16)
        more = estimate.estimate(args, size, seq, batch + 1, torch.bfloat16)
        assert found.total == found.weights + found.cache + found.work
        assert found.total < longer.total
        assert found.total < more.total


def test_the_table_says_what_estimate_says() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()]
    assert rows[0][1:] == ["7B", "13B", "34B", "70B"]
    by_label = {row[0].split(", 16")[0].split(" of")[0]: row[1:] for row in rows[2:]}
    for column, member in enumerate(MEMBERS):
        for place, size in enumerate((1, 2, 4, 8)):
            found = estimate.estimate(args_of(member), size, 16384, 1, torch.bfloat16)
            for label, value in (
                ("weights", found.weights),
                *(
                    (label, estimate.estimate(args_of(member), size, 1, 1, torch.bfloat16, quant).weights)
                    for label, quant in (("weights, 8 bit", "int8"), ("weights, 4 bit", "int4"))
                ),
                ("KV cache", found.cache),
                ("work space", found.work),
            ):
                cells = by_label[label][column].split(" / ")
                assert float(cells[place]) == pytest.approx(value / GIB, abs=0.0501), (
                    label,
                    member.name,
                    size,
                )
