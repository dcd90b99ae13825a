"""Laws of a delta: ids come with the end of their text, never before it, each once, and each with its score."""

from __future__ import annotations

from engine_requests import PENALIZED, SAMPLED, TOKENIZER, Result, ask, ids, model, run
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.detokenizer import Detokenizer
from llama.engine import Delta, Engine, FinishReason, SequenceState, TokenScore
from llama.engine.output import extend
from llama.engine.rows import SampledToken


def byte(value):
    """The id of a byte piece."""
    return next(i for i in range(TOKENIZER.n_words) if TOKENIZER.token_bytes(i) == bytes([value]))


def piece(text):
    return next(i for i in range(TOKENIZER.n_words) if TOKENIZER.token_bytes(i) == text)


def written(tokens, **more):
    """The deltas of a sequence that writes these ids, one at a time."""
    request = ask(4, len(tokens), **more)
    detokenizer = Detokenizer(TOKENIZER, stop=request.stop)
    sequence = SequenceState(0, request, 0, detokenizer, list(request.prompt))
    deltas = []
    for i, token in enumerate(tokens):
        if sequence.finish_reason is None:
            extend(sequence, [SampledToken(token, TokenScore(-1.0 * i))], (), 0.0)
            deltas.append(Delta.unread(sequence))
    assert Delta.unread(sequence) is None
    return deltas


def test_the_ids_of_a_character_come_with_the_last_of_them():
    first, second, last = byte(0xC3), byte(0xA9), piece("e")
    deltas = written([last, first, second, last])
    assert [delta.text for delta in deltas] == ["e", "", "é", "e"]
    assert [delta.tokens for delta in deltas] == [(last,), (), (first, second), (last,)]
    assert [[score.logprob for score in delta.scores] for delta in deltas] == [[0], [], [-1, -2], [-3]]


def test_ids_without_text_come_at_once_or_with_the_text_before_them():
    control, e = TOKENIZER.bos_id, piece("e")
    assert [delta.tokens for delta in written([control, e, control, e])] == [
        (control,),
        (e,),
        (control,),
        (e,),
    ]
    held = written([e, control, e, control], stop=("eex",))
    assert [delta.text for delta in held] == ["", "", "", "ee"]
    assert [delta.tokens for delta in held] == [(), (), (), (e, control, e, control)]


def test_ids_whose_text_is_held_for_a_stop_string_come_when_it_is_free_or_never():
    a, e, r = piece("a"), piece("e"), piece("r")
    free = written([a, e, r], stop=("aex",))
    assert [delta.tokens for delta in free] == [(), (), (a, e, r)]
    ended = written([r, a, e], stop=("ae",))
    assert [delta.tokens for delta in ended] == [(r,), (), ()]
    assert ended[-1].finish_reason is FinishReason.STOP_SEQUENCE


def test_ids_that_are_not_of_the_output_stay_known():
    """The stop id, and what a stop string cut off: doors tell clients of them."""
    a, e, r, eos = piece("a"), piece("e"), piece("r"), TOKENIZER.eos_id
    for stop, written_ids, dropped in (
        ((), [a, eos], [eos]),
        (("er",), [a, e, r], [e, r]),
        (("er", "era"), [a, e, eos], [eos]),
        ((), [a, e], []),
    ):
        last = written(written_ids, stop=stop, stop_ids=frozenset({eos}))[-1].sequence
        assert [token for token, _ in last.dropped] == dropped
        first = len(written_ids) - len(dropped)
        assert [score.logprob for _, score in last.dropped] == [
            -1.0 * i for i in range(first, len(written_ids))
        ]
        assert last.output == written_ids[:first]


def test_bytes_that_are_no_character_come_at_the_end():
    broken = byte(0xC3)
    (first, last) = written([piece("e"), broken])
    assert (first.text, last.text) == ("e", "\ufffd")
    assert last.tokens == (broken,)


def test_what_a_reader_had_not_read_comes_as_one_delta():
    engine = Engine(model(4), TOKENIZER)
    request = ask(5, 9)
    engine.add(request)
    for _ in range(6):
        engine.advance()
    (delta,) = engine.feed.read()
    result = Result()
    result.take(delta)
    assert len(delta.scores) == len(delta.tokens) > 1
    while engine.unfinished:
        for each in engine.step():
            result.take(each)
    assert result.reason is FinishReason.LENGTH


def test_prompt_scores_come_with_the_first_delta_of_each_sample():
    """Also of samples that begin later than the first, and where nothing is generated."""
    for new in (0, 3):
        request = ask(7, new, SAMPLED, n=3, top=2, score_prompt=True)
        results = run(Engine(model(2), TOKENIZER, step_tokens=3), [request])
        for result in results.values():
            assert len(result.prompt_scores) == 6
            assert all(len(score.top) == 2 for score in result.prompt_scores)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    st.integers(0, 9),
    st.integers(1, 20),
    st.sampled_from([(), ("e",), (" a", "re", "ab"), ("\n", "\ufffd")]),
    st.booleans(),
)
def test_joined_deltas_are_text_ids_and_scores_of_the_output(seed, new, stop, start_of_text):
    """What `Result` checks of each delta."""
    more = {"seed": seed, "stop": stop, "start_of_text": start_of_text}
    requests = [ask(ids(5, seed), new, sampling, **more) for sampling in (SAMPLED, PENALIZED)]
    for result in run(Engine(model(4), TOKENIZER), requests).values():
        assert result.deltas >= 1
