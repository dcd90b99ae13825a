"""Laws of bad input: each has its named error, with the place in the call, and nothing is run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from api_calls import DIALOGS, PROMPTS, USER

from llama import Llama
from llama.errors import (
    DialogError,
    NumericsError,
    PromptError,
    PromptTooLongError,
    RequestError,
    SamplingError,
)
from llama.printable import shown

SYSTEM = {"role": "system", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "a"}
BAD_CALLS = {
    "no prompts": (lambda m: m.text_completion([]), RequestError, "batch is empty"),
    "no ids": (lambda m: m.generate([], 5), RequestError, "batch is empty"),
    "no prefixes": (lambda m: m.text_infilling([], []), RequestError, "batch is empty"),
    "no dialogs": (lambda m: m.chat_completion([]), RequestError, "batch is empty"),
    "empty ids": (lambda m: m.generate([[1], []], 5), PromptError, "prompt 1: the prompt has no tokens"),
    "id outside": (lambda m: m.generate([[1, 999]], 5), PromptError, "prompt 0: .*id 999, .*0 to 435"),
    "negative id": (lambda m: m.generate([[-1]], 5), PromptError, "id -1"),
    "id of text": (lambda m: m.generate([["a"]], 5), PromptError, r"prompt_tokens\[0\] holds 'a'"),
    "broken id": (lambda m: m.generate([[1, 1.5]], 5), PromptError, r"prompt_tokens\[0\] holds 1\.5"),
    "one list of ids": (lambda m: m.generate([1, 2], 5), RequestError, r"prompt_tokens\[0\] is int"),
    "text for ids": (lambda m: m.generate("abc", 5), RequestError, "list of lists"),
    "texts for ids": (lambda m: m.generate(["abc"], 5), RequestError, r"prompt_tokens\[0\] is str"),
    "truth for ids": (
        lambda m: m.generate(torch.tensor([[True]]), 5),
        PromptError,
        r"prompt_tokens\[0\] holds True",
    ),
    "fractions for ids": (lambda m: m.generate(np.ones((1, 2)), 5), PromptError, r"holds 1\.0"),
    "a lone text": (
        lambda m: m.text_completion("abc"),
        PromptError,
        "prompts must be a list of strings, not str; put it in brackets",
    ),
    "a set": (lambda m: m.text_completion({"a"}), PromptError, "not set; a set has no order"),
    "a mapping": (lambda m: m.text_completion({"a": 1}), PromptError, "list of strings, not dict$"),
    "a number": (lambda m: m.text_completion(5), PromptError, "list of strings, not int$"),
    "an array of one text": (lambda m: m.text_completion(np.array("a")), PromptError, "not ndarray$"),
    "no text": (lambda m: m.text_completion(["a", 5]), PromptError, r"prompts\[1\] is int"),
    "none": (lambda m: m.text_completion(None), PromptError, "NoneType"),
    "bytes": (lambda m: m.text_completion([b"a"]), PromptError, r"prompts\[0\] is bytes"),
    "surrogate": (lambda m: m.text_completion(["\ud800"]), PromptError, "U\\+D800"),
    "more prefixes": (
        lambda m: m.text_infilling(["a", "b"], ["c"]),
        RequestError,
        "2 prefixes, but 1 suffixes",
    ),
    "more suffixes": (
        lambda m: m.text_infilling(["a"], ["c", "d"]),
        RequestError,
        "1 prefixes, but 2 suffixes",
    ),
    "no FILL": (lambda m: m.text_infilling(["a"]), PromptError, "exactly one <FILL>.*found 0"),
    "two FILLs": (lambda m: m.text_infilling(["<FILL> <FILL_ME>"]), PromptError, "found 2"),
    "suffix no text": (lambda m: m.text_infilling(["a"], [None]), PromptError, r"suffixes\[0\] is NoneType"),
    "only system": (lambda m: m.chat_completion([[SYSTEM]]), DialogError, "only a system message"),
    "answer first": (
        lambda m: m.chat_completion([[ASSISTANT]]),
        DialogError,
        "message 0 .*'assistant', expected 'user'",
    ),
    "user twice": (
        lambda m: m.chat_completion([[USER, USER]]),
        DialogError,
        "message 1 .*expected 'assistant'",
    ),
    "system late": (lambda m: m.chat_completion([[USER, SYSTEM]]), DialogError, "message 1 .*'system'"),
    "ends with answer": (
        lambda m: m.chat_completion([[USER, ASSISTANT]]),
        DialogError,
        "message 1, the last",
    ),
    "unknown role": (
        lambda m: m.chat_completion([[{"role": "tool", "content": "a"}]]),
        DialogError,
        "message 0 .*unknown role 'tool'",
    ),
    "no content": (lambda m: m.chat_completion([[{"role": "user"}]]), DialogError, "no 'content'"),
    "empty dialog": (lambda m: m.chat_completion([[]]), DialogError, "dialog is empty"),
    "one dialog": (lambda m: m.chat_completion([USER]), DialogError, "list of messages"),
    "dialog of text": (lambda m: m.chat_completion("hello"), RequestError, "list of lists"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(llama, monkeypatch, name):
    monkeypatch.setattr(llama.model, "hidden", lambda *_: pytest.fail("the model was run"))
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(llama)
    assert not llama.engine.unfinished


BAD_OPTIONS = [
    ("temperature", -0.1, SamplingError, None),
    ("temperature", math.nan, SamplingError, None),
    ("temperature", math.inf, SamplingError, None),
    ("temperature", "0", SamplingError, None),
    ("temperature", 10**400, SamplingError, None),
    ("temperature", np.True_, SamplingError, None),
    ("top_p", -0.1, SamplingError, None),
    ("top_p", 1.1, SamplingError, None),
    ("top_p", math.nan, SamplingError, None),
    ("top_k", -1, SamplingError, None),
    ("min_p", 1.5, SamplingError, None),
    ("repetition_penalty", 0, SamplingError, None),
    ("presence_penalty", 101, SamplingError, None),
    ("frequency_penalty", math.nan, SamplingError, None),
    ("logit_bias", 5, SamplingError, None),
    ("logit_bias", {5: 101}, SamplingError, "logit_bias of id 5 is 101"),
    ("logit_bias", {10**6: 1}, RequestError, "logit_bias has id 1000000"),
    ("max_gen_len", -1, SamplingError, None),
    ("max_gen_len", 2.0, SamplingError, None),
    ("max_gen_len", np.float32(2), SamplingError, None),
    ("n", 0, SamplingError, None),
    ("n", True, SamplingError, None),
    ("logprobs", -1, SamplingError, None),
    ("logprobs", 2.5, SamplingError, None),
    ("logprobs", 437, RequestError, "437"),
    ("min_tokens", -1, SamplingError, None),
    ("min_tokens", 2.5, SamplingError, None),
    ("ignore_eos", 1, SamplingError, None),
    ("ignore_eos", "no", SamplingError, None),
    ("stop", "", SamplingError, "stop is ['']"),
    ("stop", ["a", ""], SamplingError, "stop is ['a', '']"),
    ("stop", [5], SamplingError, "stop is [5]"),
    ("stop", 5, SamplingError, None),
    ("stop_ids", [-1], SamplingError, "stop_ids is -1"),
    ("stop_ids", ["a"], SamplingError, "stop_ids is 'a'"),
    ("stop_ids", 5, SamplingError, None),
    ("seed", -1, SamplingError, None),
    ("seed", 1.5, SamplingError, None),
    ("seed", "5", RequestError, None),
    ("seed", True, SamplingError, None),
    ("seed", [1, 2], RequestError, "2 seeds for 1 prompts"),
    ("seed", [], RequestError, "0 seeds for 1 prompts"),
    ("seed", [-3], SamplingError, "seed is -3"),
]
CALLS = {
    "generate": lambda m, **options: m.generate([[1, 5]], **{"max_gen_len": 3} | options),
    "text_completion": lambda m, **options: m.text_completion(["a"], **options),
    "text_infilling": lambda m, **options: m.text_infilling(["a"], ["b"], **options),
    "chat_completion": lambda m, **options: m.chat_completion([[USER]], **options),
    "stream": lambda m, **options: m.stream(["a"], **options),
    "requests": lambda m, **options: m.requests(["a"], **options),
}


@pytest.mark.parametrize(("option", "value", "error", "words"), BAD_OPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_bad_options_are_named(llama, call, option, value, error, words):
    """By default the message says what the option is."""
    with pytest.raises(error) as caught:
        CALLS[call](llama, **{option: value})
    assert (words or f"{option} is {shown(value)}") in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not llama.engine.unfinished


def test_min_tokens_beyond_max_gen_len_is_refused_with_both(llama):
    with pytest.raises(SamplingError, match="min_tokens is 9, but max_gen_len is 5"):
        llama.text_completion(["a"], max_gen_len=5, min_tokens=9)


def test_an_array_with_an_axis_is_no_number(llama):
    for value in (np.ones(1), torch.ones(1), np.ones((1, 1)), torch.ones(2)):
        with pytest.raises(SamplingError, match="temperature is "):
            llama.text_completion(["a"], temperature=value)
        with pytest.raises(SamplingError, match="n is "):
            llama.text_completion(
                ["a"], n=value.astype(int) if isinstance(value, np.ndarray) else value.int()
            )


def test_numbers_too_long_to_write_out_are_refused_by_their_size(llama):
    for option in ("n", "seed", "top_k", "max_gen_len", "logprobs", "temperature"):
        for value in (10**5000, -(10**5000)):
            if option == "top_k" and value > 0:
                continue  # all of the vocabulary
            with pytest.raises(SamplingError, match=f"{option} is an integer of 16610 bits"):
                llama.text_completion(["a"], **{option: value})


def test_a_bad_seed_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(SamplingError, match="seed is -1"):
        Llama.build(tmp_path / "nowhere", seed=-1)


def test_the_negative_temperature_of_the_reference_is_explained(llama):
    with pytest.raises(SamplingError, match="which the reference does below 0 too, pass 0"):
        llama.text_completion(["a"], temperature=-1)


def test_an_unknown_option_is_a_type_error(llama):
    for call in (llama.text_completion, llama.stream):
        with pytest.raises(TypeError, match="temprature"):
            call(["a"], temprature=1)


@pytest.mark.parametrize("options", [{"foo": 1}, {"echo": True}])
def test_unknown_options_are_named(llama, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        llama.chat_completion(DIALOGS, **options)


def test_one_bad_prompt_runs_none(llama, monkeypatch):
    monkeypatch.setattr(llama.model, "hidden", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(PromptTooLongError, match="prompt 2"):
        llama.text_completion(["a", "b", "c " * 300, "d"], max_gen_len=3)
    assert not llama.engine.unfinished


@pytest.mark.parametrize("call", ["text_completion", "chat_completion", "text_infilling"])
def test_errors_name_the_place_in_the_call(llama, call):
    bad = {
        "text_completion": (["x", "\ud800"],),
        "chat_completion": ([DIALOGS[0], []],),
        "text_infilling": (["<FILL>", "none"],),
    }
    with pytest.raises(PromptError, match=r"^prompt 1: "):
        getattr(llama, call)(*bad[call])


def test_numbers_that_are_not_finite_raise_and_the_next_call_works(llama, monkeypatch):
    wanted = llama.text_completion(PROMPTS, 0, max_gen_len=6)
    with monkeypatch.context() as patch:
        plain = llama.model.logits
        patch.setattr(llama.model, "logits", lambda hidden: plain(hidden) * math.inf)
        with pytest.raises(NumericsError, match=r"sample 0, step 0: .*torch\.float32"):
            llama.text_completion(PROMPTS, max_gen_len=6)
    assert not llama.engine.unfinished
    assert llama.text_completion(PROMPTS, 0, max_gen_len=6) == wanted
