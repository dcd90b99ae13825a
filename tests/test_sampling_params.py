"""Laws of SamplingParams: a bad value is refused by name, and the borders of each range are allowed."""

from __future__ import annotations

import math

import pytest

from llama.errors import SamplingError
from llama.sampling import GREEDY, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-1, -1e-9, math.nan, math.inf, "1", None, True, [1.0])],
        *[("top_p", value) for value in (-0.1, 1.0001, math.nan, math.inf, "0.9", None, True)],
        *[("top_k", value) for value in (-1, 1.0, math.nan, "3", None, True)],
        *[("min_p", value) for value in (-0.1, 1.1, math.nan, "0", None, False)],
        *[("repetition_penalty", value) for value in (0, -1.0, math.nan, math.inf, "1", None, True)],
    ],
)
def test_bad_parameters_are_named_with_their_value(name, value):
    with pytest.raises(SamplingError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert repr(value) in str(caught.value)


def test_the_borders_of_the_parameters_are_allowed():
    SamplingParams(temperature=0, top_p=0, top_k=0, min_p=0, repetition_penalty=5e-324)
    SamplingParams(temperature=5e-324, top_p=5e-324, top_k=10**9, min_p=1, repetition_penalty=1e300)


def test_parameters_are_frozen():
    with pytest.raises(AttributeError):
        GREEDY.temperature = 1.0
