"""Laws of results: their keys, their text, and what ends it."""

from __future__ import annotations

import pytest
from api_calls import LIMIT, NEVER, PROMPTS, TOKENIZER, encode, only, twin_scores

from llama.errors import PromptTooLongError
from llama.prompts import completion_prompt


def test_keys_of_the_results(llama):
    scores = {"tokens", "logprobs"}
    (plain,) = llama.text_completion(["a"], 0, max_gen_len=3)
    assert set(plain) == {"generation", "finish_reason"}
    assert set(llama.text_completion(["a"], 0, max_gen_len=3, logprobs=True)[0]) == set(plain) | scores
    (filled,) = llama.text_infilling(["a"], ["b"], 0, max_gen_len=3)
    assert set(filled) == {"generation", "full_text", "finish_reason"}
    assert set(llama.text_infilling(["a"], ["b"], 0, max_gen_len=3, logprobs=True)[0]) == set(filled) | scores
    dialog = [{"role": "user", "content": "a"}]
    (chat,) = llama.chat_completion([dialog], 0, max_gen_len=3)
    assert set(chat) == {"generation", "finish_reason"}
    assert set(chat["generation"]) == {"role", "content"}
    assert chat["generation"]["role"] == "assistant"
    assert set(llama.chat_completion([dialog], 0, max_gen_len=3, logprobs=True)[0]) == set(chat) | scores


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("seed", range(5))
def test_prompt_and_generation_are_the_decoded_whole(llama, text, seed):
    """The first space of a continuation is kept."""
    ids = encode(text)
    options = {"temperature": 1.5, "max_gen_len": 12, "seed": seed}
    (tokens,), _ = llama.generate([ids], **options)
    (result,) = llama.text_completion([text], **options)
    assert text + result["generation"] == TOKENIZER.decode(ids + tokens)
    (echoed,) = llama.text_completion([text], echo=True, **options)
    assert echoed["generation"] == text + result["generation"]


def test_a_leading_space_is_part_of_a_continuation_and_of_no_answer(llama, monkeypatch):
    piece = TOKENIZER.sp_model.piece_to_id("▁def")
    only(llama, monkeypatch, [piece])
    assert llama.text_completion(["a"], 0, max_gen_len=2)[0]["generation"] == " def def"
    assert llama.text_infilling(["a"], ["b"], 0, max_gen_len=2)[0]["full_text"] == "a def defb"
    # Nothing before it: it begins the text, but for the PSM order, in which no middle has a dummy space.
    assert llama.text_completion([""], 0, max_gen_len=2)[0]["generation"] == "def def"
    for suffix_first, wanted in ((True, "def defb"), (False, " def defb")):
        (filled,) = llama.text_infilling([""], ["b"], 0, max_gen_len=2, suffix_first=suffix_first)
        assert filled["full_text"] == wanted
    (chat,) = llama.chat_completion([[{"role": "user", "content": "a"}]], 0, max_gen_len=2)
    assert chat["generation"]["content"] == "def def"


def test_the_empty_prompt_begins_a_text(llama):
    ids, _ = llama.generate([[TOKENIZER.bos_id]], 8, 0, stop_token=TOKENIZER.eos_id)
    (result,) = llama.text_completion([""], 0, max_gen_len=8)
    assert result["generation"] == TOKENIZER.decode(ids[0])


def test_control_ids_give_no_text(llama, monkeypatch):
    control = sorted(TOKENIZER.control_ids - {TOKENIZER.eos_id})
    assert len(control) >= 5
    only(llama, monkeypatch, control)
    dialog = [{"role": "user", "content": "a"}]
    for seed in range(5):
        options = {"temperature": 3.0, "top_p": 1.0, "max_gen_len": 8, "seed": seed}
        assert llama.text_completion(["a"], **options)[0] == {"generation": "", "finish_reason": "length"}
        assert llama.chat_completion([dialog], **options)[0]["generation"]["content"] == ""
        assert llama.text_infilling(["a"], ["b"], **options)[0]["full_text"] == "ab"


@pytest.mark.parametrize("stop", ["eos_id", "eot_id"])
def test_which_control_ids_end_what(llama, monkeypatch, stop):
    """Infilling stops at EOT and at eos, written by hand too; completion and [INST] chat at eos only."""
    only(llama, monkeypatch, [getattr(TOKENIZER, stop)])
    both = "stop" if stop == "eos_id" else "length"
    assert llama.text_infilling(["a"], ["b"], 0, max_gen_len=4)[0]["finish_reason"] == "stop"
    assert llama.text_completion(["a"], 0, max_gen_len=4)[0]["finish_reason"] == both
    (by_hand,) = llama.text_completion([" <PRE> a <SUF> b <MID>"], 0, max_gen_len=4, allow_control=True)
    assert by_hand == {"generation": "", "finish_reason": "stop"}
    (chat,) = llama.chat_completion([[{"role": "user", "content": "a"}]], 0, max_gen_len=4)
    assert chat["finish_reason"] == both


def test_stop_strings_and_stop_ids(llama):
    options = {"temperature": 1.0, "max_gen_len": 20, "seed": 3}
    (free,) = llama.text_completion(["a"], **options)
    text = free["generation"]
    stop = text[5:8]
    (cut,) = llama.text_completion(["a"], stop=stop, logprobs=True, **options)
    assert (cut["generation"], cut["finish_reason"]) == (text[: text.find(stop)], "stop_sequence")
    assert len(cut["tokens"]) == len(cut["logprobs"])
    assert (
        llama.text_completion(["a"], stop=["nowhere", stop], **options)[0]["generation"] == cut["generation"]
    )
    (tokens,), _ = llama.generate([encode("a")], **options)
    (fewer,), _ = llama.generate([encode("a")], stop_ids=[tokens[4]], **options)
    assert fewer == tokens[: tokens.index(tokens[4])]
    (short,), _ = llama.generate([encode("a")], stop_token=tokens[4], **options)
    assert short == fewer


def test_a_stop_token_takes_the_place_of_eos(llama, monkeypatch):
    only(llama, monkeypatch, [TOKENIZER.eos_id])
    assert llama.generate([encode("a")], 5, 0)[0] == [[]]
    assert llama.generate([encode("a")], 5, 0, stop_token=NEVER)[0] == [[TOKENIZER.eos_id] * 5]


def test_allow_control_lets_a_prompt_be_written_by_hand(llama):
    text = "<PRE> a <SUF> b <MID>"
    tokens = encode(text)
    by_hand = TOKENIZER.encode(text, bos=True, eos=False, allow_control=True)
    assert TOKENIZER.control_ids.isdisjoint(tokens[1:])
    assert not TOKENIZER.control_ids.isdisjoint(by_hand[1:])
    for ids, allow in ((tokens, False), (by_hand, True)):
        (result,) = llama.text_completion(
            [text], 0, max_gen_len=5, allow_control=allow, logprobs=True, echo=True
        )
        assert result["tokens"][: len(ids)] == [TOKENIZER.token_piece(token) for token in ids]
    assert completion_prompt(TOKENIZER, text).tokens == tuple(tokens)


# ---- lengths -------------------------------------------------------------------------------------


def test_without_a_length_all_the_room_is_used(llama):
    for length in (1, 50, LIMIT - 1):
        (tokens,), _ = llama.generate([[5] * length], None, 0, stop_token=NEVER)
        assert len(tokens) == LIMIT - length
    (tokens,), _ = llama.generate([[5] * 100], 1000, 0, stop_token=NEVER)
    assert len(tokens) == LIMIT - 100
    with pytest.raises(PromptTooLongError):
        llama.generate([[5] * LIMIT], None)


@pytest.mark.parametrize("length", [LIMIT, LIMIT + 1, 3 * LIMIT])
def test_a_prompt_without_room_is_refused_with_the_numbers(llama, length):
    for max_gen_len in (None, 1, 1000):
        with pytest.raises(
            PromptTooLongError, match=f"prompt 1: .* {length} tokens.* max_seq_len is {LIMIT}"
        ):
            llama.generate([[5], [5] * length], max_gen_len)
    assert not llama.engine.unfinished


def test_a_full_prompt_can_be_scored(llama):
    ids = [1] + [7, 8, 9] * 50
    ids = ids[:LIMIT]
    _, (values,) = llama.generate([ids], 0, logprobs=True, echo=True)
    assert values[1:] == pytest.approx(twin_scores(ids).tolist(), abs=2e-3)
    with pytest.raises(PromptTooLongError, match=f"{LIMIT + 1} tokens"):
        llama.generate([[*ids, 7]], 0, logprobs=True, echo=True)


def test_more_prompts_than_places_are_run_in_turns(llama):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(11)]
    results = llama.text_completion(prompts, 0, max_gen_len=7)
    assert results == [llama.text_completion([text], 0, max_gen_len=7)[0] for text in prompts]
