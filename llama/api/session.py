"""The one way through the engine: what calls ask is checked, run step by step, and gathered from all replicas.

Knows requests, outputs and deltas; what a text call makes of them is in generation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..distributed.devices import rank_threads
from ..engine import Delta, Engine, Feed, Request
from ..errors import LlamaError, RequestError
from ..prompts import Prompt
from .options import Options, Output, Seeds, StreamDelta, naming
from .replicas import Gathering, Item

__all__ = ["Session"]


class Session:
    """Session of one `Llama` on its engine. Several may be under way at once.

    On one rank they may come from several threads, which take turns at the steps; several ranks must make the
    same calls in the same order.

    Args:
        engine: this rank's.
        seeds: gives each prompt its seed.
    """

    def __init__(self, engine: Engine, seeds: Seeds) -> None:
        self.engine = engine
        self.seeds = seeds

    def requests(
        self,
        prompts: Sequence[Prompt],
        call: Options,
        rows: Sequence[int] | None = None,
        count: int | None = None,
        *,
        streaming: bool = True,
    ) -> list[tuple[int, Request]]:
        """(row of the prompt, its request) for a call, all checked before any is run.

        rows, count: the prompts' places in the call, and how many it has, where some of it is not run: seeds and
        predictions are for all. streaming: its tokens are read as they come.
        """
        if not prompts:
            raise RequestError("the batch is empty; give at least one prompt")
        max_seq_len = self.engine.model.params.max_seq_len
        count = len(prompts) if count is None else count
        predictions = call.predictions(count)
        made: list[Request] = []
        for row, prompt in zip(rows or range(count), prompts, strict=True):
            with naming(row):
                likely = self._predicted(prompt, predictions[row])
                request = call.request(row, prompt, 0, likely, max_seq_len, streaming)
                self.engine.check(request)
                made.append(request)
        # Last: what is refused draws nothing from the host's generator.
        seeds = self.seeds.of(call, count)
        return [(request.row, replace(request, seed=seeds[request.row])) for request in made]

    def _mine(self, requests: Sequence[tuple[int, Request]]) -> list[tuple[int, Request]]:
        """This replica's share: prompts in turn, and one's samples too where they do not run together anyway."""
        parallel = self.engine.model.parallel
        if parallel.replicas == 1:
            return list(requests)
        parts = [(row, part) for row, request in requests for part in self.engine.waves(request)]
        return parts[parallel.replica :: parallel.replicas]

    def _predicted(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """A predicted output as ids, encoded as the output itself would begin."""
        if not text:
            return ()
        least, most = self.engine.tokenizer.fewest_ids(len(text)), self.engine.model.params.max_seq_len
        if least > most:
            raise RequestError(
                f"the prediction has {len(text):,} characters, which make at least {least:,} tokens, but max_seq_len is"
                f" {most:,}; give the part that the output is likely to repeat"
            )
        if prompt.start_of_text:
            return tuple(self.engine.tokenizer.encode(text, bos=False, eos=False))
        return tuple(self.engine.tokenizer.encode_infilling(text))

    def _steps(self, requests: Sequence[tuple[int, Request]]) -> Iterator[list[tuple[int, Delta]]]:
        """Run requests on this rank's replica; each item is what one step yielded for them.

        Several of these may be under way, as when a stream is open during another call: each step
        advances the requests of all, and what is another's waits in its feed. However this ends, also by an interrupt
        anywhere, its feed is dropped with it, and the engine cancels what nobody reads.

        Raises:
            NumericsError: of one of these requests; those of other calls go on.
        """
        engine = self.engine
        index_of: dict[int, int] = {}
        feed = Feed()
        left = sum(request.n for _, request in requests)
        try:
            for index, request in requests:
                with engine.lock:
                    self._check_free()
                    request_id = engine.enqueue(request, feed)
                index_of[request_id] = index
            while left:
                with engine.lock:
                    if not feed.news:
                        self._step()
                    mine = engine.read(feed)
                self._tidy()
                for delta in mine:
                    if delta.sequence.error is not None:
                        raise delta.sequence.error
                left -= sum(delta.finish_reason is not None for delta in mine)
                yield [(index_of[delta.key[0]], delta) for delta in mine]
        finally:
            del feed
            self._tidy()

    def _check_free(self) -> None:
        if self.engine.exclusive:
            raise RequestError("this model serves: ask its front, or call when the service has ended")

    def _step(self) -> None:
        self._check_free()
        with rank_threads(self.engine.model.device):
            self.engine.advance()

    def _tidy(self) -> None:
        """Clear away calls that are over, or leave it to whoever has the turn, or to the next step.

        A stream that nobody holds any more may be cleared away in the middle of a step, by the garbage collector.
        """
        self.engine.lock.if_free(self.engine.tidy)

    def run(
        self,
        prompts: Sequence[Prompt],
        call: Options,
        rows: Sequence[int] | None = None,
        count: int | None = None,
    ) -> list[Output]:
        """Outputs of all prompts, in order, sample by sample, on every rank of every replica."""
        parallel = self.engine.model.parallel
        made = self.requests(prompts, call, rows, count, streaming=False)
        gathering = self._gathering(made)
        mine = self._mine(made)
        outputs: list[Item] = []
        failure: BaseException | None = None
        try:
            for step in self._steps(mine):
                outputs += [(_place(i, delta), Output.of(delta)) for i, delta in step if delta.finish_reason]
        except BaseException as error:
            self._tell(error)
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
        steps = self._steps(self._mine(requests))
        try:
            while True:
                failure: BaseException | None = None
                deltas: list[Item] | None = None
                try:
                    step = next(steps, None)
                    deltas = None if step is None else [_stream_delta(i, d) for i, d in step]
                except BaseException as error:
                    self._tell(error)
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

    def _tell(self, error: BaseException) -> None:
        """Let no rank of the model wait for this one, also where it was struck between two steps."""
        if not isinstance(error, LlamaError):  # those strike all ranks alike
            self.engine.model.parallel.failed(error)

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
