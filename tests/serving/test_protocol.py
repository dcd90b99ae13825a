"""Events arrive on the other ranks as they were sent."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.engine import Request
from llama.sampling import GREEDY, SamplingParams
from llama.serving.protocol import Add, Cancel, Pause, Resume, Stop, decode, encode

requests = st.builds(
    Request,
    st.lists(st.integers(0, 32015), min_size=1, max_size=20).map(tuple),
    st.integers(0, 10_000),
    st.builds(
        SamplingParams,
        st.floats(0, 9),
        st.floats(0.01, 1),
        st.integers(0, 99),
        st.floats(0, 1),
        st.floats(0.1, 9),
        st.floats(-100, 100),
        st.floats(-100, 100),
        st.dictionaries(st.integers(0, 32015), st.floats(-100, 100), max_size=4),
    ),
    stop_ids=st.frozensets(st.integers(0, 32015)),
    stop=st.lists(st.text(min_size=1)).map(tuple),
    start_of_text=st.booleans(),
    seed=st.integers(0, 2**200),
    n=st.integers(1, 9),
    first_sample=st.integers(0, 9),
    top=st.integers(0, 9),
    score_prompt=st.booleans(),
    row=st.integers(0, 9),
    min_new_tokens=st.integers(0, 9),
)
tickets = st.integers(0, 2**60)
events = st.one_of(
    st.builds(Add, tickets, requests),
    st.builds(Cancel, tickets),
    st.builds(Pause, tickets),
    st.builds(Resume, tickets),
    st.builds(Stop, st.booleans(), st.none() | st.text()),
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(events, max_size=3))
def test_events_arrive_as_they_were(sent):
    assert decode(encode(sent)) == sent


def test_every_field_of_a_request_travels():
    """A field of a kind that JSON does not keep would fail here, not on the second rank of a user."""
    request = Request((1, 2), 3, GREEDY)
    for field in dataclasses.fields(request):
        restored = decode(encode([Add(0, request)]))[0].request
        assert type(getattr(restored, field.name)) is type(getattr(request, field.name))


def test_no_events_are_no_bytes_and_integers_of_numpy_are_integers():
    assert encode([]) == b""
    sent = Add(1, Request(tuple(np.arange(3)), 5, GREEDY, stop_ids=frozenset(np.arange(2))))
    assert decode(encode([sent])) == [Add(1, Request((0, 1, 2), 5, GREEDY, frozenset({0, 1})))]
