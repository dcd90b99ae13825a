"""Laws of the incremental detokenizer: it is the whole decode, cut into safe parts."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import public_tokenizer, tiny_tokenizer

from llama.detokenizer import Detokenizer
from llama.errors import SamplingError, TokenizerError

LAW = settings(deadline=None, derandomize=True, max_examples=200)
TOKENIZER = tiny_tokenizer("step")
BYTE_0 = TOKENIZER.sp_model.piece_to_id("<0x00>")


def byte_ids(data: bytes) -> list[int]:
    return [BYTE_0 + byte for byte in data]


def text_ids(text: str) -> list[int]:
    return TOKENIZER.encode_infilling(text)


# Any ids, with bytes (whole characters, halves, overlong forms, surrogates) made frequent.
_BYTES = st.sampled_from(
    [
        *("é漢😀▁\ufffd".encode()[i : i + n] for i in range(14) for n in (1, 2, 3, 4)),
        *(
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc0\xaf",
            b"\xff",
            b" ",
            b"\xf0\x9f",
            b"a",
        ),
    ]
).map(byte_ids)
_ANY = st.integers(-1, TOKENIZER.n_words - 1).map(lambda i: [i])
_WORDS = st.sampled_from(["return self", " a", "  ", "😀", "漢", "x"]).map(text_ids)
IDS = st.lists(_BYTES | _ANY | _WORDS, max_size=12).map(lambda parts: [i for part in parts for i in part])


def whole(ids: list[int], start_of_text: bool) -> str:
    return TOKENIZER.decode(ids) if start_of_text else TOKENIZER.decode_infilling(ids)


def run(ids: list[int], **options: object) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(TOKENIZER, **options)  # type: ignore[arg-type]
    deltas = [detokenizer.push(i) for i in ids]
    return [*deltas, detokenizer.finish()], detokenizer


@LAW
@given(ids=IDS, start_of_text=st.booleans())
@example(ids=[TOKENIZER.unk_id, *text_ids(" x")], start_of_text=True)
@example(ids=[TOKENIZER.bos_id, *text_ids("  x")], start_of_text=True)
@example(ids=[*byte_ids(b"a"), *text_ids(" x")], start_of_text=True)
def test_joined_deltas_are_the_whole_decode(ids: list[int], start_of_text: bool):
    deltas, detokenizer = run(ids, start_of_text=start_of_text)
    assert "".join(deltas) == whole(ids, start_of_text)
    assert detokenizer.kept_tokens == len(ids)
    assert detokenizer.text_len == len(whole(ids, start_of_text))
    assert detokenizer.stopped is None


@LAW
@given(ids=IDS)
def test_every_delta_but_the_last_is_final_and_nothing_waits_without_need(ids: list[int]):
    """After each id, what came out is the whole decode but for at most the start of one character."""
    detokenizer, out = Detokenizer(TOKENIZER), ""
    for n, token_id in enumerate(ids, start=1):
        out += detokenizer.push(token_id)
        now = whole(ids[:n], start_of_text=False)
        assert now.startswith(out)
        assert len(now) - len(out) <= 3
        assert set(now[len(out) :]) <= {"\ufffd"}


@LAW
@given(text=st.text(max_size=12).map(lambda s: s.replace("▁", "").replace("\ufffd", "")), start=st.booleans())
@example("👩‍👩‍👧 é漢", True)
def test_no_character_is_ever_split(text: str, start: bool):
    ids = TOKENIZER.encode(text, bos=False, eos=False) if start else text_ids(text)
    deltas, _ = run(ids, start_of_text=start)
    assert "".join(deltas) == text
    assert "\ufffd" not in "".join(deltas)
    all_bytes, _ = run(byte_ids(text.encode()))
    assert [d for d in all_bytes if d] == list(text)


def first_match(text: str, stop: list[str]) -> tuple[int, str] | None:
    found = [(text.find(s), len(s), s) for s in stop if s in text]
    return (min(found)[0], min(found)[2]) if found else None


# A small alphabet, so that stop strings overlap themselves and each other.
_LETTERS = st.text("ab ", max_size=14)
_STOPS = st.lists(st.text("ab é", min_size=1, max_size=5), min_size=1, max_size=4)


@st.composite
def _near_misses(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text made of beginnings of its stop strings, which is what a matcher can get wrong."""
    stop = draw(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3) | _STOPS)
    starts = [s[:end] for s in stop for end in range(1, len(s))] + ["a", "b", " "]
    return "".join(draw(st.lists(st.sampled_from(starts), max_size=8))), stop


_NEAR_MISSES = _near_misses()


@LAW
@given(text_and_stop=_NEAR_MISSES, as_bytes=st.booleans(), start=st.booleans())
@example(text_and_stop=("abab b", ["bab", "abab b"]), as_bytes=True, start=False)
@example(text_and_stop=("aaab", ["aab"]), as_bytes=True, start=False)
@example(text_and_stop=("aabaab", ["aabaaab", "ab"]), as_bytes=True, start=False)
@example(text_and_stop=("baab b", ["aa", "aab", "baab a"]), as_bytes=True, start=False)
def test_stop_strings_cut_before_the_match_that_starts_first(text_and_stop, as_bytes: bool, start: bool):
    text, stop = text_and_stop
    ids = byte_ids(text.encode()) if as_bytes else text_ids(text)
    text = whole(ids, start)
    deltas, detokenizer = run(ids, stop=stop, start_of_text=start)
    match = first_match(text, stop)
    cut = len(text) if match is None else match[0]
    assert "".join(deltas) == text[:cut]
    assert detokenizer.text_len == cut
    assert detokenizer.stopped == (None if match is None else match[1])


def ids_within(ids: list[int], text: str) -> int:
    """How many ids end within the first part `text` of their text."""
    return max(n for n in borders(ids) if len(whole(ids[:n], False)) <= len(text))


def borders(ids: list[int]) -> list[int]:
    """Before which ids a character begins: decoding both sides apart gives the same text."""
    text = whole(ids, False)
    return [n for n in range(len(ids) + 1) if whole(ids[:n], False) + whole(ids[n:], False) == text]


@LAW
@given(
    ids=IDS,
    stop=st.lists(st.sampled_from(["\ufffd", "é", "self", " a", "n s", "漢x", "  "]), min_size=1, max_size=3),
)
def test_kept_tokens_are_the_ones_whose_text_ends_before_the_cut(ids: list[int], stop: list[str]):
    deltas, detokenizer = run(ids, stop=stop)
    text = "".join(deltas)
    match = first_match(whole(ids, False), stop)
    assert text == whole(ids, False)[: None if match is None else match[0]]
    assert detokenizer.kept_tokens == ids_within(ids, text)


@LAW
@given(
    ids=IDS,
    after=st.integers(0, 12),
    stop=st.lists(st.sampled_from(["a", " ", "re", "\ufffd", "x"]), max_size=3),
)
def test_stop_strings_are_looked_for_behind_what_the_first_ids_complete(
    ids: list[int], after: int, stop: list[str]
):
    text = whole(ids, False)
    before = len(whole(ids[: next(n for n in borders(ids) if n >= min(after, len(ids)))], False))
    if len(ids) <= after:
        before = len(text)
    cuts = [at for s in stop if (at := text.find(s, before)) >= 0]
    deltas, detokenizer = run(ids, stop=stop, stop_after=after)
    assert "".join(deltas) == text[: min(cuts, default=len(text))]
    assert (detokenizer.stopped is not None) == bool(cuts)
    assert "".join(run_again(detokenizer, ids)) == "".join(deltas)
    assert detokenizer.kept_tokens == ids_within(ids, "".join(deltas)) >= min(after, len(ids))


def run_again(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    """The same ids through a fresh one of the same kind."""
    again = detokenizer.fresh()
    return [*(again.push(i) for i in ids), again.finish()]


@LAW
@given(text=_LETTERS, stop=_STOPS)
def test_text_is_held_back_only_while_a_stop_string_may_be_coming(text: str, stop: list[str]):
    detokenizer, out = Detokenizer(TOKENIZER, stop=stop), ""
    for n, token_id in enumerate(byte_ids(text.encode()), start=1):
        out += detokenizer.push(token_id)
        if detokenizer.stopped is not None:
            break
        held = text[len(out) : n]
        assert out + held == text[:n]
        assert held == "" or any(s.startswith(held) or s in held for s in stop)


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize(
    ("text", "shown", "stopped"),
    [
        (" return x", " ", "return x"),
        (" return y", " r", "et"),
        (" return", " r", "et"),
        (" ret", " r", "et"),
    ],
)
def test_a_match_waits_for_one_that_began_before_it(by_token: bool, text: str, shown: str, stopped: str):
    ids = text_ids(text) if by_token else byte_ids(text.encode())
    deltas, detokenizer = run(ids, stop=["et", "return x", "retx"])
    assert ("".join(deltas), detokenizer.stopped) == (shown, stopped)


def test_a_token_that_straddles_the_cut_is_dropped_but_its_text_before_it_stays():
    ids = [*text_ids("x"), TOKENIZER.sp_model.piece_to_id("▁return"), *text_ids("self")]
    deltas, detokenizer = run(ids, stop=["turn"])
    assert ("".join(deltas), detokenizer.stopped, detokenizer.kept_tokens) == ("x re", "turn", 1)


def test_a_match_is_reported_with_the_push_that_completes_it_and_the_rest_is_ignored():
    detokenizer = Detokenizer(TOKENIZER, stop=["bb"])
    assert [detokenizer.push(i) for i in byte_ids(b"abb")] == ["a", "", ""]
    assert detokenizer.stopped == "bb"
    assert detokenizer.push(byte_ids(b"c")[0]) == ""
    assert detokenizer.finish() == ""
    assert (detokenizer.kept_tokens, detokenizer.text_len) == (1, 1)


def test_half_a_character_comes_out_at_the_end_as_sentencepiece_shows_it():
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(i) for i in byte_ids("😀".encode()[:3])] == ["", "", ""]
    assert detokenizer.finish() == TOKENIZER.sp_model.decode(byte_ids("😀".encode()[:3])) == "\ufffd" * 3
    assert detokenizer.finish() == ""
    with pytest.raises(TokenizerError, match="finish"):
        detokenizer.push(BYTE_0)


@pytest.mark.parametrize("stop", ["abc", ["a", ""], [3], [b"x"]])
def test_stop_strings_that_are_none_are_a_named_error(stop: object):
    with pytest.raises(SamplingError, match="stop"):
        Detokenizer(TOKENIZER, stop=stop)  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary_are_a_named_error():
    with pytest.raises(TokenizerError, match=str(TOKENIZER.n_words)):
        Detokenizer(TOKENIZER).push(TOKENIZER.n_words)


def test_an_id_costs_the_same_late_as_early():
    """Late ids of a long text take no longer than early ones (10x leaves room for a busy machine, and
    the time is that of this thread alone)."""
    detokenizer = Detokenizer(TOKENIZER, stop=["a" * 200 + "b", "never"])
    ids = byte_ids(b"a") * 500
    spent = []
    for _ in range(40):
        begin = time.thread_time()
        for i in ids:
            detokenizer.push(i)
        spent.append(time.thread_time() - begin)
    assert min(spent[-5:]) < 10 * min(spent[:5])
    assert len(detokenizer._held) <= 200
    assert len(detokenizer._ends) <= 200


@pytest.mark.parametrize("name", ["llama2", "codellama-70b"])
@settings(LAW, max_examples=60)
@given(data=st.data())
def test_the_laws_hold_for_the_public_vocabularies(name: str, data: st.DataObject):
    tokenizer = public_tokenizer(name)
    ids = data.draw(st.lists(st.integers(0, 300) | st.integers(0, tokenizer.n_words - 1), max_size=25))
    for start in (True, False):
        detokenizer = Detokenizer(tokenizer, start_of_text=start)
        text = "".join([detokenizer.push(i) for i in ids]) + detokenizer.finish()
        assert text == (tokenizer.decode(ids) if start else tokenizer.decode_infilling(ids))
