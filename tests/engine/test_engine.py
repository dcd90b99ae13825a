"""The engine's law: whatever else runs, and however it is cut into steps, a request gets what it gets alone."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model, twin_logits
from tiny_tokenizers import tiny_tokenizer

from llama.engine import Engine, FinishReason, Request
from llama.errors import NumericsError, OutOfMemoryError, PromptError, PromptTooLongError, RequestError
from llama.model import Transformer
from llama.sampling import GREEDY, SamplingParams

TOKENIZER = tiny_tokenizer()
SAMPLED = SamplingParams(temperature=1.2, top_p=0.95)
PENALIZED = SamplingParams(temperature=0.9, top_p=1.0, top_k=20, repetition_penalty=1.3)


@functools.cache
def model(max_batch_size=4, max_seq_len=64):
    return tiny_model(max_batch_size=max_batch_size, max_seq_len=max_seq_len)


@functools.cache
def texty():
    """A model that writes pieces with text only: no control ids, no single bytes."""
    made = tiny_model(max_batch_size=4, max_seq_len=64)
    silent = [i for i in range(TOKENIZER.n_words) if not isinstance(TOKENIZER.token_bytes(i), str)]
    plain = made.logits

    def logits(hidden_NC):
        return plain(hidden_NC).index_fill(1, torch.tensor(silent), -1e4)

    made.logits = logits
    return made


def ids(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (1, *torch.randint(3, 400, (count - 1,), generator=generator).tolist())


def ask(prompt, new, sampling=GREEDY, **more):
    return Request(ids(prompt) if isinstance(prompt, int) else prompt, new, sampling, **more)


class Result:
    """What a client puts together from the deltas of one sample."""

    def __init__(self):
        self.text, self.reason, self.sequence = "", None, None

    def take(self, delta):
        assert self.reason is None, "a delta after the end"
        self.text += delta.text
        self.reason, self.sequence = delta.finish_reason, delta.sequence

    @property
    def whole(self):
        """All that must not depend on the company; scores apart."""
        return self.sequence.output, self.text, self.reason

    @property
    def scores(self):
        return self.sequence.scores, self.sequence.prompt_scores


def run(engine, requests, results=None, limit=500):
    """Add requests and step until the engine is done -> {(position, sample): Result}."""
    numbers = {engine.add(request): i for i, request in enumerate(requests)}
    results = {} if results is None else results
    for _ in range(limit):
        if not engine.unfinished:
            break
        for delta in engine.step():
            number, sample = delta.key
            results.setdefault((numbers[number], sample), Result()).take(delta)
    else:
        pytest.fail("the engine never ended")
    assert all(result.reason is not None for result in results.values())
    assert sorted(results) == [(i, j) for i, request in enumerate(requests) for j in range(request.n)]
    return results


@functools.cache
def alone(request, sample=0):
    """A sample by itself: n is 1, so that not even its siblings are there."""
    single = Request(
        **{name: getattr(request, name) for name in request.__dataclass_fields__}
        | {"n": 1, "first_sample": request.first_sample + sample}
    )
    return run(Engine(model(4), TOKENIZER), [single])[0, 0]


def same_scores(got, wanted):
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-3)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


def same_as_alone(result, request, sample):
    expected = alone(request, sample)
    assert result.whole == expected.whole
    for mine, theirs in zip(result.scores, expected.scores, strict=True):
        same_scores(mine, theirs)


requests = st.builds(
    ask,
    st.builds(ids, st.integers(1, 30), st.integers(0, 4)),
    st.integers(0, 12),
    st.sampled_from([GREEDY, SAMPLED, PENALIZED]),
    stop_ids=st.sampled_from([frozenset(), frozenset({2}), frozenset(range(0, 430, 9))]),
    stop=st.sampled_from([(), ("e",), (" a", "re", "ab"), ("\n",)]),
    start_of_text=st.booleans(),
    seed=st.integers(0, 5),
    n=st.integers(1, 3),
    top=st.integers(0, 2),
    score_prompt=st.booleans(),
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), requests, st.none() | st.integers(0, 12)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 7, 20, 1024]),
)
def test_any_interleaving_is_each_request_alone(rows, batch, step_tokens):
    engine = Engine(model(batch), TOKENIZER, step_tokens=step_tokens)
    rows = [row for row in rows if row[1].n <= batch]
    numbers, cancelled, results = {}, set(), {}
    for step in range(1500):
        for i, (arrival, request, cancel) in enumerate(rows):
            if arrival == step:
                numbers[engine.add(request)] = i
            if cancel is not None and arrival + cancel == step:
                engine.cancel(next(number for number, j in numbers.items() if j == i))
                cancelled.add(i)
        assert engine.unfinished or not engine.scheduler.running
        for delta in engine.step():
            number, sample = delta.key
            assert numbers[number] not in cancelled, "a delta of a cancelled request"
            results.setdefault((numbers[number], sample), Result()).take(delta)
        assert len(engine.scheduler.running) <= batch
        if step > 20 and not engine.unfinished:
            break
    else:
        pytest.fail("the engine never ended")
    for i, (_, request, _) in enumerate(rows):
        for sample in range(request.n):
            result = results.get((i, sample))
            if result is not None and result.reason is not None:
                same_as_alone(result, request, sample)
            else:
                assert i in cancelled


def test_more_requests_than_places_are_run_in_turns():
    engine = Engine(model(2), TOKENIZER)
    wanted = [ask(ids(5 + i, i), 3 + i) for i in range(7)]
    for i, result in run(engine, wanted).items():
        same_as_alone(result, wanted[i[0]], 0)


def test_the_cache_is_shared_out_as_it_is_given():
    """Room for one request at a time: they still all end, and one that can never fit is refused."""
    engine = Engine(model(4), TOKENIZER, cache_tokens=32)
    wanted = [ask(ids(10, i), 8) for i in range(4)]
    for i, result in run(engine, wanted).items():
        same_as_alone(result, wanted[i[0]], 0)
    with pytest.raises(OutOfMemoryError, match=r"grow to 33 tokens.* room for 32"):
        engine.add(ask(25, 8))
    assert not engine.unfinished


def test_samples_share_one_prefill(monkeypatch):
    """The prompt goes through the model once, whatever n is."""
    made, seen = model(4), []
    hidden = made.hidden
    monkeypatch.setattr(
        made, "hidden", lambda tokens, cache: (seen.append(len(tokens)), hidden(tokens, cache))[1]
    )
    request = ask(20, 5, SAMPLED, n=4, seed=1)
    results = run(Engine(made, TOKENIZER), [request])
    assert sum(seen) == 20 + 4 * (5 - 1)
    assert len({tuple(result.sequence.output) for result in results.values()}) == 4
    monkeypatch.undo()
    for (_, sample), result in results.items():
        same_as_alone(result, request, sample)


def test_samples_go_on_where_an_earlier_request_stopped():
    """Sample 2 of four is sample 0 of a request that begins at 2: so replicas may share out a prompt's samples."""
    request = ask(9, 6, SAMPLED, n=5, seed=3)
    whole = run(Engine(model(8), TOKENIZER), [request])
    small = Engine(model(2), TOKENIZER)
    waves = small.waves(request)
    assert [(wave.first_sample, wave.n) for wave in waves] == [(0, 2), (2, 2), (4, 1)]
    parts = run(small, waves)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [r.whole for r in whole.values()] == [parts[place].whole for place in places]
    # And one request gives all of them, numbered on, whatever the batch.
    assert [(key, r.whole) for key, r in run(small, [request]).items()] == [
        (key, r.whole) for key, r in whole.items()
    ]


def test_memory_goes_with_the_sequence():
    engine = Engine(model(4), TOKENIZER)
    results = run(engine, [ask(30, 10), ask(20, 3, n=2)])
    assert all(result.sequence.cache.nbytes == 0 for result in results.values())


def test_a_running_sequence_holds_what_it_uses_not_the_limits():
    made = tiny_model(max_batch_size=100, max_seq_len=100_000)
    engine = Engine(made, TOKENIZER)
    engine.add(ask(30, 90_000))
    for _ in range(5):
        engine.step()
    (sequence,) = engine.scheduler.running
    assert sequence.cache.capacity <= 30 + 64 + 64


# ---- ends ----------------------------------------------------------------------------------------


def test_a_stop_id_ends_and_is_not_returned():
    free = alone(ask(8, 12)).sequence.output
    for position in range(1, 12):
        if free[position] in free[:position]:
            continue
        result = alone(ask(8, 12, stop_ids=frozenset({free[position]})))
        assert result.sequence.output == free[:position]
        assert result.text == TOKENIZER.decode_infilling(free[:position])
        assert result.reason is FinishReason.STOP
        assert len(result.sequence.scores) == position


def test_the_limit_ends():
    free = alone(ask(8, 12))
    assert free.reason is FinishReason.LENGTH
    for new in range(12):
        result = alone(ask(8, new))
        assert result.sequence.output == free.sequence.output[:new]
        assert result.reason is FinishReason.LENGTH
        assert len(result.sequence.scores) == new


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.integers(0, 30), st.sampled_from([GREEDY, SAMPLED]), st.integers(1, 24), st.data())
def test_stop_strings_are_a_naive_find_in_the_text_of_the_unstopped_run(seed, sampling, new, data):
    free = run(Engine(texty(), TOKENIZER), [ask(ids(6, seed), new, sampling, seed=seed)])[0, 0]
    text, tokens = free.text, free.sequence.output
    assume(len(text) > 2)

    def piece():
        start = data.draw(st.integers(0, len(text) - 1))
        return text[start : start + data.draw(st.integers(1, 9))]

    stop = tuple(piece() for _ in range(data.draw(st.integers(1, 3)))) + data.draw(
        st.sampled_from([(), ("not in there",), (text[-1] + "?",), (text[-3:] + text,)])
    )
    result = run(Engine(texty(), TOKENIZER), [ask(ids(6, seed), new, sampling, seed=seed, stop=stop)])[0, 0]
    cut = min(text.find(s) for s in stop if s in text)
    assert result.text == text[:cut]
    assert result.reason is FinishReason.STOP_SEQUENCE
    # Kept are the tokens whose text ends at or before the cut.
    ends = [len(TOKENIZER.decode_infilling(tokens[: k + 1])) for k in range(len(tokens))]
    assert result.sequence.output == tokens[: sum(end <= cut for end in ends)]
    assert len(result.sequence.scores) == len(result.sequence.output)


def test_text_held_back_for_a_stop_string_that_never_comes_is_given_at_the_end():
    free = run(Engine(texty(), TOKENIZER), [ask(6, 10)])[0, 0]
    for stop in ((free.text[-4:] + "~",), (free.text + "~",), (free.text[3:] + "~", free.text[-1:] + "~")):
        result = run(Engine(texty(), TOKENIZER), [ask(6, 10, stop=stop)])[0, 0]
        assert result.whole == free.whole


def test_a_stop_string_in_what_a_stop_id_releases_counts():
    """The text that ended with the stop id is looked through like any other."""
    free = run(Engine(texty(), TOKENIZER), [ask(6, 10)])[0, 0]
    tokens = free.sequence.output
    position = next(k for k in range(3, 10) if tokens[k] not in tokens[:k])
    before = TOKENIZER.decode_infilling(tokens[:position])
    cases = {(before[-2:],): (before[: before.find(before[-2:])], FinishReason.STOP_SEQUENCE)}
    cases[before[-2:] + "~", "nowhere"] = (before, FinishReason.STOP)
    for stop, (text, reason) in cases.items():
        request = ask(6, 10, stop=stop, stop_ids=frozenset({tokens[position]}))
        result = run(Engine(texty(), TOKENIZER), [request])[0, 0]
        assert (result.text, result.reason) == (text, reason)


@pytest.mark.parametrize("score_prompt", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_no_new_token_is_asked_for(n, score_prompt):
    request = ask(9, 0, n=n, score_prompt=score_prompt, top=2)
    results = run(Engine(model(4), TOKENIZER), [request])
    for result in results.values():
        assert result.whole == ([], "", FinishReason.LENGTH)
        assert result.sequence.scores == []
        assert len(result.sequence.prompt_scores) == (8 if score_prompt else 0)


def test_no_new_token_and_no_scores_run_no_model(monkeypatch):
    monkeypatch.setattr(model(4), "hidden", lambda *_: pytest.fail("the model was run"))
    run(Engine(model(4), TOKENIZER), [ask(9, 0, n=2)])


def test_cancel_also_drops_what_had_nothing_to_do():
    engine = Engine(model(4), TOKENIZER)
    gone, kept = engine.add(ask(9, 0)), engine.add(ask(9, 0))
    engine.cancel(gone)
    assert [delta.key[0] for delta in engine.step()] == [kept]
    assert not engine.unfinished
    engine.cancel(kept)
    engine.cancel(12345)


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_tokens", [1, 50, 1024])
def test_prompt_scores_are_the_log_softmax_of_the_twin(step_tokens):
    """200 tokens: more than the rows of logits that exist at once."""
    prompt = ids(200)
    engine = Engine(model(4, 256), TOKENIZER, step_tokens=step_tokens)
    request = ask(prompt, 2, score_prompt=True, top=3)
    sequence = run(engine, [request])[0, 0].sequence
    logs = torch.log_softmax(twin_logits([*prompt, *sequence.output]).double(), dim=-1)
    every = [*sequence.prompt_scores, *sequence.scores]
    assert len(every) == 199 + 2
    for row, target, score in zip(logs, [*prompt[1:], *sequence.output], every, strict=False):
        assert score.logprob == pytest.approx(float(row[target]), abs=2e-3)
        best = row.topk(3)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=2e-3)
    assert [score.logprob for score in sequence.scores] == [score.top[0][1] for score in sequence.scores]


def test_scores_are_of_the_model_not_of_the_limits():
    """Temperature, top-k and penalty choose; the log-probability is still the model's."""
    result = alone(ask(12, 8, PENALIZED, seed=2))
    logs = torch.log_softmax(twin_logits([*ids(12), *result.sequence.output]).double(), dim=-1)[11:]
    for row, token, score in zip(logs, result.sequence.output, result.sequence.scores, strict=False):
        assert score.logprob == pytest.approx(float(row[token]), abs=2e-3)


def test_each_request_gets_the_alternatives_it_asked_for():
    wanted = [ask(ids(6, i), 4, top=i) for i in range(4)]
    for (i, _), result in run(Engine(model(4), TOKENIZER), wanted).items():
        assert [len(score.top) for score in result.sequence.scores] == [i] * 4


def test_the_penalty_sees_prompt_and_output():
    strong = SamplingParams(temperature=0, repetition_penalty=1e6)
    result = alone(ask(20, 15, strong))
    everything = [*ids(20), *result.sequence.output]
    logits = twin_logits(everything)
    for position in range(20, 35):
        row = logits[position - 1].clone()
        seen = torch.tensor(sorted(set(everything[:position])))
        row[seen] = torch.where(row[seen] > 0, row[seen] / 1e6, row[seen] * 1e6)
        assert int(row.argmax()) == everything[position]


# ---- failures ------------------------------------------------------------------------------------


def test_bad_requests_are_refused_with_the_numbers():
    engine = Engine(model(2), TOKENIZER)
    vocab = TOKENIZER.n_words
    with pytest.raises(PromptError, match="no tokens"):
        engine.add(ask((), 1))
    for bad in (-1, vocab, vocab + 7):
        with pytest.raises(PromptError, match=f"id {bad}, .* 0 to {vocab - 1}"):
            engine.add(ask((1, bad), 1))
    with pytest.raises(PromptTooLongError, match=r"60 tokens and 5 more .* max_seq_len is 64"):
        engine.add(ask(60, 5))
    with pytest.raises(RequestError, match="n is 0; it must be an integer of at least 1"):
        engine.add(ask(5, 5, n=0))
    assert not engine.unfinished
    engine.add(ask(60, 4))


@pytest.mark.parametrize("alternatives", [437, 10**6])
def test_more_alternatives_than_ids_are_refused(alternatives):
    with pytest.raises(RequestError, match=f"{alternatives}.*{TOKENIZER.n_words}"):
        Engine(model(2), TOKENIZER).add(ask(5, 5, top=alternatives))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_that_are_not_finite_are_named_and_the_engine_lives_on(monkeypatch, dtype):
    made = tiny_model(dtype=dtype)
    engine = Engine(made, TOKENIZER, block=4)
    first = engine.add(ask(8, 10))
    engine.step()
    second = engine.add(ask(9, 10))
    # Not by a weight: the engine would see that the model is another one.
    plain = Transformer.logits
    monkeypatch.setattr(Transformer, "logits", lambda self, hidden: plain(self, hidden) * torch.nan)
    for number, step in ((first, 1), (second, 0)):
        (delta,) = engine.step()
        assert (delta.key, delta.text, delta.finish_reason) == ((number, 0), "", FinishReason.ERROR)
        assert isinstance(delta.sequence.error, NumericsError)
        assert re.search(
            f"^row 0, sample 0, step {step}: .* 436 logits .* {dtype}", str(delta.sequence.error)
        )
    monkeypatch.undo()
    assert not engine.unfinished
    # Nothing that may be wrong is used again.
    assert engine.blocks.used == 0
    after = run(engine, [ask(8, 10)])
    assert after[0, 0].whole == run(Engine(made, TOKENIZER), [ask(8, 10)])[0, 0].whole


def test_the_row_that_is_not_finite_is_the_one_that_is_named(monkeypatch):
    made = tiny_model()
    engine = Engine(made, TOKENIZER)
    wanted = [ask(5 + row, 5, row=row) for row in range(3)]
    for request in wanted:
        engine.add(request)
    plain_logits = type(made).logits

    def logits(self, hidden):
        found = plain_logits(self, hidden)
        found[1, 7] = torch.nan
        return found

    monkeypatch.setattr(type(made), "logits", logits)
    (delta,) = engine.step()
    monkeypatch.undo()
    assert (delta.key, delta.finish_reason) == ((1, 0), FinishReason.ERROR)
    assert re.search(r"^row 1, sample 0, step 0: 1 of 436 logits", str(delta.sequence.error))
    # The others are as before the step.
    results = {}
    while engine.unfinished:
        for each in engine.step():
            results.setdefault(each.key, Result()).take(each)
    assert sorted(results) == [(0, 0), (2, 0)]
    for (number, _), result in results.items():
        same_as_alone(result, wanted[number], 0)


def test_a_prompt_that_is_scored_names_its_token():
    made = tiny_model()
    made.norm.assign(made.norm.weight * torch.nan)
    engine = Engine(made, TOKENIZER)
    engine.add(ask(5, 0, score_prompt=True))
    (delta,) = engine.step()
    assert re.search(r"row 0, sample 0, step 0, prompt token 1: .*torch.float32", str(delta.sequence.error))


@pytest.mark.parametrize("step_tokens", [5, 1024])
@pytest.mark.parametrize("failing", range(12))
def test_a_failed_step_is_as_if_it_had_not_been(monkeypatch, failing, step_tokens):
    """The n-th time that logits are made that fails: while a prompt is scored, after its samples
    were forked, or in decode. The step is taken again, and nothing shows of the first try."""
    made = model(4)
    wanted = [ask(9, 6, SAMPLED, n=2, seed=3, top=1, score_prompt=True), ask(12, 4, PENALIZED, seed=1)]
    engine, results = Engine(made, TOKENIZER, step_tokens=step_tokens), {}
    for request in wanted:
        engine.add(request)
    plain, calls, failures = made.logits, 0, 0

    def logits(hidden_NC):
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise MemoryError
        return plain(hidden_NC)

    monkeypatch.setattr(made, "logits", logits)
    while engine.unfinished:
        try:
            deltas = engine.step()
        except MemoryError:
            failures += 1
            continue
        for delta in deltas:
            results.setdefault(delta.key, Result()).take(delta)
    monkeypatch.undo()
    assert failures == (calls > failing)
    assert sorted(results) == [(0, 0), (0, 1), (1, 0)]
    for (number, sample), result in results.items():
        same_as_alone(result, wanted[number], sample)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", True),
        ("max_new_tokens", -3),
        ("seed", -1),
        ("seed", 1.5),
        ("top", -1),
        ("first_sample", -1),
        ("prompt", (1, 5.0, 7)),
        ("prediction", (1, "x")),
        ("stop_ids", frozenset({None})),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", "ab"),
        ("stop", 5),
        ("stop_ids", None),
        ("prompt", None),
        ("prediction", "abc"),
        ("sampling", None),
    ],
)
def test_a_request_that_no_step_could_run_is_refused_at_once(field: str, value: object) -> None:
    """What is built by hand, past the checks of `Llama`: it must not reach the step of its neighbours."""
    engine = Engine(tiny_model(max_batch_size=4), tiny_tokenizer())
    good = Request((1, 5, 7), 3, SamplingParams(temperature=0.0))
    with pytest.raises(RequestError, match=field):
        engine.add(replace(good, **{field: value}))
    assert not engine.unfinished
    engine.add(good)
    while engine.unfinished:
        engine.step()
