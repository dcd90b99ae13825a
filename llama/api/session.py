"""Runs blocking and streaming calls on the shared engine.

Knows requests, outputs and deltas. How a text call makes and reads them is in generation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace

from ..distributed.devices import rank_threads
from ..engine import Delta, Engine, Feed, Request
from ..errors import LlamaError, RequestError
from ..prompts import Prompt
from .arguments import naming_prompt
from .options import Options
from .replicas import Gathering, Item
from .results import Output, StreamDelta, place
from .seeds import Seeds

__all__ = ["Session"]


class Session:
    """The calls of one `Llama` on its engine. Several may be open at once.

    On one rank they may come from several threads, which take turns stepping the engine. Several ranks must
    make the same calls in the same order.

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
        options: Options,
        rows: Sequence[int] | None = None,
        count: int | None = None,
        *,
        streaming: bool = True,
    ) -> list[Request]:
        """The requests of a call, one for each prompt, all checked.

        Args:
            rows, count: where only some of a call's prompts run: their indices in the call, and how many it
                has. Lists of seeds and of predictions have an entry for each of the call's prompts.
            streaming: see `Request`.

        Raises:
            RequestError: no prompts, or one that cannot run; the message names it.
        """
        if not prompts:
            raise RequestError("the batch is empty; give at least one prompt")
        max_seq_len = self.engine.model.params.max_seq_len
        count = len(prompts) if count is None else count
        predictions = options.predictions(count)
        made: list[Request] = []
        for row, prompt in zip(rows or range(count), prompts, strict=True):
            with naming_prompt(row):
                prediction = self._prediction_ids(prompt, predictions[row])
                request = options.request(row, prompt, prediction, max_seq_len, streaming=streaming)
                self.engine.check(request)
                made.append(request)
        # Last, so that a refused call draws nothing from the host's generator.
        seeds = self.seeds.of(options.seed, count, samples=options.samples)
        return [replace(request, seed=seeds[request.row]) for request in made]

    def run(
        self,
        prompts: Sequence[Prompt],
        options: Options,
        rows: Sequence[int] | None = None,
        count: int | None = None,
    ) -> list[Output]:
        """Run a call -> its outputs, in order of prompt and sample, on every rank of every replica.

        Args: as of `requests`.

        Raises: as `requests` and `stream`.
        """
        requests = self.requests(prompts, options, rows, count, streaming=False)
        gathering = self._gathering(requests)
        outputs: list[Item] = []
        failure: BaseException | None = None
        try:
            for deltas in self._steps(self._share(requests), ended_only=True):
                outputs += [(place(delta), Output.of(delta)) for delta in deltas if delta.finish_reason]
        except BaseException as error:
            self._report(error)
            if self.engine.model.parallel.replicas == 1:
                raise
            failure = error  # raised by the gather, where the other replicas wait for this one
        try:
            items = [item for theirs in gathering.gather(outputs, failure) for item in theirs or ()]
        finally:
            failure = None  # or this frame, which its traceback holds, would hold it
        whole = [item for item in items if isinstance(item, tuple)]
        return [output for _, output in sorted(whole, key=lambda item: item[0])]

    def stream(self, requests: Sequence[Request]) -> Iterator[StreamDelta]:
        """Run requests and yield what each step adds to them, from all replicas.

        Raises:
            NumericsError: logits of one of these requests that are not finite.
            RankError: a rank failed, is gone, or does not make the same call.
        """
        gathering = self._gathering(requests)
        steps = self._steps(self._share(requests))
        try:
            while True:
                failure: BaseException | None = None
                mine: list[Item] | None = None
                try:
                    deltas = next(steps, None)
                    mine = None if deltas is None else [StreamDelta.of(delta) for delta in deltas]
                except BaseException as error:
                    self._report(error)
                    if self.engine.model.parallel.replicas == 1:
                        raise
                    failure = error
                try:
                    everyone = gathering.gather(mine, failure)
                finally:
                    failure = None  # as in `run`
                if all(theirs is None for theirs in everyone):
                    return
                for theirs in everyone:
                    yield from (item for item in theirs or () if isinstance(item, StreamDelta))
        finally:
            steps.close()  # type: ignore[attr-defined]

    def _steps(self, requests: Sequence[Request], *, ended_only: bool = False) -> Iterator[list[Delta]]:
        """Run requests on this rank's replica; each item is what one step yielded for them.

        Several of these may be open, as when a stream is open during another call. A step advances the
        requests of all; the deltas of the others wait in their feeds. However this ends, also by an interrupt
        anywhere, its feed goes out of scope, and the engine cancels requests whose feed is gone.

        Args:
            ended_only: yield a sample as one delta, when it has ended.

        Raises:
            NumericsError: of one of these requests; those of other calls go on.
        """
        engine, device = self.engine, self.engine.model.device
        feed = Feed(ended_only=ended_only)
        left = sum(request.n for request in requests)
        try:
            for request in requests:
                with engine.lock:
                    self._check_not_serving()
                    engine.enqueue(request, feed)
            while left:
                with engine.lock:
                    if not feed.news:
                        self._check_not_serving()
                        with rank_threads(device):
                            engine.advance()
                    deltas = engine.read(feed)
                self._tidy()
                for delta in deltas:
                    if delta.sequence.error is not None:
                        # A copy: the sequence, which callers may keep, must not hold the frames that it passes.
                        raise copy(delta.sequence.error)
                left -= sum(delta.finish_reason is not None for delta in deltas)
                yield deltas
        finally:
            del feed
            self._tidy()

    def _share(self, requests: Sequence[Request]) -> list[Request]:
        """This replica's waves, dealt out in turn. A wave is the samples of a prompt that run together."""
        parallel = self.engine.model.parallel
        if parallel.replicas == 1:
            return list(requests)
        waves = [wave for request in requests for wave in self.engine.waves(request)]
        return waves[parallel.replica :: parallel.replicas]

    def _prediction_ids(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """A predicted output as ids, encoded as the output itself would begin."""
        if not text:
            return ()
        tokenizer, max_seq_len = self.engine.tokenizer, self.engine.model.params.max_seq_len
        least = tokenizer.fewest_ids(len(text))
        if least > max_seq_len:
            raise RequestError(
                f"the prediction has {len(text):,} characters, which make at least {least:,} tokens, but max_seq_len is"
                f" {max_seq_len:,}; give the part that the output is likely to repeat"
            )
        if prompt.start_of_text:
            return tuple(tokenizer.encode(text, bos=False, eos=False))
        return tuple(tokenizer.encode_infilling(text))

    def _check_not_serving(self) -> None:
        if self.engine.exclusive:
            raise RequestError(
                "this model is serving: send requests to its AsyncEngine, or call when `serve` has returned"
            )

    def _tidy(self) -> None:
        """Cancel requests whose feed is gone; if another thread steps right now, its next step does that.

        The garbage collector may end an abandoned stream in the middle of a step: then the lock is taken.
        """
        self.engine.lock.if_free(self.engine.tidy)

    def _report(self, error: BaseException) -> None:
        """Let no other rank of the model wait for this one, also after an error between two steps."""
        if not isinstance(error, LlamaError):  # an error of this package is raised on all ranks alike
            self.engine.model.parallel.failed(error)

    def _gathering(self, requests: Sequence[Request]) -> Gathering:
        return Gathering(self.engine.model.parallel, self.engine.model.device, requests)
