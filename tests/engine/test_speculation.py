"""Laws of drafts: they come from what was there, cost little where they do not pay, and change nothing."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from engine_requests import GREEDY, TOKENIZER, ask, ids, model, run
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model

from llama.engine import Engine, speculation
from llama.engine.speculation import MAX_DRAFT, Drafter
from llama.sampling import SamplingParams

# ---- where drafts come from --------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 3), max_size=60)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(tokens, st.integers(0, 60), st.integers(0, MAX_DRAFT))
def test_a_draft_continues_a_place_where_the_last_three_tokens_stood(text, first, most):
    known = text[:first]
    drafter = Drafter(known, 0)
    for token in [*text[first:], None]:
        draft = drafter.propose(most)
        assert len(draft) <= most
        if draft:
            assert len(known) > 3
            ends = [e for e in range(3, len(known)) if known[e - 3 : e] == known[-3:]]
            whole = [[*known, *draft][e : e + len(draft)] for e in ends]
            assert draft in whole
        elif most:
            # None only where nothing was seen before; the balance is full, since nothing was rejected.
            assert all(known[e - 3 : e] != known[-3:] for e in range(3, len(known)))
        if token is not None:
            known.append(token)


def test_of_several_places_the_one_that_agrees_longest_is_taken():
    text = [1, 2, 3, 4, 5, 50, 9, 9, 3, 4, 5, 60, 7, 7, 1, 2, 3, 4, 5]
    assert Drafter(text, 0).propose(1) == [50]


def test_a_loop_is_drafted_beyond_its_end():
    assert Drafter([7, 1, 2, 3, 1, 2, 3], 0).propose(4) == [1, 2, 3, 1]


def test_a_prediction_is_followed_from_its_start_and_found_again_after_a_change():
    prompt, prediction = [100, 101, 102], list(range(10, 40))
    known = list(prompt)
    drafter = Drafter(known, len(prompt), prediction)
    assert drafter.propose(6) == prediction[:6]
    known += [10]
    assert drafter.propose(3) == [11, 12, 13]
    known += [11, 12, 99]
    assert drafter.propose(3) == []
    known += [14, 15, 16]
    assert drafter.propose(3) == [17, 18, 19]


# ---- what they cost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [0.0, 0.05, 0.12, 0.3, 0.9])
def test_drafting_never_loses_more_than_a_few_steps_in_a_hundred(right):
    """By the account's own prices, whatever share of the drafted tokens is right."""
    chance = random.Random(3)
    known = [1, 2, 3] * 5
    drafter, drafts, rows, gained, steps = Drafter(known, 0), 0, 0, 0, 3000
    for _ in range(steps):
        draft = drafter.propose(MAX_DRAFT)
        accepted = next((i for i in range(len(draft)) if chance.random() >= right), len(draft))
        drafter.judge(len(draft), accepted)
        drafts += bool(draft)
        rows += len(draft)
        gained += accepted
    assert speculation._CHECK * drafts + speculation._ROW * rows - gained <= 0.03 * steps + 1.5
    if right == 0:
        assert drafts > 50, "it is tried again now and then"
    if right == 0.9:
        assert gained > 3 * steps


def test_what_is_always_right_is_drafted_at_full_length():
    drafter = Drafter([1, 2, 3] * 5, 0)
    lengths = []
    for _ in range(6):
        draft = drafter.propose(MAX_DRAFT)
        drafter.judge(len(draft), len(draft))
        lengths.append(len(draft))
    assert lengths[0] <= 4
    assert lengths[-1] == MAX_DRAFT


# ---- they change nothing -----------------------------------------------------------------------------


@pytest.fixture
def generous(monkeypatch):
    """Drafts are tried whether or not they pay."""
    monkeypatch.setattr(speculation, "_EARNED", 4.0)


def scripted(table, vocab):
    """A model of which token follows which: row t of the table holds the logits after token t."""
    made = tiny_model(max_batch_size=8, max_seq_len=512)
    size = made.vocab_size

    def hidden(tokens_T, step):
        return tokens_T[:, None].float()

    def logits(hidden_NC):
        out = torch.full((len(hidden_NC), size), -1e30)
        out[:, 3 : 3 + vocab] = table[hidden_NC[:, 0].long() - 3]
        return out

    made.hidden, made.logits = hidden, logits
    return made


def followers(output, vocab):
    counts = torch.zeros(vocab, vocab)
    for a, b in itertools.pairwise(output):
        counts[a - 3, b - 3] += 1
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(1.0, 1.0), SamplingParams(0.7, 1.0, top_k=3)],
    ids=["free", "top-k"],
)
@pytest.mark.usefixtures("generous")
def test_the_distribution_is_that_of_the_model(sampling):
    """Chi-square of what followed each token, over many seeds, with drafts from text and prediction."""
    vocab = 4
    table = 3 * torch.rand(vocab, vocab, generator=torch.Generator().manual_seed(1))
    made = scripted(table, vocab)
    counts = torch.zeros(vocab, vocab)
    requests = []
    for seed in range(30):
        guess = tuple(3 + (seed + i) % vocab for i in range(200))
        requests.append(ask((3, 4, 5, 6, 3), 200, sampling, seed=seed, prediction=guess if seed % 2 else ()))
    engine = Engine(made, TOKENIZER)
    for result in run(engine, requests, limit=1000).values():
        assert len(result.sequence.output) == 200
        counts += followers([3, *result.sequence.output], vocab)
    drafted = engine.snapshot().accepted_tokens
    assert drafted > 500, "too few drafts were accepted for this to say anything"
    wanted = torch.softmax(table / sampling.temperature, dim=-1)
    if sampling.top_k:
        wanted[wanted < wanted.topk(sampling.top_k).values[:, -1:]] = 0
        wanted /= wanted.sum(-1, keepdim=True)
    expected = wanted * counts.sum(-1, keepdim=True)
    assert torch.equal(counts > 0, expected > 0)
    seen = expected > 0
    chi = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    freedom = int(seen.sum()) - vocab
    assert chi < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.slow
@pytest.mark.parametrize("table", range(3))
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(1.0, 0.9),
        SamplingParams(0.8, 1.0, top_k=3, min_p=0.05),
        SamplingParams(0.9, 1.0, repetition_penalty=1.4),
        SamplingParams(0.9, 1.0, presence_penalty=0.4, frequency_penalty=-0.02, logit_bias={4: 0.5}),
    ],
    ids=["greedy", "top-p", "top-k, min-p", "penalty", "bias"],
)
@pytest.mark.usefixtures("generous")
def test_a_seed_gives_the_same_tokens_and_scores_with_and_without_drafts(sampling, table):
    """Of two requests in one engine, where one may have a draft when the other has none."""
    vocab = 6
    table = 3 * torch.rand(vocab, vocab, generator=torch.Generator().manual_seed(table))
    made = scripted(table, vocab)
    whole = []
    for speculate in (True, False):
        engine = Engine(made, TOKENIZER)
        requests = [
            ask((3, 4, 5, 6, first), 150, sampling, seed=first, top=2, speculate=speculate)
            for first in (3, 8)
        ]
        results = run(engine, requests)
        whole.append([(each.sequence.output, each.sequence.scores) for _, each in sorted(results.items())])
        assert (engine.snapshot().accepted_tokens > 0) == speculate
    assert whole[0] == whole[1]


@pytest.mark.parametrize(
    "strong",
    [
        SamplingParams(temperature=0, repetition_penalty=1e6),
        SamplingParams(temperature=0, presence_penalty=100),
        SamplingParams(temperature=0, frequency_penalty=0.5),
    ],
    ids=["repetition", "presence", "frequency"],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_sees_what_was_drafted_before_a_token(seed, strong):
    """Where most of the output is new: what a draft holds counts as written for the next position."""
    free = run(Engine(model(4), TOKENIZER), [ask(ids(9, seed), 40, strong, speculate=False)])[0, 0]
    guess = tuple(free.sequence.output)
    drafted = run(Engine(model(4), TOKENIZER), [ask(ids(9, seed), 40, strong, prediction=guess)])[0, 0]
    assert drafted.whole == free.whole


def test_a_prediction_that_is_right_saves_most_steps():
    free = run(Engine(model(4), TOKENIZER), [ask(ids(9), 40)])[0, 0].sequence.output
    engine = Engine(model(4), TOKENIZER)
    engine.add(ask(ids(9), 40, prediction=tuple(free)))
    steps, texts = 0, []
    while engine.unfinished:
        (delta,) = engine.step()
        texts.append(delta.text)
        steps += 1
    assert delta.sequence.output == free
    assert steps <= 2 + 40 / 6
    assert "".join(texts) == TOKENIZER.decode_infilling(free)


def test_ends_within_an_accepted_draft():
    """A stop id, a stop string and the limit, each with a prediction that goes on past it."""
    free = run(Engine(model(4), TOKENIZER), [ask(ids(9), 40)])[0, 0]
    output = free.sequence.output
    position = next(k for k in range(5, 40) if output[k] not in output[:k])
    cases = [{"stop_ids": frozenset({output[position]})}, {"stop": (free.text[7:10],)}, {}]
    for case in cases:
        new = 12 if not case else 40
        results = [
            run(
                Engine(model(4), TOKENIZER),
                [ask(ids(9), new, prediction=guess, speculate=bool(guess), **case)],
            )
            for guess in ((), tuple(output))
        ]
        assert results[0][0, 0].whole == results[1][0, 0].whole
        assert len(results[1][0, 0].sequence.scores) == len(results[1][0, 0].sequence.output)
