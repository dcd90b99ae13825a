"""No request stalls the others: what is too large is refused before any work, and indexes are made once."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama, tiny_model
from tiny_tokenizers import tiny_tokenizer

from llama import detokenizer
from llama.engine import Engine, Request, speculation
from llama.engine.request_state import RequestState
from llama.engine.speculation import Drafter, Lookup
from llama.errors import PromptTooLongError, RequestError, SamplingError
from llama.sampling import GREEDY

TOKENIZER = tiny_tokenizer()


@functools.cache
def llama():
    return tiny_llama()


def forbid(monkeypatch, owner, name):
    def called(*args, **kwargs):
        raise AssertionError(f"{name} ran before the size was looked at")

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (["x"] * 65, "65 stop strings; 64"),
        (["x" * 8193], "8,193 characters together; 8,192"),
        (["x" * 5000, "y" * 5000], "10,000 characters together; 8,192"),
    ],
)
def test_stop_strings_have_a_limit(monkeypatch, stop, words):
    forbid(monkeypatch, detokenizer, "_borders")
    with pytest.raises(SamplingError, match=words):
        llama().text_completion(["def"], stop=stop)
    with pytest.raises(RequestError, match=words):
        Engine(tiny_model(), TOKENIZER).check(Request((1, 5), 5, GREEDY, stop=tuple(stop)))


def test_as_many_stop_strings_as_are_allowed():
    stop = [f"{i:02d}" + "x" * 126 for i in range(64)]
    assert sum(map(len, stop)) == 8192
    assert llama().text_completion(["def"], temperature=0, max_gen_len=2, stop=stop)


def endless():
    yield from range(2000)
    raise AssertionError("walked past the limit")


@pytest.mark.parametrize("endless", [lambda: range(10**12), endless], ids=["range", "generator"])
@pytest.mark.parametrize("name", ["stop_ids", "seed", "stop", "prediction"])
def test_a_list_without_end_is_not_walked(monkeypatch, name, endless):
    monkeypatch.setattr("llama.values._MAX_ENTRIES", 1000)
    with pytest.raises(RequestError, match="1,000"):
        llama().text_completion(["def"], max_gen_len=1, **{name: endless()})


def test_what_is_no_request_is_refused_by_name():
    with pytest.raises(RequestError, match="is not a Request"):
        Engine(tiny_model(), TOKENIZER).check(llama().requests(["def"]))


def test_samples_have_a_limit():
    with pytest.raises(SamplingError, match=r"n is 1000000000; 4096 samples"):
        llama().requests(["def"], n=10**9)


class Counted(tuple):
    """Ids that must not be looked at one by one."""

    def __iter__(self):
        raise AssertionError("looked at one by one before the size")


@pytest.mark.parametrize(
    ("field", "error", "words"),
    [
        ("prompt", PromptTooLongError, "the prompt has 129 tokens, but max_seq_len is 128"),
        ("prediction", RequestError, "the prediction has 129 tokens, but max_seq_len is 128"),
        ("stop_ids", RequestError, "500 stop ids, but the vocabulary has 436 ids"),
    ],
)
def test_ids_are_counted_before_they_are_looked_at(field, error, words):
    many = Counted([5] * (500 if field == "stop_ids" else 129))
    request = Request((1, 5), 4, GREEDY)
    object.__setattr__(request, field, many)
    with pytest.raises(error, match=words):
        Engine(tiny_model(), TOKENIZER).check(request)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "call",
    [
        lambda made: made.text_completion(["def", LONG]),
        lambda made: made.text_infilling(["def", LONG], ["", ""]),
        lambda made: made.text_infilling(["def", ""], ["", LONG]),
        lambda made: made.chat_completion([[], [{"role": "user", "content": LONG}]][1:]),
        lambda made: made.stream(["def", LONG]),
        lambda made: made.text_completion(["def"], prediction=LONG),
    ],
)
def test_a_text_that_can_never_fit_is_not_encoded(monkeypatch, call):
    made = llama()
    plain = type(made.tokenizer)._encode

    def encode(self, processor, s, allow_control):
        assert len(s) < len(LONG), "encoded before the size was looked at"
        return plain(self, processor, s, allow_control)

    monkeypatch.setattr(type(made.tokenizer), "_encode", encode)
    with pytest.raises(
        RequestError, match=r"100,000 characters, which make at least [\d,]+ tokens.*max_seq_len is 128"
    ):
        call(made)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.lists(st.sampled_from(["def ", "return", "    ", "value"])).map("".join))
def test_no_text_has_fewer_ids_than_are_promised(text):
    fewest = TOKENIZER.fewest_ids(len(text))
    assert fewest <= len(TOKENIZER.encode(text, bos=False, eos=False))
    assert fewest <= len(TOKENIZER.encode_infilling(text))
    assert TOKENIZER.fewest_ids(10_000) > 100


# ---- indexes ------------------------------------------------------------------------------------------


def test_the_samples_of_a_request_share_what_they_look_up(monkeypatch):
    made, pieces, tables = tiny_model(), [], []
    borders, grow = detokenizer._borders, Lookup.grow

    def counted_borders(text):
        tables.append(text)
        return borders(text)

    def counted_grow(self):
        before = self._left
        grow(self)
        pieces.append(before - self._left)

    monkeypatch.setattr(detokenizer, "_borders", counted_borders)
    monkeypatch.setattr(Lookup, "grow", counted_grow)
    engine = Engine(made, TOKENIZER)
    prompt = (1, *range(3, 103))
    engine.add(Request(prompt, 8, GREEDY, n=4, stop=("never this", "nor that")))
    while engine.unfinished:
        engine.step()
    assert tables == ["never this", "nor that"]
    # The places of a prompt of 101 tokens, once.
    assert sum(pieces) == 101 - 3


def test_a_request_that_waits_has_no_index():
    live = RequestState(0, Request((1, 5), 5, GREEDY, stop=("x",)), 0.0, None)
    assert not hasattr(live, "stops")


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(st.integers(0, 3) | st.sampled_from([2**31, 2**40]), max_size=60),
    st.integers(1, 20),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_places_are_those_that_a_search_finds(text, piece, last):
    """However the text is cut into pieces, and however large ids are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "_PIECE", piece)
        lookup = Lookup(text)
        for _ in range(-(-len(text) // piece)):
            lookup.grow()
    wanted = [end for end in range(3, len(text)) if text[end - 3 : end] == last]
    small = max(text, default=0) < 4
    found = lookup.places(last)
    assert found == wanted[-8:] if small else set(found) >= set(wanted[-8:][-1:])


def test_a_step_takes_in_one_piece_of_a_long_prompt(monkeypatch):
    """The last one first; and until the beginning is there too, nothing of it is proposed."""
    monkeypatch.setattr(speculation, "_PIECE", 50)
    text = [1, 2, 3, 4, *range(10, 150), 1, 2, 3]
    drafter = Drafter(text, len(text))
    assert drafter.propose(1) == []
    assert drafter.propose(1) == []
    assert drafter.propose(1) == [4]
