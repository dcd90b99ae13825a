"""`SamplingParams`: how the next token is chosen. Imports no torch; kernels/sampling.py draws the token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import SamplingError
from .printable import shown
from .values import integer, real

__all__ = ["GREEDY", "SamplingParams"]


@dataclass(frozen=True)
class SamplingParams:
    """How one token is chosen.

    temperature: logits are divided by it; 0 takes the most probable id.
    top_p: sample from the smallest set of most probable ids whose mass exceeds top_p, in [0, 1]; 0 leaves the
        best one.
    top_k: only the k most probable ids; 0 for all.
    min_p: only ids at least min_p times as probable as the best one, in [0, 1].
    repetition_penalty: > 1 makes ids of prompt and output less likely (Keskar et al. 2019); 1 is off.

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

    def _take(self, name: str, good: Callable[[float], bool], expected: str) -> None:
        given = getattr(self, name)
        value = real(given)
        if value is None or not good(value):
            raise SamplingError(f"{name} is {shown(given)}; it must be {expected}")
        object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether no randomness is involved."""
        return self.temperature == 0 or self.top_p == 0


GREEDY = SamplingParams(temperature=0.0)
