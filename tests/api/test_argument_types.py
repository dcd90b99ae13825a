"""Laws of arguments: numbers, lists and ids of any type give what Python's own give."""

from __future__ import annotations

import array
import copy
import decimal
import fractions
import re

import numpy as np
import pytest
import torch
from api_calls import DIALOGS

from llama import Llama
from llama.errors import ConfigError

NUMBERS = {
    "numpy": (np.int64, np.float32),
    "small numpy": (np.uint8, np.float16),
    "arrays": (np.array, np.array),
    "tensors": (torch.tensor, torch.tensor),
    "fractions": (int, fractions.Fraction),
    "decimals": (int, lambda value: decimal.Decimal(str(value))),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_type_are_taken(llama, kind):
    whole, part = NUMBERS[kind]

    def call(whole, part):
        return llama.text_completion(
            ["a", "b"],
            part(0.75),
            part(0.875),
            whole(6),
            logprobs=whole(2),
            top_k=whole(50),
            min_p=part(0.0),
            repetition_penalty=part(1.25),
            presence_penalty=part(0.5),
            frequency_penalty=part(-0.25),
            logit_bias=[(whole(9), part(2.0))],
            stop_ids=[whole(5)],
            seed=whole(7),
            n=whole(2),
        ), llama.generate([[whole(1), whole(9)]], whole(4), part(0.0), stop_token=whole(3))

    assert call(whole, part) == call(int, float)
    assert llama.requests(["a"], part(0.75), seed=whole(7)) == llama.requests(["a"], 0.75, seed=7)


LISTS = {
    "a generator": lambda items: (each for each in items),
    "map": lambda items: map(copy.copy, items),
    "a tuple": tuple,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "an array": np.array,
    "an array of objects": lambda items: np.array(items, dtype=object),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_any_kind_are_taken(llama, kind):
    """And gone through once."""
    made = LISTS[kind]

    def calls(made):
        options = {"temperature": 0.8, "max_gen_len": 5}
        texts = ["a", "def b"]
        return [
            llama.text_completion(
                made(texts), stop=made(["zz", "yy"]), stop_ids=made([5, 6]), seed=made([1, 2]), **options
            ),
            llama.text_completion(made(texts), prediction=made(["x", "y"]), seed=3, **options),
            llama.text_infilling(made(texts), made(["c", "d"]), seed=3, **options),
            [(delta.text, delta.index) for delta in llama.stream(made(texts), seed=3, **options)],
        ]

    assert calls(made) == calls(list)


@pytest.mark.parametrize("made", [tuple, iter, lambda dialogs: map(iter, dialogs)])
def test_dialogs_in_lists_of_any_kind_are_taken(llama, made):
    assert llama.chat_completion(made(DIALOGS), 0, max_gen_len=5) == llama.chat_completion(
        DIALOGS, 0, max_gen_len=5
    )


@pytest.mark.parametrize(
    "made",
    [
        np.array,
        torch.tensor,
        lambda ids: [np.array(row, dtype=np.int32) for row in ids],
        lambda ids: [torch.tensor(row) for row in ids],
        lambda ids: (range(row[0], row[-1] + 1) for row in ids),
        lambda ids: [array.array("l", row) for row in ids],
        lambda ids: [map(np.uint16, row) for row in ids],
    ],
)
def test_ids_of_any_integer_type_are_taken(llama, made):
    ids = [[10, 11, 12], [40, 41, 42]]
    assert llama.generate(made(ids), 4, 0, echo=True) == llama.generate(ids, 4, 0, echo=True)


def test_sizes_of_a_build_may_be_numpys(tiny_checkpoint):
    sizes = {"max_seq_len": np.int64(64), "max_batch_size": np.int16(2), "model_parallel_size": np.uint8(1)}
    with Llama.build(tiny_checkpoint, device="cpu", seed=np.int64(3), cache_memory=2**20, **sizes) as made:
        assert (made.model.params.max_seq_len, made.model.params.max_batch_size) == (64, 2)
        cache_tokens = made.engine.cache_tokens
        got = made.text_completion(["a"], max_gen_len=4)
    with Llama.build(
        tiny_checkpoint, None, 64, 2, device="cpu", seed=3, cache_memory=np.int64(2**20)
    ) as made:
        assert made.engine.cache_tokens == cache_tokens
        assert made.text_completion(["a"], max_gen_len=4) == got
    for name, value in {
        "max_seq_len": np.float64(64),
        "max_batch_size": True,
        "model_parallel_size": 0,
    }.items():
        with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}")):
            Llama.build(tiny_checkpoint, device="cpu", **{name: value})
