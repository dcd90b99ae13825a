"""The one way through the engine: what calls ask is checked, run step by step, and gathered from all replicas.

Knows requests, outputs and deltas; what a text call makes of them is in generation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .calls import Options, Output, Seeds, StreamDelta, naming
from .distributed import rank_threads
from .engine import Delta, Engine, Request
from .errors import RequestError
from .prompts import Prompt
from .replicas import Gathering, Item

__all__ = ["Calls"]


class Calls:
    """Calls of one `Llama` on its engine. Several may be under way at once.

    On one rank they may come from several threads, which take turns at the steps; several ranks must make the
    same calls in the same order.

    Args:
        engine: this rank's.
        seeds: gives each prompt its seed.
    """

    def __init__(self, engine: Engine, seeds: Seeds) -> None:
        self.engine = engine
        self.seeds = seeds
        self._inboxes: dict[int, list[Delta]] = {}
        # Ids whose call is over, for whoever has the turn.
        self._over: list[int] = []

    def requests(
        self,
        prompts: Sequence[Prompt],
        call: Options,
        rows: Sequence[int] | None = None,
        *,
        live: bool = True,
    ) -> list[tuple[int, Request]]:
        """(row of the prompt, request) for a call, all checked before any is run.

        rows: the prompts' places in the call, where some of it is not run. live: its tokens are read as
        they come.
        """
        if not prompts:
            raise RequestError("the batch is empty; give at least one prompt")
        params = self.engine.model.params
        seeds = self.seeds.of(call.seed, len(prompts))
        predictions = call.predictions(len(prompts))
        made: list[tuple[int, Request]] = []
        asked = zip(rows or range(len(prompts)), prompts, seeds, predictions, strict=True)
        for row, prompt, seed, text in asked:
            with naming(row):
                likely = self._predicted(prompt, text)
                limits = (params.max_seq_len, params.max_batch_size, self.engine.fitting)
                for request in call.requests(row, prompt, seed, likely, *limits, live):
                    self.engine.check(request)
                    made.append((row, request))
        return made

    def _predicted(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """A predicted output as ids, encoded as the output itself would begin."""
        if not text:
            return ()
        if prompt.start_of_text:
            return tuple(self.engine.tokenizer.encode(text, bos=False, eos=False))
        return tuple(self.engine.tokenizer.encode_infilling(text))

    def _steps(self, requests: Sequence[tuple[int, Request]]) -> Iterator[list[tuple[int, Delta]]]:
        """Run requests on this rank's replica; each item is what one step yielded for them.

        Several of these may be under way, as when a stream is open during another call: each step
        advances the requests of all, and what is another's waits in its inbox.
        """
        index_of: dict[int, int] = {}
        inbox: list[Delta] = []
        left = sum(request.n for _, request in requests)
        try:
            for index, request in requests:
                with self.engine.turn:
                    self._check_free()
                    request_id = self.engine.add(request)
                    index_of[request_id] = index
                    self._inboxes[request_id] = inbox
            while left:
                with self.engine.turn:
                    if not inbox:
                        self._step()
                    mine, inbox[:] = list(inbox), []
                self._tidy()
                left -= sum(delta.finish_reason is not None for delta in mine)
                yield [(index_of[delta.key[0]], delta) for delta in mine]
        finally:
            self._over += index_of
            self._tidy()

    def _check_free(self) -> None:
        if self.engine.front:
            raise RequestError("this model serves: ask its front, or call when the service has ended")

    def _step(self) -> None:
        self._check_free()
        with rank_threads(self.engine.model.device):
            deltas = self.engine.step()
        for delta in deltas:
            box = self._inboxes.get(delta.key[0])
            if box is not None:  # else the host's own request
                box.append(delta)

    def _tidy(self) -> None:
        """Drop what is left of calls that are over, or leave it to whoever has the turn.

        A stream that nobody holds any more may be cleared away in the middle of a step, by the garbage collector.
        """
        while self._over and self.engine.turn.take():
            try:
                while self._over:
                    request_id = self._over.pop()
                    if not self.engine.front:  # else it began with nothing of ours in the engine
                        self.engine.cancel(request_id)
                    del self._inboxes[request_id]
            finally:
                self.engine.turn.give()

    def run(
        self, prompts: Sequence[Prompt], call: Options, rows: Sequence[int] | None = None
    ) -> list[Output]:
        """Outputs of all prompts, in order, sample by sample, on every rank of every replica."""
        parallel = self.engine.model.parallel
        made = self.requests(prompts, call, rows, live=False)
        gathering = self._gathering(made)
        outputs: list[Item] = []
        failure: BaseException | None = None
        try:
            for step in self._steps(made[parallel.replica :: parallel.replicas]):
                outputs += [(_place(i, delta), Output.of(delta)) for i, delta in step if delta.finish_reason]
        except BaseException as error:
            # Whatever it is: the other replicas come to the gather, and wait there for this one.
            if parallel.replicas == 1:
                raise
            failure = error
        items = [item for theirs in gathering.gather(outputs, failure) for item in theirs or ()]
        whole = [item for item in items if isinstance(item, tuple)]
        return [output for _, output in sorted(whole, key=lambda item: item[0])]

    def stream(self, requests: Sequence[tuple[int, Request]]) -> Iterator[StreamDelta]:
        parallel = self.engine.model.parallel
        gathering = self._gathering(requests)
        steps = self._steps(requests[parallel.replica :: parallel.replicas])
        try:
            while True:
                failure: BaseException | None = None
                deltas: list[Item] | None = None
                try:
                    step = next(steps, None)
                    deltas = None if step is None else [_stream_delta(i, d) for i, d in step]
                except BaseException as error:
                    if parallel.replicas == 1:
                        raise
                    failure = error
                everyone = gathering.gather(deltas, failure)
                if all(theirs is None for theirs in everyone):
                    return
                for theirs in everyone:
                    yield from (item for item in theirs or () if isinstance(item, StreamDelta))
        finally:
            steps.close()  # type: ignore[attr-defined]

    def _gathering(self, requests: Sequence[tuple[int, Request]]) -> Gathering:
        model = self.engine.model
        return Gathering(model.parallel, model.device, [request for _, request in requests])


def _place(index: int, delta: Delta) -> tuple[int, int]:
    """(prompt, sample) of a delta in its call."""
    return index, delta.sequence.request.first_sample + delta.sequence.sample


def _stream_delta(index: int, delta: Delta) -> StreamDelta:
    reason = None if delta.finish_reason is None else delta.finish_reason.value
    if reason is None:
        return StreamDelta(*_place(index, delta), delta.text)
    return StreamDelta(*_place(index, delta), delta.text, reason, delta.sequence.counts, delta.sequence.times)
