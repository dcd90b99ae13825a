"""What a caller asks of the engine. Never imports torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..printable import shown
from ..values import integer, rows

if TYPE_CHECKING:
    from ..sampling import SamplingParams

__all__ = ["MOST_SAMPLES", "MOST_STOPS", "FinishReason", "Request", "stop_problem"]

# Integer fields of a request, and the least that each may be.
_INTEGERS = {"max_new_tokens": 0, "min_new_tokens": 0, "n": 1, "top": 0, "seed": 0, "first_sample": 0}
# Samples of one prompt; the caller keeps all of them.
MOST_SAMPLES = 4096
# Limits of stop strings: each character of the output is compared with every string, and building their
# tables takes a few milliseconds of a step at these limits.
MOST_STOPS = 64
_MOST_STOP_CHARACTERS = 8192


class FinishReason(str, Enum):
    """Why a sequence ended: a stop id, the limit of tokens, a stop string, its caller, or a failure."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    CANCELLED = "cancelled"
    ERROR = "error"


def stop_problem(stop: Collection[object]) -> str | None:
    """What is wrong with stop strings, or None. Looks at their number before their content."""
    if len(stop) > MOST_STOPS:
        return f"there are {len(stop)} stop strings; {MOST_STOPS} are the most"
    if not all(isinstance(text, str) and text for text in stop):
        return f"stop is {stop!r}; it must hold strings that are not empty"
    characters = sum(len(str(text)) for text in stop)
    if characters > _MOST_STOP_CHARACTERS:
        return (
            f"the stop strings have {characters:,} characters together;"
            f" {_MOST_STOP_CHARACTERS:,} are the most"
        )
    return None


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    prompt: ids, at least one. max_new_tokens: may be 0, to score the prompt only. stop_ids: end a sequence
    and are not part of it. stop: strings that do the same in its text; at most 64, of 8,192 characters
    together. n: samples, at most 4,096; as many as fit in batch and cache share one prefill, the others
    follow; sample j draws from the generator of (seed, first_sample + j). start_of_text: the text begins at
    its first token, so that token's dummy space is dropped. top: alternatives wanted with each score.
    score_prompt: whether the prompt's tokens are scored too. row: the prompt's place in its call, for errors.
    speculate: whether tokens may be drafted and verified several at a time; the result is the same.
    prediction: ids that the output is likely to repeat, to draft from. streaming: the caller reads the
    tokens as they come, so prompts beside its decode are prefilled in small chunks. min_new_tokens: before so
    many no stop id can be drawn, and stop strings are looked for only in the text behind them; more than
    max_new_tokens is the same as that many.

    Integers and ids of other types, such as numpy's, become Python's own.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    start_of_text: bool = False
    seed: int = 0
    n: int = 1
    first_sample: int = 0
    top: int = 0
    score_prompt: bool = False
    row: int = 0
    speculate: bool = True
    prediction: tuple[int, ...] = ()
    streaming: bool = True
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        # Other values stay as they are, for `check` to refuse.
        for name in (*_INTEGERS, "row"):
            number = integer(getattr(self, name))
            if number is not None:
                object.__setattr__(self, name, number)
        for name, kind in (("prompt", tuple), ("prediction", tuple), ("stop_ids", frozenset)):
            ids = getattr(self, name)
            if not isinstance(ids, kind) or set(map(type, ids)) - {int}:
                found = list(ids) if isinstance(ids, set | frozenset) else rows(ids)
                if found is not None:
                    plain = [token if (index := integer(token)) is None else index for token in found]
                    object.__setattr__(self, name, kind(plain))

    def check(self) -> None:
        """Refuse values that no step could run.

        Raises:
            RequestError: a number out of its range, ids that are not integers, stop strings that are empty,
                too many or too long.
        """
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RequestError(f"{name} is {shown(value)}; it must be an integer of at least {least}")
        if self.n > MOST_SAMPLES:
            raise RequestError(f"n is {self.n}; {MOST_SAMPLES} samples of a prompt are the most")
        for name in ("prompt", "prediction", "stop_ids", "stop"):
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Collection):
                raise RequestError(f"{name} is {value!r}; it must be a tuple")
        for name in ("prompt", "prediction", "stop_ids"):
            bad = [token for token in getattr(self, name) if type(token) is not int]
            if bad:
                raise RequestError(f"{name} holds {bad[0]!r}, which is not a token id")
        if problem := stop_problem(self.stop):
            raise RequestError(problem)

    @cached_property
    def adjusted(self) -> bool:
        """Whether some of its tokens are drawn from other logits than the model's own."""
        return not self.sampling.plain or (self.min_new_tokens > 0 and bool(self.stop_ids))

    @property
    def longest(self) -> int:
        """Cache positions that one sample may need."""
        return len(self.prompt) + self.max_new_tokens
