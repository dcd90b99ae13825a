"""`Generator`, the interface of a model that writes answers, and what it is given. Never imports torch.

A `Generator` is a model in this process (local.py) or a server (remote.py). It gets all requests at once and gives
answers in whatever order they end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .problem import Answer, Order, Problem
from .settings import Settings

__all__ = [
    "NOT_ASKED",
    "PROMPT_TOO_LONG",
    "UNSAFE_TAG",
    "Generator",
    "ModelInfo",
    "SampleRequest",
    "seed_of",
]

PROMPT_TOO_LONG = "prompt_too_long"
"""Finish reason of an answer without text: the prompt leaves no room for a token."""
UNSAFE_TAG = "unsafe_tag"
"""Finish reason of an answer without text: the question holds a tag of the model's chat format."""
NOT_ASKED = {
    PROMPT_TOO_LONG: "its prompt is too long for the model's max_seq_len",
    UNSAFE_TAG: "its question holds a tag of the model's chat format",
}
"""Finish reasons of answers that could not be asked for, and what their verdict says: they count as failed."""

# A seed stays below 2**63, the most that an OpenAI-compatible server takes.
_SEED_BITS = 63


@dataclass(frozen=True)
class SampleRequest:
    """Samples `first` .. `first + count - 1` of one problem; sample j draws from (seed, j)."""

    problem: Problem
    order: Order
    seed: int
    first: int
    count: int

    @property
    def samples(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)

    @property
    def stops(self) -> tuple[str, ...]:
        """A chat's answer is code within other text, so the stops of a continued text do not apply."""
        return () if self.order is Order.CHAT else self.problem.stops

    def answer(self, sample: int, text: str, tokens: int, finish_reason: str) -> Answer:
        """What the model wrote as one of these samples."""
        return Answer(self.problem, self.order, sample, self.seed, text, tokens, finish_reason)


@dataclass(frozen=True)
class ModelInfo:
    """Which model answers, as far as it is known; of a server only `name`, `max_seq_len` and its address, `url`.

    Args:
        name: the checkpoint folder's, or the server's model.
        weights: a digest of the weights, the same for any layout, number of files and ranks; None if unknown.
        dtype: that it computes in.
        max_seq_len: most tokens of prompt and answer together.
        member: its size in the family, such as 7B; None if no member has its shapes.
        variants: which of base, instruct and python it may be; shapes and vocabulary do not always tell.
        quantization: of its weights, such as Q4_K_M or int4; None if they are plain.
        cache_dtype: of keys and values, int8; None if it is `dtype`.
    """

    name: str
    weights: str | None = None
    dtype: str | None = None
    max_seq_len: int | None = None
    member: str | None = None
    variants: tuple[str, ...] = ()
    url: str | None = None
    quantization: str | None = None
    cache_dtype: str | None = None


class Generator(Protocol):
    """Writes answers."""

    @property
    def model(self) -> ModelInfo: ...

    def generate(self, requests: Sequence[SampleRequest], settings: Settings) -> Iterator[Answer]:
        """Answer all requests; each answer as it ends, in any order. Closing the iterator ends the generation.

        A problem that cannot be asked, since its prompt is too long, gives answers without text whose finish
        reason says so.

        Raises:
            LlamaError: no more answers can be had.
        """
        ...


def seed_of(seed: int, task_id: str, order: Order) -> int:
    """The seed of a problem's samples in one order, below 2**63.

    It depends on nothing else, so neither a limit nor the order of the problems changes a sample.
    """
    text = f"{seed}\n{order.value}\n{task_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> (64 - _SEED_BITS)
