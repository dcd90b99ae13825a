"""`min_tokens` and `ignore_eos`: what may end a text, and from where on."""

from __future__ import annotations

import pytest
from api_calls import LIMIT, TOKENIZER, encode, only

USER = [{"role": "user", "content": "a"}]
ENDS = ("eos_id", "eot_id")


def reasons(llama, **options):
    """How a completion, an infilling and an answer end."""
    calls = [
        llama.text_completion(["a"], 0, **options),
        llama.text_infilling(["a"], ["b"], 0, **options),
        llama.chat_completion([USER], 0, **options),
    ]
    return [result["finish_reason"] for (result,) in calls]


@pytest.mark.parametrize("end", ENDS)
def test_with_ignore_eos_only_the_callers_own_stop_ids_end(llama, monkeypatch, end):
    """The model writes nothing but an id that ends every text, or one that ends an infilling."""
    token = getattr(TOKENIZER, end)
    only(llama, monkeypatch, [token])
    plain = ["stop"] * 3 if end == "eos_id" else ["length", "stop", "length"]
    assert reasons(llama, max_gen_len=4) == plain
    assert reasons(llama, max_gen_len=4, ignore_eos=True) == ["length"] * 3
    assert reasons(llama, max_gen_len=4, ignore_eos=True, stop_ids=[token]) == ["stop"] * 3
    (ids,), _ = llama.generate([encode("a")], 4, 0, ignore_eos=True)
    assert ids == [token] * 4
    (ids,), _ = llama.generate([encode("a")], 4, 0, stop_token=token, ignore_eos=True)
    assert ids == []


def test_with_min_tokens_nothing_ends_a_text_before(llama, monkeypatch):
    """The model would rather end than write anything else."""
    other = TOKENIZER.sp_model.piece_to_id("▁def")
    only(llama, monkeypatch, [TOKENIZER.eos_id, TOKENIZER.eot_id, other])
    plain = llama.model.logits

    def ending(hidden):
        logits = plain(hidden)
        logits[:, [TOKENIZER.eos_id, TOKENIZER.eot_id]] = 1e3
        return logits

    monkeypatch.setattr(llama.model, "logits", ending)
    assert llama.text_infilling(["a"], ["b"], 0, max_gen_len=9)[0]["generation"] == ""
    (result,) = llama.text_infilling(["a"], ["b"], 0, max_gen_len=9, min_tokens=3)
    assert result == {"generation": " def" * 3, "full_text": "a def def defb", "finish_reason": "stop"}
    (result,) = llama.text_infilling(["a"], ["b"], 0, max_gen_len=9, min_tokens=9)
    assert result["finish_reason"] == "length"
    (result,) = llama.text_infilling(["a"], ["b"], 0, max_gen_len=9, min_tokens=3, stop=" def")
    assert result["generation"] == " def" * 3


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_with_both_a_text_has_exactly_max_gen_len_tokens(llama, temperature):
    for length in (1, 30):
        options = {"temperature": temperature, "max_gen_len": length, "min_tokens": length, "seed": 2}
        (ids, more), _ = llama.generate(
            [encode("a")], stop_ids=range(0, 400, 2), ignore_eos=True, n=2, **options
        )
        assert (len(ids), len(more)) == (length, length)
        for result in llama.text_completion(
            ["a", "def"], ignore_eos=True, logprobs=True, stop="e", **options
        ):
            assert len(result["tokens"]) == length
            assert result["finish_reason"] == "length"


def test_min_tokens_are_cut_to_the_room_like_max_gen_len(llama):
    (asked,) = llama.requests(["a"], 0, max_gen_len=10**6, min_tokens=10**6)
    assert asked.min_new_tokens == asked.max_new_tokens == LIMIT - len(asked.prompt)
    (asked,) = llama.requests(["a"], 0, max_gen_len=9, min_tokens=4)
    assert (asked.min_new_tokens, asked.max_new_tokens) == (4, 9)
