"""Ranks that are threads of one process, each with the whole model: for what needs no second process."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading

import torch
from async_engines import LIMIT, TOKENIZER
from tiny_llama import tiny_model

from llama.distributed.agreement import UnexplainedError
from llama.engine import Engine
from llama.errors import RankError
from llama.serving import channel, follow

CPU = torch.device("cpu")


class ThreadRank:
    """Stands in for `Parallel`: ranks that are threads, each with the whole model."""

    replica, replicas, group, replica_group = 0, 1, None, None
    patience = LIMIT

    def __init__(self, rank, queues):
        self.rank, self.size, self.queues = rank, len(queues), queues

    def broadcast(self, x):
        if self.rank:
            try:
                return x.copy_(self.queues[self.rank].get(timeout=self.patience))
            except queue.Empty as error:
                raise UnexplainedError("another rank is gone") from error
        for each in self.queues[1:]:
            each.put(x.clone())
        return x

    def on_any(self, flag, device):
        """Nobody changes a model here."""
        return flag

    def begin(self, step, device):
        """All have the same: the law of another test."""

    def failed(self, error):
        """The others have their patience."""
        return error if isinstance(error, RankError) else RankError(f"rank {self.rank} failed: {error}")


def ranks(count, batch=4, **more):
    """An engine for each rank, which notes what its steps yield."""
    queues, engines = [queue.Queue() for _ in range(count)], []
    for rank in range(count):
        made = tiny_model(max_batch_size=batch)
        made.new_pool = tiny_model(max_batch_size=batch).new_pool  # of a model that is not split
        made.parallel = ThreadRank(rank, queues)
        engine = Engine(made, TOKENIZER, **more)
        engine.seen = []
        engine.step = functools.partial(noting, engine, engine.step)
        engines.append(engine)
    return engines


def noting(engine, step):
    deltas = step()
    engine.seen.append([(delta.key, delta.text, delta.finish_reason) for delta in deltas])
    return deltas


@contextlib.contextmanager
def following(engines):
    """The other ranks, in threads -> what each raised, at the end."""
    ends = [None] * len(engines)

    def work(rank):
        try:
            follow(engines[rank])
        except BaseException as error:
            ends[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(1, len(engines))]
    for thread in threads:
        thread.start()
    yield ends
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads)


@contextlib.contextmanager
def connected(count=2):
    queues = [queue.Queue() for _ in range(count)]
    ends = [None] * count

    def call(rank):
        make = channel.follow_channel if rank else channel.lead_channel
        ends[rank] = make(ThreadRank(rank, queues), CPU)

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    yield ends
    for end in ends:
        end.close()
