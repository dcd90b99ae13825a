"""Law: on a GPU the cache is taken whole and leaves what the largest step was measured to need."""

from __future__ import annotations

import itertools
from pathlib import Path
from unittest import mock

import pytest
import torch
from pretended_gpu import Gpu

from llama import Llama, loading
from llama.distributed.parallel import Parallel
from llama.errors import OutOfMemoryError
from llama.kv_cache import Step
from llama.model import Transformer
from llama.sizing.args import ModelArgs
from llama.sizing.budget import CachePlan, cache_bytes_per_token, leaving_room

BUILD = {"max_seq_len": 128, "max_batch_size": 4, "dtype": "float32", "device": "cuda"}


@pytest.fixture(autouse=True)
def _pretended(gpu: Gpu, guard: Path) -> None:
    """A real GPU's memory is what it is."""


def built(checkpoint: Path, needs: int, gpu: Gpu, **more: object) -> tuple[int, int]:
    """(tokens of cache, bytes of one) where the largest step took so many bytes."""
    with mock.patch.object(torch.cuda, "max_memory_allocated", return_value=needs):
        llama = Llama.build(checkpoint, **{**BUILD, **more})
    params = llama.model.params
    return llama.engine.cache_tokens, cache_bytes_per_token(params, 1, torch.float32)


def test_the_cache_and_the_largest_step_fit_together(gpu: Gpu, tiny_checkpoint: Path) -> None:
    whole, each = built(tiny_checkpoint, 0, gpu, cache_memory=1.0)
    own = 128 * each  # the measured step has a cache of its own
    for needs in (own, gpu.memory // 3, gpu.memory // 2):
        tokens, _ = built(tiny_checkpoint, needs, gpu, cache_memory=1.0)
        left = gpu.memory - (needs - own)
        assert min(left - 0.04 * gpu.memory, 0.89 * gpu.memory) < tokens * each <= left
        assert tokens <= whole
    # What the plan asks for is not raised.
    assert built(tiny_checkpoint, gpu.memory // 3, gpu)[0] <= 2 * 4 * 128


@pytest.mark.parametrize("share", [0.98, 1.0])
def test_a_step_that_leaves_no_sequence_any_room_is_an_error(
    gpu: Gpu, tiny_checkpoint: Path, share: float
) -> None:
    with pytest.raises(OutOfMemoryError, match=r"the largest step takes [78]\.\d\d GiB.*lower max_seq_len"):
        built(tiny_checkpoint, int(share * gpu.memory), gpu)


def test_a_step_that_does_not_fit_is_an_error(
    gpu: Gpu, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Transformer, tokens: int) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Transformer, "run_largest", full)
    with pytest.raises(OutOfMemoryError, match="the largest step does not fit"):
        built(tiny_checkpoint, 0, gpu)


def test_a_rank_that_the_step_does_not_fit_on_leaves(gpu: Gpu) -> None:
    """The others are in the middle of the step: what it exchanged with them would be taken for a part of that."""

    class Busy(Parallel):
        def smallest(self, value: int | None, device: torch.device) -> int | None:
            raise AssertionError("the others are in the middle of a step")

    def full() -> None:
        raise torch.OutOfMemoryError("full")

    plan = CachePlan(4096, 1024, torch.float32)
    args = ModelArgs(dim=64, n_layers=1, n_heads=2, vocab_size=32, max_seq_len=128)
    with pytest.raises(OutOfMemoryError, match=r"the largest step does not fit .*rank 1; lower max_seq_len"):
        leaving_room(plan, args, Busy(rank=1, size=2), torch.device("cuda:0"), full)


def test_bytes_of_cache_are_not_lowered(gpu: Gpu, tiny_checkpoint: Path) -> None:
    """A share is of what is left; bytes that do not fit are an error, as without a GPU."""
    needs, half = int(0.6 * gpu.memory), gpu.memory // 2
    with pytest.raises(
        OutOfMemoryError, match=rf"cache_memory {half} is .*largest step takes .*which leaves .*share"
    ):
        built(tiny_checkpoint, needs, gpu, cache_memory=half)
    assert built(tiny_checkpoint, needs, gpu, cache_memory="50%")[0] > 128
    tokens, each = built(tiny_checkpoint, needs, gpu, cache_memory=gpu.memory // 4)
    assert abs(tokens * each - gpu.memory // 4) < 64 * each


@pytest.mark.parametrize(
    ("tokens", "chunks"), [(100, [100]), (128, [128]), (300, [128, 128, 44]), (8192, [128] * 4)]
)
def test_the_largest_steps_are_run_whole(
    gpu: Gpu, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, chunks: list[int]
) -> None:
    """As many tokens as a step may have, up to the last position, of several sequences if one has not so many; and a
    token of each sequence there. Blocks are no neighbours: a step that gathers them takes most."""
    monkeypatch.setattr(loading, "STEP_TOKENS_CUDA", tokens)
    seen: list[tuple[list[int], list[int]]] = []
    hidden = Transformer.hidden

    def watched(model: Transformer, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        seen.append((step.starts, step.lengths))
        assert all(b - a != 1 for table in step.tables for a, b in itertools.pairwise(table))
        return hidden(model, tokens, step)

    with mock.patch.object(Transformer, "hidden", watched):
        built(tiny_checkpoint, 0, gpu)
    assert [(list(starts), list(lengths)) for starts, lengths in seen] == [
        ([128 - chunk for chunk in chunks], [128] * len(chunks)),
        ([127] * 4, [128] * 4),
    ]
