"""Laws of SamplingParams: a bad value is refused by name, and the borders of each range are allowed."""

from __future__ import annotations

import math

import numpy as np
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
        *[("presence_penalty", value) for value in (-100.1, 101, math.nan, -math.inf, "1", None, True)],
        *[("frequency_penalty", value) for value in (-100.1, 101, math.nan, math.inf, "1", None, True)],
        *[("logit_bias", value) for value in (None, 5, "5", {5, 6})],
    ],
)
def test_bad_parameters_are_named_with_their_value(name, value):
    with pytest.raises(SamplingError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert repr(value) in str(caught.value)


def test_the_borders_of_the_parameters_are_allowed():
    SamplingParams(temperature=0, top_p=0, top_k=0, min_p=0, repetition_penalty=5e-324)
    SamplingParams(temperature=5e-324, top_p=5e-324, top_k=10**9, min_p=1, repetition_penalty=1e300)
    SamplingParams(presence_penalty=-100, frequency_penalty=100, logit_bias={0: -100, 2**40: 100})


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ({5: 100.5}, "id 5 is 100.5"),
        ({5: math.nan}, "id 5 is nan"),
        ({5: "1"}, "id 5 is '1'"),
        ({5: True}, "id 5 is True"),
        ({-1: 1.0}, "key -1"),
        ({"5": 1.0}, "key '5'"),
        ({5.0: 1.0}, "key 5.0"),
        ([5], "holds 5"),
        ([(5, 1.0, 2.0)], r"holds \(5, 1.0, 2.0\)"),
        ([(5, 1.0), (5, 2.0)], "id 5 twice"),
    ],
)
def test_a_bad_bias_is_named(bias, words):
    with pytest.raises(SamplingError, match=f"^logit_bias .*{words}"):
        SamplingParams(logit_bias=bias)


def test_a_bias_is_one_value_however_it_is_given():
    wanted = SamplingParams(logit_bias=((3, -1.0), (7, 2.0)))
    assert wanted.logit_bias == ((3, -1.0), (7, 2.0))
    for bias in (
        {7: 2, 3: -1},
        {3: -1, 7: 2, 9: 0},
        [[7, 2], [3, -1]],
        ((token, value) for token, value in ((7, 2), (3, -1))),
        {np.int32(7): np.float32(2), np.int64(3): np.float64(-1)},
    ):
        made = SamplingParams(logit_bias=bias)
        assert made == wanted
        assert hash(made) == hash(wanted)
        assert {type(part) for pair in made.logit_bias for part in pair} == {int, float}


def test_parameters_are_frozen():
    with pytest.raises(AttributeError):
        GREEDY.temperature = 1.0
