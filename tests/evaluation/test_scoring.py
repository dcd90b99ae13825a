"""Laws of `score`: minus the summed log-probabilities, every token once, and the bytes of the text as it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama, twin, twin_logits
from tiny_tokenizers import public_tokenizer, tiny_tokenizer

from llama.errors import PromptError, RequestError
from llama.evaluation import scoring
from llama.evaluation.scoring import Score, Window, score, scores, windows

TEXTS = [
    "def return self value",
    "",
    "é 漢字 <PRE> x\r\n\r\n",
    "\ufeffx",
    " two  spaces\n\n",
    "x\0y",
    "</s><s> ▁",
]
LONG = "def return self value list index\n    é 漢字\n\n" * 40


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, bos=False, eos=False)


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_a_score_is_transformers_own_loss(llama, text):
    """Behind bos, which does not count; nothing is put behind the text."""
    ids = [tiny_tokenizer().bos_id, *ids_of(text)]
    with torch.no_grad():
        loss = float(twin()(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    (found,) = score(llama, [text])
    assert found.nats_per_token == pytest.approx(loss, rel=1e-4)
    assert (found.tokens, found.bytes) == (len(ids) - 1, len(text.encode()))
    assert found.bits_per_byte == pytest.approx(
        loss * found.tokens / found.bytes * math.log2(math.e), rel=1e-4
    )


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_a_score_is_the_sum_that_the_library_gives(llama, text):
    (given,) = llama.text_completion([text], temperature=0, max_gen_len=0, logprobs=True, echo=True)
    (found,) = score(llama, [text])
    assert found.nats == pytest.approx(-sum(given["logprobs"]), rel=1e-5)


def test_texts_are_scored_one_by_one_whatever_else_is_in_the_call(llama, monkeypatch):
    """Also where a call of the engine ends in the middle of a text."""
    texts = [*TEXTS, LONG, *TEXTS]
    alone = [score(llama, [text])[0] for text in texts]
    for tokens in (1, 100, 300, 1 << 16):
        monkeypatch.setattr(scoring, "_CALL_TOKENS", tokens)
        together = score(llama, texts)
        assert [(each.tokens, each.bytes) for each in together] == [
            (each.tokens, each.bytes) for each in alone
        ]
        assert [each.nats for each in together] == pytest.approx([each.nats for each in alone], rel=1e-4)


@pytest.mark.parametrize(("max_seq_len", "count"), [(2, 40), (3, 40), (16, 200), (97, 300)])
def test_a_long_text_is_the_sum_over_its_windows(max_seq_len, count):
    """Beside the twin, which sees for each token exactly what its window holds."""
    llama = tiny_llama(max_seq_len=max_seq_len)
    ids = ids_of(LONG)[:count]
    text = tiny_tokenizer().decode(ids)
    assert ids_of(text) == ids
    nats, scored = 0.0, 0
    for window in windows(ids, tiny_tokenizer().bos_id, max_seq_len):
        logs = torch.log_softmax(twin_logits(list(window.ids)).double(), dim=-1)
        for at in range(window.first, len(window.ids)):
            nats -= float(logs[at - 1, window.ids[at]])
            scored += 1
    (found,) = score(llama, [text])
    assert found.tokens == scored == count
    assert found.nats == pytest.approx(nats, rel=1e-4)


@given(st.integers(0, 300), st.integers(2, 70))
def test_windows_score_every_token_once_with_half_a_window_before_it(count, max_seq_len):
    ids = list(range(100, 100 + count))
    scored = []
    for ids_of_window, first in windows(ids, 1, max_seq_len):
        assert ids_of_window[0] == 1
        assert 1 <= first < len(ids_of_window) <= max_seq_len
        start = ids_of_window[1] - 100
        assert list(ids_of_window[1:]) == ids[start : start + len(ids_of_window) - 1]
        for at in range(first, len(ids_of_window)):
            scored.append(ids_of_window[at])
            assert at >= max_seq_len / 2 or start == 0, "less than half a window, though there was more"
    assert scored == ids


def test_a_context_without_room_is_refused():
    with pytest.raises(RequestError, match="max_seq_len is 1; a token is scored after bos"):
        list(windows([5], 1, 1))
    assert list(windows([], 1, 2)) == []
    assert list(windows([5], 1, 2)) == [Window((1, 5), 1)]


def test_an_empty_text_has_no_figures_and_changes_none():
    empty, one = Score(0.0, 0, 0), Score(7.0, 2, 5)
    assert math.isnan(empty.bits_per_byte)
    assert math.isnan(empty.nats_per_token)
    assert Score.total([empty, one, empty]) == one
    assert Score.total([]) == empty


def test_a_total_weighs_texts_by_their_length():
    total = Score.total([Score(8 * math.log(2), 4, 8), Score(2 * math.log(2), 1, 1)])
    assert total.bits_per_byte == pytest.approx(10 / 9)
    assert total.nats_per_token == pytest.approx(2 * math.log(2))


def test_scores_come_as_they_are_known(llama, monkeypatch):
    """The first before the last text is even asked for: nothing of a long list is held back."""
    monkeypatch.setattr(scoring, "_CALL_TOKENS", 1)
    asked = []

    def texts():
        for text in ["def return", "self value", "list"]:
            asked.append(text)
            yield text

    every = scores(llama, texts())
    assert next(every).bytes == 10
    assert len(asked) < 3
    assert [each.bytes for each in every] == [10, 4]


def test_progress_counts_every_byte_once(llama, monkeypatch):
    monkeypatch.setattr(scoring, "_CALL_TOKENS", 50)
    told: list[int] = []
    texts = [*TEXTS, LONG]
    score(llama, texts, progress=told.append)
    assert sum(told) == sum(len(text.encode()) for text in texts)
    assert len(told) > len(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x", "a\ud800b"], "prompt 1: .*lone surrogate.*position 1"),
        (["x", "y" * 100 + "\n" + "a\udfffb"], "prompt 1: .*lone surrogate.*position 102"),
        (["x", 3], r"texts\[1\] is int, not a string"),
        ("x", "texts must be a list of strings"),
    ],
)
def test_what_is_no_text_is_refused(llama, texts, message, monkeypatch):
    monkeypatch.setattr(scoring, "_PART", 20)
    with pytest.raises(PromptError, match=message):
        score(llama, texts)


LINES = st.lists(
    st.sampled_from(["def x", "", " ", "  y", "<PRE>", "\r", "漢", "a" * 30, "\t", "é ▁"]), max_size=12
)


@given(LINES, st.integers(1, 40))
@settings(max_examples=50)
def test_a_text_encoded_by_lines_has_the_ids_of_the_whole(lines, part):
    check_encoding(tiny_tokenizer(), "\n".join(lines), part)


@pytest.mark.parametrize("name", ["llama2", "codellama", "codellama-70b"])
def test_the_public_vocabularies_do_not_join_lines(name):
    tokenizer = public_tokenizer(name)
    assert scoring._lines_are_apart(tokenizer)
    for text in (*TEXTS, LONG, "\n\n\n a\n\n  b\n \n", "x <step>\n<step>\n"):
        for part in (1, 7):
            check_encoding(tokenizer, text, part)


def check_encoding(tokenizer, text, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_PART", part)
        assert list(scoring._encoded(tokenizer, text)) == tokenizer.encode(text, bos=False, eos=False)
