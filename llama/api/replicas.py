"""What replicas exchange during a call: results, deltas and errors, as JSON.

Each gather is tagged with the call's number, its own number within the call, and a hash of the call's
requests, so that replicas at different points raise an error instead of mixing up two calls' answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from .. import errors
from ..distributed.agreement import describe, first_difference
from ..distributed.groups import Group
from ..distributed.parallel import Parallel
from ..engine import Counts, Request, Times, TokenScore
from ..engine.step_digest import digest_of
from ..errors import LlamaError, RankError
from .results import Output, StreamDelta

__all__ = ["Gathering", "Item", "decode", "encode", "first_of"]

Item = tuple[tuple[int, int], Output] | StreamDelta
"""((prompt, sample), output) of a finished sample, or new text of one."""


class Gathering:
    """The gathers of one call, made by every replica. With one replica there is nothing to exchange.

    Args:
        parallel: this rank's groups.
        device: of its model.
        requests: of the whole call; the same on all replicas, except for their seeds.
    """

    def __init__(self, parallel: Parallel, device: torch.device, requests: Sequence[Request]) -> None:
        self._parallel, self._device = parallel, device
        self._part = 0
        self._tag = (0, 0)
        if parallel.replica_group is not None:
            parallel.replica_group.health.check()
            parallel.replica_group.calls += 1
            self._tag = (parallel.replica_group.calls, digest_of(requests))

    def gather(self, items: Sequence[Item] | None, failure: BaseException | None) -> list[list[Item] | None]:
        """Each replica's items, or None where it has finished the call.

        Args:
            items: this replica's; None if it has finished.
            failure: the error that ended the call on this replica; all replicas get it, so that none waits.

        Raises:
            The failure of this replica, else of the first that failed: an error of this package as it is, any
                other as RankError.
            RankError: a replica is at another point, or gone. The model cannot be used any more.
        """
        group = self._parallel.replica_group
        if group is None:
            if failure is not None:
                raise failure
            return [None if items is None else list(items)]
        everyone: list[tuple[list[Item] | None, LlamaError | None]] = []
        error: BaseException | None = None
        try:
            told = self._exchange(group, encode(items, failure))
            if failure is not None and not isinstance(failure, LlamaError):
                raise failure
            everyone = [decode(packet, replica) for replica, packet in enumerate(told)]
            for replica, (_, error) in enumerate(everyone):
                if error is not None:
                    own = replica == self._parallel.replica and failure is not None
                    raise failure if own and failure is not None else error
            return [theirs for theirs, _ in everyone]
        finally:
            # Or this frame, which the traceback of the error holds, would hold the error.
            del failure, error, everyone

    def number(self, value: int) -> int:
        """The first replica's number. Raises RankError as `gather`."""
        group = self._parallel.replica_group
        return value if group is None else int(self._exchange(group, str(value).encode())[0])

    def _exchange(self, group: Group, data: bytes) -> list[bytes]:
        self._part += 1
        return group.gather_bytes(data, self._device, (self._tag[0], self._part, self._tag[1]), self._check)

    def _check(self, tags: list[list[int]]) -> None:
        """Raise RankError unless all replicas are at the same gather."""
        other = first_difference(tags)
        if other is None:
            return
        group = self._parallel.replica_group
        assert group is not None
        group.health.fail(
            f"replicas 0 and {other} do not do the same: replica 0 is at {_point(tags[0])}, replica {other} at"
            f" {_point(tags[other])}; all ranks must make the same calls in the same order, with the same prompts"
            " and limits, and end a stream at the same delta"
        )
        raise group.health.error()


def first_of(parallel: Parallel, device: torch.device, value: int) -> int:
    """The first replica's number. All replicas call this together; it counts as a call of its own."""
    return Gathering(parallel, device, ()).number(value)


def _point(tag: Sequence[int]) -> str:
    call, part, digest = tag
    return f"gather {part} of call {call} (content {digest:016x})"


def encode(items: Sequence[Item] | None, failure: BaseException | None) -> bytes:
    """What a replica sends to a gather, as bytes."""
    rows = None if items is None else [_row(item) for item in items]
    error = None if failure is None else [type(failure).__name__, str(failure), describe(failure)]
    return json.dumps([rows, error]).encode()


def decode(packet: bytes, replica: int) -> tuple[list[Item] | None, LlamaError | None]:
    """The inverse of `encode`; an error from outside this package becomes a RankError."""
    rows, error = json.loads(packet)
    return (
        None if rows is None else [_item(*row) for row in rows],
        None if error is None else _error(replica, *error),
    )


def _error(replica: int, name: str, text: str, words: str) -> LlamaError:
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if kind is not None:
        try:
            made = kind(text)
        except TypeError:  # its constructor takes more than a message
            pass
        else:
            assert isinstance(made, LlamaError)
            return made
    return RankError(f"replica {replica} failed: {words}")


def _row(item: Item) -> list[Any]:
    if isinstance(item, StreamDelta):
        ended = (item.counts and asdict(item.counts), item.times and asdict(item.times))
        new = (item.tokens, _score_rows(item.scores))
        return ["delta", item.index, item.sample, item.text, item.finish_reason, *ended, *new]
    (index, sample), output = item
    scores = (_score_rows(output.scores), _score_rows(output.prompt_scores))
    ids = (output.prompt, output.tokens)
    return ["output", index, sample, output.text, output.finish_reason, *ids, *scores]


def _item(kind: str, index: int, sample: int, text: str, reason: str | None, *rest: Any) -> Item:
    if kind == "delta":
        counts, times, tokens, scores = rest
        ended = (counts and Counts(**counts), times and Times(**times))
        return StreamDelta(index, sample, text, reason, *ended, tuple(tokens), tuple(_scores(scores)))
    prompt, tokens, *both = rest
    assert reason is not None
    given, asked = (_scores(some) for some in both)
    return (index, sample), Output(tuple(prompt), tokens, text, given, asked, reason)


def _score_rows(scores: Sequence[TokenScore]) -> list[Any]:
    return [[each.logprob, each.top] for each in scores]


def _scores(rows: list[Any]) -> list[TokenScore]:
    return [TokenScore(logprob, tuple((token, value) for token, value in top)) for logprob, top in rows]
