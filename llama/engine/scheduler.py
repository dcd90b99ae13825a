"""Which sequences advance in a step, by how many tokens. Never imports torch.

First come, first served. A request is admitted when a place in the batch is free and the cache has
room for all that it can come to need, so nothing that runs is ever put back.
"""

from __future__ import annotations

from collections import deque

from ..errors import OutOfMemoryError, RequestError
from .request import Plan, Request, Sequence

__all__ = ["Scheduler"]


class Scheduler:
    """Waiting and running requests.

    Args:
        max_batch_size: sequences that run at the same time.
        cache_tokens: positions that the caches of all running sequences may hold together.
        step_tokens: tokens of one step; longer prompts are prefilled in chunks.
    """

    def __init__(self, max_batch_size: int, cache_tokens: int, step_tokens: int) -> None:
        self.max_batch_size = max_batch_size
        self.cache_tokens = cache_tokens
        self.step_tokens = step_tokens
        self.waiting: deque[tuple[int, Request]] = deque()
        self.running: list[Sequence] = []
        self.paused: set[int] = set()
        # What each admitted request may still grow to, until its last sequence leaves.
        self._admitted: dict[int, Request] = {}

    def check(self, request: Request) -> None:
        """Refuse what can never run.

        Raises:
            RequestError: more samples than max_batch_size.
            OutOfMemoryError: more positions than the cache could hold if it were alone.
        """
        if request.n > self.max_batch_size:
            raise RequestError(f"n is {request.n}, but max_batch_size is {self.max_batch_size}")
        if request.cache_tokens > self.cache_tokens:
            raise OutOfMemoryError(
                f"the request can grow to {request.cache_tokens} tokens, but the cache has room for"
                f" {self.cache_tokens}; ask for fewer samples or a smaller max_gen_len, or free memory"
            )

    def add(self, request_id: int, request: Request) -> None:
        """Queue a request. Raises what `check` raises."""
        self.check(request)
        self.waiting.append((request_id, request))

    def admit(self) -> tuple[int, Request] | None:
        """Take the next waiting request, if it may start now."""
        if not self._admits():
            return None
        request_id, request = self.waiting.popleft()
        self._admitted[request_id] = request
        return request_id, request

    def _admits(self) -> bool:
        if not self.waiting:
            return False
        request = self.waiting[0][1]
        reserved = sum(admitted.cache_tokens for admitted in self._admitted.values())
        places = sum(admitted.n for admitted in self._admitted.values())
        return (
            places + request.n <= self.max_batch_size and reserved + request.cache_tokens <= self.cache_tokens
        )

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing: all that runs is paused, and nothing can start."""
        return not self._admits() and all(s.request_id in self.paused for s in self.running)

    def plan(self) -> Plan:
        """The sequences of the next step and their numbers of tokens: decodes first, then prefill chunks."""
        left = self.step_tokens
        plan: Plan = []
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > 1):
            count = 0 if sequence.request_id in self.paused else min(sequence.pending, left)
            if count > 0:
                plan.append((sequence, count))
                left -= count
        return plan

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence; its request's reservation goes with the last one."""
        self.running.remove(sequence)
        if all(other.request_id != sequence.request_id for other in self.running):
            del self._admitted[sequence.request_id]
            self.paused.discard(sequence.request_id)

    def cancel(self, request_id: int) -> None:
        """Forget a request wherever it is; unknown or finished ids are fine."""
        self.waiting = deque(item for item in self.waiting if item[0] != request_id)
        self.running = [sequence for sequence in self.running if sequence.request_id != request_id]
        self._admitted.pop(request_id, None)
        self.paused.discard(request_id)
