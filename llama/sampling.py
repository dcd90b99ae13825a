"""`SamplingParams`: how the next token is chosen. Imports no torch; kernels/sampling.py draws the token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .errors import SamplingError
from .printable import shown
from .values import integer, real, rows

__all__ = ["GREEDY", "SamplingParams", "bias_pairs"]

# The range of a bias and of the two penalties that are subtracted.
_MOST = 100.0
# More than any vocabulary has ids, and a float still tells it from its neighbours.
_ALL = 1 << 53


@dataclass(frozen=True)
class SamplingParams:
    """How one token is chosen.

    temperature: logits are divided by it; 0 takes the most probable id.
    top_p: sample from the smallest set of most probable ids whose mass exceeds top_p, in [0, 1]; 0 leaves the
        best one.
    top_k: only the k most probable ids; 0 for all.
    min_p: only ids at least min_p times as probable as the best one, in [0, 1].
    repetition_penalty: > 1 makes ids of prompt and output less likely (Keskar et al. 2019); 1 is off.
    presence_penalty: subtracted from the logit of each id of the output so far, prompt excluded; in [-100, 100].
    frequency_penalty: the same, once for each time that the output has the id; in [-100, 100].
    logit_bias: (id, number in [-100, 100]) pairs, or a mapping: added to the logits of these ids. -100 rules an
        id out in practice, 100 leaves no other. Kept sorted by id, without zeros.

    They apply in this order: bias, repetition penalty, presence and frequency penalty, temperature, and the
    limits. The last three are OpenAI's.

    Numbers of other types (numpy's, a tensor without axes, a fraction) become Python's own.

    Raises:
        SamplingError: a value out of range, NaN, or of the wrong type. A negative temperature, which the
            reference treats as 0, is an error: dividing by it would turn the order of the ids around.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        self._take(
            "temperature",
            lambda x: 0 <= x < math.inf,
            "a finite number of at least 0; for greedy decoding, which the reference does below 0 too, pass 0",
        )
        self._take("top_p", lambda x: 0 <= x <= 1, "in [0, 1]; 0 takes the most probable id, 1 is off")
        self._take("min_p", lambda x: 0 <= x <= 1, "in [0, 1]")
        self._take("repetition_penalty", lambda x: 0 < x < math.inf, "a positive finite number")
        top_k = integer(self.top_k)
        if top_k is None or top_k < 0:
            raise SamplingError(
                f"top_k is {shown(self.top_k)}; it must be an integer of at least 0 (0 is off)"
            )
        object.__setattr__(self, "top_k", top_k)
        for name in ("presence_penalty", "frequency_penalty"):
            self._take(name, lambda x: -_MOST <= x <= _MOST, "in [-100, 100]; 0 is off")
        object.__setattr__(self, "logit_bias", bias_pairs(self.logit_bias))

    def _take(self, name: str, good: Callable[[float], bool], expected: str) -> None:
        given = getattr(self, name)
        value = real(given)
        if value is None or not good(value):
            raise SamplingError(f"{name} is {shown(given)}; it must be {expected}")
        object.__setattr__(self, name, value)

    @cached_property
    def greedy(self) -> bool:
        """Whether no randomness is involved."""
        return self.temperature == 0 or self.top_p == 0

    @cached_property
    def numbers(self) -> tuple[float, float, float, float]:
        """What a row is drawn with: temperature (0: the greatest logit), top-p, top-k (infinity for all), min-p."""
        top_k = float(self.top_k) if 0 < self.top_k < _ALL else math.inf
        return 0.0 if self.greedy else self.temperature, self.top_p, top_k, self.min_p

    @cached_property
    def plain(self) -> bool:
        """Whether the token is drawn from the model's own logits: no bias and no penalty."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return not (penalties or self.logit_bias)

    @cached_property
    def bias_arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The ids of logit_bias and their numbers, made once: each token of the output is drawn with them."""
        ids, values = zip(*self.logit_bias, strict=True) if self.logit_bias else ((), ())
        return np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32)


def bias_pairs(bias: object) -> tuple[tuple[int, float], ...]:
    """A mapping from ids to numbers, or an ordered iterable of pairs, as sorted pairs without zeros.

    Raises:
        SamplingError: an id that is no integer, is negative or comes twice; a number out of range.
    """
    items = list(bias.items()) if isinstance(bias, Mapping) else rows(bias)
    if items is None:
        raise SamplingError(f"logit_bias is {shown(bias)}; it must map token ids to numbers")
    found: dict[int, float] = {}
    for item in items:
        pair = rows(item)
        if pair is None or len(pair) != 2:
            raise SamplingError(f"logit_bias holds {shown(item)}, which is not a pair of id and number")
        token, value = integer(pair[0]), real(pair[1])
        if token is None or token < 0:
            raise SamplingError(f"logit_bias has the key {shown(pair[0])}, which is not a token id")
        if value is None or not -_MOST <= value <= _MOST:
            raise SamplingError(
                f"logit_bias of id {shown(token)} is {shown(pair[1])}; it must be in [-100, 100]"
            )
        if token in found:
            raise SamplingError(f"logit_bias has id {token} twice")
        found[token] = value
    return tuple(sorted((token, value) for token, value in found.items() if value))


GREEDY = SamplingParams(temperature=0.0)
