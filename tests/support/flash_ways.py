"""Each way of torch's flash attention, where the operator is emulated: on a pretended GPU, or on the CPU's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pretended_gpu import attention as emulated
from tiny_llama import GQA, MHA
from tiny_models import random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.kernels import flash, flash_trial

__all__ = ["WAYS", "emulated_on_the_cpu", "flash_checkpoints", "flash_way"]

WAYS = ("tables", "runs", "gathered")
# What a torch lacks on which a way is the best one. 2.11 and 2.12 have no tables.
_LACKS = {"tables": (), "runs": ("block_table",), "gathered": ("block_table", "seqused_k")}
_TRIAL = flash_trial._trial.__wrapped__


@cache
def _trials(way: str, single: bool) -> Any:
    """The trials of a device that computes so."""
    return cache(_TRIAL)


@contextlib.contextmanager
def flash_way(way: str, *, single: bool = False, tried: bool = False) -> Iterator[None]:
    """Within it, torch's operator has what makes this way the best one.

    Args:
        single: whether it computes in float32 too, so that what it gives equals what the CPU gives.
        tried: whether what a trial of before has told, with the same arguments, still counts. For tests that leave the
            kernel as it is.
    """
    trials = _trials(way, single) if tried else cache(_TRIAL)
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(flash_trial, "_trial", trials))
        patches.enter_context(emulated.lacking(*_LACKS[way]))
        if way != "tables":
            patches.enter_context(mock.patch.object(flash, "knows_tables", return_value=False))
        if single:
            dtypes = (*flash.DTYPES, torch.float32)
            patches.enter_context(mock.patch.object(flash, "DTYPES", dtypes))
            patches.enter_context(mock.patch.object(emulated, "COMPUTES", [*dtypes]))
        yield


def flash_checkpoints(place: Path) -> dict[str, Path]:
    """Checkpoints with heads of 32 numbers: as many key heads as query heads, a half, or one for all."""
    shapes = {
        "mha": {**MHA, "n_heads": 2},
        "gqa": {**GQA, "dim": 128, "n_heads": 4, "n_kv_heads": 2},
        "mqa": {**GQA, "dim": 128, "n_heads": 4, "n_kv_heads": 1},
    }
    vocab = tiny_tokenizer("infilling").n_words
    return {
        name: save_checkpoint(place / name, shape, random_weights(shape, vocab), tiny_model_path())
        for name, shape in shapes.items()
    }


@contextlib.contextmanager
def emulated_on_the_cpu() -> Iterator[list[Any]]:
    """Within it, `flash.Flash` takes tensors of the CPU -> what the operator was called with."""
    calls: list[Any] = []

    def called(*args: Any, **named: Any) -> Any:
        calls.append((args, named))
        return emulated.flash_of_lengths(*args, **named)

    with mock.patch.object(flash, "_OPERATOR", called):
        yield calls
