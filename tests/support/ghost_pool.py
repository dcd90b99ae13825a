"""A model whose "key" at a position is a hash of the tokens up to it, so that each step can look at what it sees.

It has no arithmetic: the next token is a function of the hash. The pool is a list of slots; what was given back to the
system is gone.
"""

from __future__ import annotations

import collections

import torch
from torch import nn

from llama.distributed.parallel import Parallel
from llama.kv_cache import Step
from llama.model import ModelArgs

SHAPE = {"dim": 64, "n_layers": 1, "n_heads": 4, "multiple_of": 16}
# Tokens that it writes: few, so that texts repeat themselves and each other.
FIRST, TOKENS = 3, 5
STOP = 8


class PlantedError(Exception):
    """A failure that the test asked for."""


class GhostPool:
    """Slots of (hash of the prefix, version of the model)."""

    def __init__(self, model, blocks, size):
        self.model, self.size, self.device, self.form = model, size, model.device, model.dtype
        self.shift = size.bit_length() - 1
        self.slots = [None] * (blocks * size)

    def _block(self, block):
        return self.slots[block * self.size : (block + 1) * self.size]

    def copy(self, sources, targets):
        self.model.fails("copy")
        assert len(set(targets)) == len(targets)
        held = [self._block(source) for source in sources]
        for target, block in zip(targets, held, strict=True):
            self.slots[target * self.size : (target + 1) * self.size] = block
        self.model.counts["copied"] += len(sources)

    def give_back(self, first, count):
        self.slots[first * self.size : (first + count) * self.size] = [None] * (count * self.size)
        self.model.counts["given_back"] += count

    def step(self, parts):
        return Step(self, parts)


class GhostModel(nn.Module):
    """What an engine needs of a model. `engine` is set once there is one; `fail` names what fails next."""

    def __init__(self, vocab, max_batch_size, max_seq_len):
        super().__init__()
        self.params = ModelArgs(
            **SHAPE, vocab_size=vocab, max_batch_size=max_batch_size, max_seq_len=max_seq_len
        )
        self.vocab_size, self.parallel, self.cache_dtype = vocab, Parallel(), "auto"
        self.device = torch.device("cpu")
        self.version = nn.Parameter(torch.zeros(1), requires_grad=False)
        self._dtype = torch.float32
        # Names that a look at the model does not see.
        self._engine = self._batch = self._fail = None
        self._born = {}
        self.counts = collections.Counter()  # of what happened

    @property
    def dtype(self):
        return self._dtype

    def new_pool(self, blocks, size):
        return GhostPool(self, blocks, size)

    def fits(self, pool):
        return (pool.form, pool.device) == (self.dtype, self.device)

    def watched(self, engine):
        """Know the engine, and the batch of each step."""
        plain = engine.runner.run

        def run(batch):
            self._batch = list(batch)
            return plain(batch)

        self._engine, engine.runner.run = engine, run
        manager, self.taken_over = engine.scheduler.cache_manager, 0
        reuse_begun = manager.reuse_begun

        def counted(sequence):
            copy = reuse_begun(sequence)
            self.taken_over += copy is not None
            return copy

        manager.reuse_begun = counted
        return engine

    def fails(self, place):
        if self._fail == place:
            self._fail = None
            self.counts["failed"] += 1
            raise PlantedError(place)

    def hidden(self, tokens_T, step):
        """Write a hash for each token; then look at all that each sequence sees."""
        self.fails("before")
        blocks, prefixes = self._engine.blocks, self._engine.scheduler.prefixes
        wanted, version = [], int(self.version)
        assert len(step) == len(self._batch)
        tokens = iter(tokens_T.tolist())
        for (sequence, start, length, draft), table in zip(self._batch, step.tables, strict=True):
            known = [*sequence.tokens[: start + length - len(draft)], *draft]
            hashes = prefix_hashes(known)
            assert [next(tokens) for _ in range(length)] == known[start:]
            for position in range(start, start + length):
                block = table[position // blocks.size]
                assert blocks.holders(block) == 1, "others hold what is written"
                assert prefixes is None or block not in prefixes._nodes, "the tree has what is written"
                step.pool.slots[block * blocks.size + position % blocks.size] = hashes[position], version
            wanted.append(hashes)
        self.fails("between")
        for (sequence, *_), table, hashes in zip(self._batch, step.tables, wanted, strict=True):
            born = self._born.setdefault(sequence, version)
            for position, each in enumerate(hashes):
                block = table[position // blocks.size]
                found, made = step.pool.slots[block * blocks.size + position % blocks.size]
                assert found == each, "not its own prefix"
                assert made >= born, "of a model that was changed before it began"
                self.counts["shared"] += blocks.holders(block) > 1
            self.counts["seen"] += len(hashes)
        rows = [
            hashes[start : start + length]
            for (_, start, length, _), hashes in zip(self._batch, wanted, strict=True)
        ]
        return torch.tensor([[each] for row in rows for each in row])

    def logits(self, hidden_NC):
        self.fails("logits")
        if self._fail == "not finite":
            self._fail = None
            return torch.full((len(hidden_NC), self.vocab_size), torch.nan)
        out = torch.zeros(len(hidden_NC), self.vocab_size)
        for row, (each,) in zip(out, hidden_NC.tolist(), strict=True):
            row[follower(each)] = 50.0
            row[FIRST + each % TOKENS] = 50.0  # a second one, where something is drawn
        return out

    def settle(self):
        """Forget when those began that do not run any more; forks began with their first sample."""
        running = self._engine.scheduler.running
        self._born = {sequence: born for sequence, born in self._born.items() if sequence in running}
        for sequence in running:
            kin = [born for other, born in self._born.items() if other.request_id == sequence.request_id]
            self._born.setdefault(sequence, min(kin, default=int(self.version)))


def prefix_hashes(tokens):
    """Of each position: of the tokens up to it."""
    found, last = [], 0
    for token in tokens:
        last = hash((last, token)) & 0xFFFFFFFFFFFF
        found.append(last)
    return found


def follower(each):
    """The token that the model finds likeliest; the first of two that are alike."""
    return min(FIRST + each // 7 % (TOKENS + 1), FIRST + each % TOKENS)


def greedy(prompt, new, stops):
    """What the model writes behind a prompt."""
    tokens = list(prompt)
    for _ in range(new):
        token = follower(prefix_hashes(tokens)[-1])
        if token in stops:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
