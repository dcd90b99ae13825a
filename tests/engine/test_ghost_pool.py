"""The law of shared blocks: whatever happens, each position that a step sees is of the sequence's own prefix, and
nobody writes what another holds. Each engine runs twice, as two ranks would, and both have the same tables."""

from __future__ import annotations

import dataclasses
import os
import random

import torch
from engine_requests import GREEDY, SAMPLED, TOKENIZER, conserved
from ghost_pool import FIRST, STOP, TOKENS, GhostModel, PlantedError, greedy

from llama.engine import Engine, FinishReason, Request
from llama.errors import OutOfMemoryError

SEQ = 96
# More of them: SEEDS=1000, some minutes.
SEEDS = int(os.environ.get("SEEDS", "20"))


def test_each_sees_its_own_prefix_and_nobody_writes_what_others_hold():
    seen = {}
    for seed in range(SEEDS):
        try:
            Story(random.Random(seed)).run(seen)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
    # The law says little of what never happened.
    rare = {name: seen[name] for name in seen if seen[name] < 8}
    assert not rare


class Story:
    """Two engines of one kind, and what happens to both."""

    def __init__(self, chance):
        self.chance = chance
        self.size = chance.choice([1, 1, 2, 4, 8, 16, 32, 64])
        batch = chance.randint(1, 6)
        self.setup = {
            "cache_tokens": max(48, self.size * chance.randint(1, 6)) + chance.randint(0, 80),
            "retained_tokens": chance.choice([0, 20, 1000, 1000]),
            "step_tokens": chance.choice([1, 5, 16, 1024]),
            "prefill_tokens": chance.choice([1, 8, 64]),
            "prefix_reuse": chance.random() < 0.85,
            "speculate": chance.random() < 0.7,
            "block": self.size,
        }
        reserve = chance.choice([0, 1, 8, 64])
        self.engines = []
        for _ in range(2):
            model = GhostModel(TOKENIZER.n_words, batch, SEQ)
            engine = model.watched(Engine(model, TOKENIZER, **self.setup))
            engine.scheduler.limits = dataclasses.replace(engine.scheduler.limits, reserve_tokens=reserve)
            self.engines.append(engine)
        self.stems = [[chance.randrange(FIRST, FIRST + TOKENS) for _ in range(60)] for _ in range(2)]
        self.wanted, self.outputs, self.gone = {}, {}, set()
        self.left = chance.randint(6, 14)  # requests that are still to come

    def run(self, seen):
        for step in range(2000):
            self.happen(step)
            self.step()
            if step > 60 and not self.left and not self.engines[0].unfinished:
                break
        else:
            raise AssertionError("it never ends")
        self.check_outputs()
        for engine in self.engines:
            assert engine.blocks.reserved == 0
            assert engine.blocks.used == (
                engine.scheduler.prefixes.unheld if engine.scheduler.prefixes else 0
            )
        model, snapshot = self.engines[0].model, self.engines[0].snapshot()
        told = {
            **model.counts,
            "preempted": snapshot.preemptions,
            "reused": snapshot.reused_tokens,
            "taken over": self.engines[0].model.taken_over,
            "accepted": snapshot.accepted_tokens,
            "rejected": snapshot.drafted_tokens - snapshot.accepted_tokens,
            "cancelled": snapshot.cancelled,
            "not finite": snapshot.failed,
            "changed": int(model.version),
        }
        for name, count in told.items():
            seen[name] = seen.get(name, 0) + count

    def step(self):
        tables = []
        for engine in self.engines:
            try:
                deltas = engine.step()
            except PlantedError:
                deltas = []
            conserved(engine)
            engine.model.settle()
            tables.append([(s.key, s.computed, s.reserved, list(s.table)) for s in engine.scheduler.running])
        assert tables[0] == tables[1], "ranks are apart"
        for delta in deltas:
            assert delta.finish_reason is FinishReason.ERROR or delta.key[0] not in self.gone
            self.outputs.setdefault(delta.key, []).extend(delta.tokens)
            if delta.finish_reason is FinishReason.ERROR:
                self.gone.add(delta.key[0])
            elif delta.finish_reason is not None:
                self.outputs[delta.key].append(None)

    def happen(self, step):
        """What comes between two steps."""
        chance = self.chance
        if self.left and chance.random() < 0.3:
            self.left -= 1
            self.add(self.request())
        if step > 60:
            if step == 61:
                self.each(lambda engine: [engine.resume(number) for number in self.wanted])
            return
        number = chance.randrange(max(1, len(self.wanted)))
        match chance.randrange(40):
            case 0 if number in self.wanted:
                self.each(lambda engine: engine.cancel(number))
                self.gone.add(number)
            case 1 | 2:
                self.each(lambda engine: engine.pause(number))
            case 3 | 4 | 5:
                self.each(lambda engine: engine.resume(number))
            case 6 | 7 | 8:
                place = chance.choice(["copy", "before", "between", "logits", "not finite"])
                self.each(lambda engine: setattr(engine.model, "_fail", place))
            case 9:
                self.each(lambda engine: engine.model.version.add_(1))
            case 10:
                self.each(lambda engine: setattr(engine, "_torn", True))  # as an interrupt leaves it
            case 11:
                dtype = chance.choice([torch.float32, torch.bfloat16])
                self.each(lambda engine: setattr(engine.model, "_dtype", dtype))

    def each(self, do):
        for engine in self.engines:
            do(engine)

    def request(self):
        chance = self.chance
        stem = chance.choice(self.stems)[: chance.randint(0, 55)]
        prompt = (1, *stem, *(chance.randrange(FIRST, FIRST + TOKENS) for _ in range(chance.randint(0, 6))))
        new = chance.choice([0, 1, 2, 8, 20, SEQ - len(prompt)])
        sampling = chance.choice([GREEDY, GREEDY, SAMPLED])
        return Request(
            prompt,
            min(new, SEQ - len(prompt)),
            sampling,
            stop_ids=frozenset(chance.choice([(), (), (STOP,)])),
            n=chance.choice([1, 1, 2, 3, 5]),
            seed=chance.randrange(5),
            score_prompt=chance.random() < 0.15,
            streaming=chance.random() < 0.5,
        )

    def add(self, request):
        for engine in self.engines:
            try:
                number = engine.add(request)
            except OutOfMemoryError:
                return
        self.wanted[number] = request

    def check_outputs(self):
        for number, request in self.wanted.items():
            for sample in range(request.n):
                if number in self.gone:
                    continue
                output = self.outputs[number, sample]
                assert output.pop() is None
                if request.sampling is GREEDY:
                    assert output == greedy(request.prompt, request.max_new_tokens, request.stop_ids)
