"""Per-step and cache limits. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..sizing.args import STEP_TOKENS, STEP_TOKENS_CUDA, ModelArgs
from ..values import integer

if TYPE_CHECKING:
    from ..model import Transformer

__all__ = ["Limits"]

# Prompt tokens beside a streaming decode that keep a step below three times its usual length. On a CPU a
# prompt token costs a twentieth of a step that decodes one token; on a GPU next to nothing.
_PREFILL_TOKENS = {"cpu": 20}
_PREFILL_TOKENS_ELSEWHERE = 256


@dataclass(frozen=True)
class Limits:
    """Per-step and cache limits.

    max_batch_size: sequences that run at the same time. step_tokens: tokens of one step; longer prompts are
    prefilled in chunks. prefill_tokens: prompt tokens in a step that also decodes for a streaming request,
    plus two for each decode. attention_breakeven: the position at which attention for a token costs as much
    as its products with the weights; a prompt token there counts double, at twice the position three times.
    draft_tokens: rows that the decodes and drafts of a step may take together. reserve_tokens: new tokens
    that memory is allocated for when a sequence begins, so that it is not preempted at once.
    """

    max_batch_size: int
    step_tokens: int = STEP_TOKENS
    prefill_tokens: int = 128
    attention_breakeven: float = math.inf
    draft_tokens: int = 32
    reserve_tokens: int = 64

    @classmethod
    def for_model(cls, model: Transformer, step_tokens: int | None, prefill_tokens: int | None) -> Limits:
        """Limits that suit a model and its device. None: as many as suit the device.

        Raises:
            ConfigError: step_tokens is not an integer of at least 1, or on CUDA more than what there is room for.
        """
        on_cuda = model.device.type == "cuda"
        most = STEP_TOKENS_CUDA if on_cuda else STEP_TOKENS
        if step_tokens is None:
            step_tokens = most
        tokens = integer(step_tokens)
        if tokens is None or tokens < 1:
            raise ConfigError(f"step_tokens is {step_tokens!r}; it must be an integer of at least 1")
        if on_cuda and tokens > most:
            raise ConfigError(
                f"step_tokens is {tokens:,}, but beside the cache of a GPU there is room for steps of {most:,}, which"
                " keep it busy; give at most that"
            )
        if prefill_tokens is None:
            prefill_tokens = _PREFILL_TOKENS.get(model.device.type, _PREFILL_TOKENS_ELSEWHERE)
        batch, breakeven = model.params.max_batch_size, _attention_breakeven(model.params)
        return cls(batch, tokens, prefill_tokens, breakeven)


def _attention_breakeven(params: ModelArgs) -> float:
    """The position at which attention for a token takes as long as its products with the weights of a layer.

    A product with a cached key takes longer than one with a weight: four times as long if few queries share a
    key/value head, as in a small chunk, and little longer if the heads of a group do.
    """
    kv_heads = params.n_kv_heads or params.n_heads
    query, key = params.n_heads * params.head_dim, kv_heads * params.head_dim
    weights = params.dim * (2 * query + 2 * key + 3 * params.ffn_dim)
    return weights / (2 * query * (1 + 3 * kv_heads / params.n_heads))
