"""Requests on a tiny model: how tests make and run them, and what each would get alone."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools

import pytest
import torch
from tiny_llama import tiny_model
from tiny_tokenizers import tiny_tokenizer

from llama.engine import Engine, FinishReason, Request
from llama.sampling import GREEDY, SamplingParams

TOKENIZER = tiny_tokenizer()
SAMPLED = SamplingParams(temperature=1.2, top_p=0.95)
PENALIZED = SamplingParams(temperature=0.9, top_p=1.0, top_k=20, repetition_penalty=1.3)

BIASED = SamplingParams(0.9, 1.0, presence_penalty=0.3, frequency_penalty=-0.2, logit_bias={9: 3.0, 2: -2.0})


@functools.cache
def model(max_batch_size=4, max_seq_len=64, shape="fused"):
    return tiny_model(shape, max_batch_size=max_batch_size, max_seq_len=max_seq_len)


@functools.cache
def texty():
    """A model that writes pieces with text only: no control ids, no single bytes."""
    made = tiny_model("fused", max_batch_size=4, max_seq_len=64)
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


def text_of(request, tokens):
    """The text of ids as a sequence of this request writes it."""
    return (TOKENIZER.decode if request.start_of_text else TOKENIZER.decode_infilling)(list(tokens))


class Result:
    """What a client puts together from the deltas of one sample, and checks: text, then ids, then scores."""

    def __init__(self):
        self.text, self.reason, self.sequence = "", None, None
        self.tokens, self.told, self.prompt_scores, self.deltas = [], [], [], 0

    def take(self, delta):
        assert self.reason is None, "a delta after the end"
        self.deltas += 1
        self.text += delta.text
        self.reason, self.sequence = delta.finish_reason, delta.sequence
        self.tokens += delta.tokens
        self.told += delta.scores
        assert self.deltas == 1 or not delta.prompt_scores
        self.prompt_scores += delta.prompt_scores
        assert self.text.startswith(text_of(delta.sequence.request, self.tokens)), "an id before its text"
        if delta.finish_reason not in (None, FinishReason.ERROR):
            assert self.tokens == self.sequence.output
            assert self.told == self.sequence.scores
            assert self.prompt_scores == self.sequence.prompt_scores

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


def same_scores(got, wanted):
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-3)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


def plain(**more):
    """An engine without reuse and drafts."""
    return Engine(model(4), TOKENIZER, prefix_reuse=False, speculate=False, **more)


@functools.cache
def alone(request, sample=0):
    """A sample by itself, without reuse, drafts or siblings."""
    single = dataclasses.replace(request, n=1, first_sample=request.first_sample + sample, prediction=())
    return run(plain(), [single])[0, 0]


def same_as_alone(result, request, sample):
    expected = alone(request, sample)
    assert result.whole == expected.whole
    for mine, theirs in zip(result.scores, expected.scores, strict=True):
        same_scores(mine, theirs)


def conserved(engine):
    """Every block is free, held by as many as are counted, or kept in the tree; the tree says what is in them."""
    scheduler, blocks = engine.scheduler, engine.blocks
    held = accounted(blocks, scheduler.prefixes, scheduler.running)
    snapshot = engine.snapshot()
    assert snapshot.running == sum(s.slots for s in scheduler.running)
    assert snapshot.cache_used == held * blocks.size
    assert snapshot.cache_used + snapshot.cache_retained == blocks.used * blocks.size
    assert snapshot.cache_tokens == blocks.total * blocks.size
    for sequence in scheduler.running:
        assert sequence.finish_reason is None
        assert 0 < sequence.computed + 1 <= len(sequence.tokens)
    for sequence in scheduler._preempted:
        assert not sequence.table
        assert sequence.computed == sequence.reserved == 0
    assert sum(s.slots for s in scheduler.running) <= scheduler.limits.max_batch_size
    assert scheduler.running == sorted(scheduler.running, key=lambda s: s.key)


def accounted(blocks, prefixes, running):
    """Hold the account of blocks to what running sequences and the tree have -> how many blocks are held."""
    holders = collections.Counter(itertools.chain.from_iterable(sequence.table for sequence in running))
    assert 0 not in holders
    assert [blocks.holders(block) for block in range(1, blocks.total + 1)] == [
        holders[block] for block in range(1, blocks.total + 1)
    ]
    free = [block for start, length in blocks._gaps.items() for block in range(start, start + length)]
    kept = [node.block for node in prefixes._unheld] if prefixes else []
    assert sorted([*free, *holders, *kept]) == list(range(1, blocks.total + 1))
    assert len(free) == blocks.free
    assert blocks._idle <= set(free)
    assert blocks.reserved == sum(sequence.reserved for sequence in running) <= len(free) + len(kept)
    for sequence in running:
        assert len(set(sequence.table)) == len(sequence.table) >= blocks.needed(sequence.computed)
    if prefixes:
        assert prefixes.unheld == len(kept) <= prefixes.limit
        in_tree(prefixes, running, holders)
    return len(holders)


def in_tree(prefixes, running, holders):
    """A block is behind blocks that are there, and held only behind blocks that are held; each path is its
    sequence's own."""
    assert set(prefixes._paths) == {sequence for sequence in running if not sequence.stale}
    found, followers = {}, set()

    def walk(node):
        for edge, child in node.children.items():
            assert (child.parent, child.edge) == (node, edge)
            assert child.block or child.followers, "a node that says nothing"
            followers.update(child.followers)
            if child.block:
                assert node is prefixes._root or node.block
                assert node is prefixes._root or holders[node.block] >= min(1, holders[child.block])
                assert (child in prefixes._unheld) == (not holders[child.block])
                assert child.block not in found
                found[child.block] = child
            walk(child)

    walk(prefixes._root)
    assert found == prefixes._nodes
    assert followers <= set(prefixes._paths)
    for sequence, path in prefixes._paths.items():
        full = sequence.computed // prefixes.size
        for i, node in enumerate(path.nodes):
            assert node.edge == tuple(sequence.tokens[i * prefixes.size : (i + 1) * prefixes.size])
            assert sequence in node.followers
            assert i >= full or node.block == sequence.table[i]
        # What it has yet to write is nobody's prefix.
        assert not found.keys() & set(sequence.table[full:])


def kept(engine):
    """The tokens of the longest prefixes that are kept and not held, the least recently used first."""
    prefixes, found = engine.scheduler.prefixes, []
    for node in prefixes._unheld:
        tokens = []
        while node is not prefixes._root:
            tokens[:0] = node.edge
            node = node.parent
        if not any(other[: len(tokens)] == tokens for other in found):
            found.append(tokens)
    return found


def build(batch, setup):
    """An engine with these options; `reserve_tokens` is one of its limits."""
    engine = Engine(model(batch), TOKENIZER, **{k: v for k, v in setup.items() if k != "reserve_tokens"})
    engine.scheduler.limits = dataclasses.replace(
        engine.scheduler.limits, reserve_tokens=setup["reserve_tokens"]
    )
    return engine


def computed(engine):
    """A list that grows by the tokens of each forward."""
    plain, counts = engine.runner.run, []

    def counted(batch):
        counts.append(sum(scheduled.length for scheduled in batch))
        return plain(batch)

    engine.runner.run = counted
    return counts


def run_one(engine, request):
    """Run a request to its end -> its sequence."""
    engine.add(request)
    while engine.unfinished:
        last = engine.step()
    return last[-1].sequence
