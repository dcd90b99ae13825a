"""The engine's loop without a model: what a scheduler plans is done, and looked at."""

from __future__ import annotations

from engine_requests import accounted

from llama.engine.block_pool import BlockPool
from llama.engine.cache_manager import CacheManager
from llama.engine.limits import Limits
from llama.engine.prefix_cache import PrefixCache
from llama.engine.request import Request
from llama.engine.scheduler import Scheduler
from llama.engine.sequence import SequenceState
from llama.sampling import GREEDY


def request(prompt=3, new=4, n=1):
    return Request(tuple(range(prompt)), new, GREEDY, n=n)


class Loop:
    """The engine's loop without a model: every sequence runs for all the tokens it may have."""

    def __init__(self, batch, positions, step_tokens=100, block=1, reuse=True, **limits):
        self.begun = []
        self.finished = []
        self.blocks = BlockPool(positions, block)
        prefixes = PrefixCache(block, self.blocks.total) if reuse else None
        limits = Limits(batch, step_tokens, **limits)
        self.scheduler = Scheduler(limits, CacheManager(self.blocks, prefixes), self.sequence)

    def step(self):
        scheduler = self.scheduler
        plan = scheduler.plan()
        self.begun += [s.request_id for s in scheduler.running if s.request_id not in self.begun]
        self.check(plan)
        for sequence, _, count, _ in plan:
            sequence.computed += count
            if sequence.pending:
                scheduler.cache_manager.index(sequence)
                continue
            forks = [
                self.sequence(sequence.request_id, sequence.request, sequence.sample + j)
                for j in range(1, sequence.slots)
            ]
            if forks:
                scheduler.fork(sequence, forks)
            for sample in (sequence, *forks):
                # No two samples write the same.
                sample.tokens.append(1000 + 10 * sample.request_id + sample.sample)
                if len(sample.output) >= sample.request.max_new_tokens:
                    self.finished.append((sample.request_id, sample.sample))
                    scheduler.retire(sample)
                else:
                    scheduler.cache_manager.index(sample)
        return [(*scheduled.sequence.key, scheduled.length) for scheduled in plan]

    def sequence(self, request_id, request, sample):
        return SequenceState(request_id, request, sample, None, list(request.prompt))

    def check(self, plan):
        """Limits hold, what is counted is what is held, and nobody writes what others hold."""
        scheduler, blocks = self.scheduler, self.blocks
        accounted(blocks, scheduler.prefixes, scheduler.running)
        assert sum(s.slots for s in scheduler.running) <= scheduler.limits.max_batch_size
        assert sum(scheduled.length for scheduled in plan) <= scheduler.limits.step_tokens
        for sequence, start, count, _ in plan:
            assert start == sequence.computed
            assert 0 < count <= sequence.pending
            written = range(start // blocks.size, blocks.needed(start + count))
            assert all(blocks.holders(sequence.table[place]) == 1 for place in written)
        assert len({id(scheduled.sequence) for scheduled in plan}) == len(plan)
        assert bool(plan) == bool(scheduler.running)  # whenever something runs, something advances
