"""Requests under way, and who reads them: what the engine knows for certain. Never imports torch.

An interrupt (Ctrl-C, a timeout's signal) may strike between any two steps of Python. So each fact here changes by one
assignment or one call into C, and everything else of the engine, the scheduler's lists, the account of memory, caches,
detokenizers, can be made again from these facts.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

from ..detokenizer import Stops
from .request import Delta, Request, SequenceState
from .speculation import Lookup

__all__ = ["Feed", "RequestState"]


class Feed:
    """One reader of any number of requests. Where the reader drops it, its requests are cancelled.

    news: sequences that may have something unread; the same one twice, or one without, does no harm.
    """

    def __init__(self) -> None:
        self.news: list[SequenceState] = []

    def read(self) -> list[Delta]:
        """What is unread, a delta for each sequence."""
        news, self.news = self.news, []
        deltas: list[Delta] = []
        for sequence in news:
            new = sequence.entered[sequence.read :]
            if new:
                sequence.read += len(new)
                text = new[0].text if len(new) == 1 else "".join(entry.text for entry in new)
                deltas.append(Delta(sequence, text, new[-1].reason))
        return deltas

    def forget(self, request_id: int) -> None:
        """Nothing more of a request is read."""
        if any(sequence.request_id == request_id for sequence in self.news):
            self.news = [sequence for sequence in self.news if sequence.request_id != request_id]


@dataclass(eq=False)
class RequestState:
    """A request under way. samples: its sequences; none before it begins, one for all until its prompt is prefilled.

    feed: its reader, if that still reads. left: samples that have not ended, begun or not. stops, prompt, prediction:
    what its samples look up, made once for all.
    """

    request_id: int
    request: Request
    queued: float
    feed: weakref.ref[Feed]
    samples: list[SequenceState] = field(default_factory=list)
    paused: bool = False
    left: int = field(init=False)
    stops: Stops = field(init=False)
    prompt: Lookup = field(init=False)
    prediction: Lookup = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.request.n

    def begin(self) -> None:
        """Make what all samples share; not before, so that a request that waits costs nothing."""
        self.stops = Stops(self.request.stop)
        self.prompt, self.prediction = Lookup(self.request.prompt), Lookup(self.request.prediction)

    def tell(self) -> None:
        """Let the reader look at all samples."""
        feed = self.feed()
        if feed is not None:
            feed.news += self.samples
