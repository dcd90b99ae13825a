"""The model of this process as a `Generator`, on all ranks and replicas of its launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from .. import prompts as formats
from ..checkpoint import open_checkpoint
from ..checkpoint.fingerprint import fingerprint
from ..engine.request import Request
from ..errors import UnsafeTagError
from ..prompts import Prompt
from ..sampling import SamplingParams
from ..serving.protocol import Add, decode, encode
from ..sizing.family import member_of, variants_of
from .asking import PROMPT_TOO_LONG, UNSAFE_TAG, Ask, Generator, Header, ModelInfo, Settings
from .problem import Answer, Order, Sample
from .ranks import Ranks
from .samples import from_bytes, to_bytes

if TYPE_CHECKING:
    from ..generation import Llama

__all__ = ["LocalGenerator", "model_info", "on_all_ranks"]


def on_all_ranks(
    llama: Llama, lead: Callable[[Generator], tuple[Header, list[Sample]]]
) -> tuple[Header, list[Sample]]:
    """What `lead` returns, on every rank of the launch; it runs on the first. All make this call.

    Args:
        lead: calls its generator's `generate` once, and reads all answers.

    Raises:
        What `lead` raises; on the other ranks RankError instead, if it is no error of this package.
    """
    parallel = llama.model.parallel
    ranks = Ranks(parallel, llama.model.device, messages=2)
    generator = LocalGenerator(llama, ranks)
    if not ranks.is_first:
        generator.follow()
        return from_bytes(ranks.hear())
    with ranks.leading():
        header, samples = lead(generator)
        ranks.tell(to_bytes(header, samples) if ranks.are_many else b"")
    return header, samples


def model_info(llama: Llama) -> ModelInfo:
    """What a report says of a model. Reads a few values of each tensor of the folder that it was built from.

    Raises:
        CheckpointError: that folder is gone, or damaged.
    """
    params, folder = llama.model.params, llama.folder
    member = member_of(params)
    has_step = llama.tokenizer.step_id is not None
    return ModelInfo(
        name="a Llama without a folder" if folder is None else folder.resolve().name,
        weights=None if folder is None else fingerprint(open_checkpoint(folder, agree=False)),
        dtype=str(llama.model.dtype).removeprefix("torch."),
        max_seq_len=_longest(llama),
        member=None if member is None else member.name,
        variants=variants_of(params, has_step),
    )


def _longest(llama: Llama) -> int:
    """Most tokens of prompt and answer together."""
    return min(llama.model.params.max_seq_len, llama.engine.cache_tokens)


class LocalGenerator:
    """A `Generator` on a Llama. Ranks that are not the first call `follow` when the first calls `generate`.

    Args:
        llama: of this rank.
        ranks: of its launch.
    """

    def __init__(self, llama: Llama, ranks: Ranks) -> None:
        self._llama, self._ranks = llama, ranks

    @cached_property
    def model(self) -> ModelInfo:
        """See `model_info`."""
        return model_info(self._llama)

    def generate(self, asks: Sequence[Ask], settings: Settings) -> Iterator[Answer]:
        """See `Generator`. All asks go to the engine at once; the samples of one share its prompt's prefill.

        Raises:
            UnsupportedError: the vocabulary has no infilling pieces.
            NumericsError: logits that are not finite.
            RankError: another rank failed.
        """
        sampling = SamplingParams(settings.temperature, settings.top_p)
        made = [self._request(row, ask, settings, sampling) for row, ask in enumerate(asks)]
        requests = [request for request in made if isinstance(request, Request)]
        for request in requests:
            self._llama.engine.check(request)
        self._ranks.tell(encode([Add(request.row, request) for request in requests]))
        for ask, reason in zip(asks, made, strict=True):
            if isinstance(reason, str):
                for sample in range(ask.first, ask.first + ask.count):
                    yield Answer(ask.problem, ask.order, sample, ask.seed, "", 0, reason)
        yield from self._answers(asks, requests)

    def follow(self) -> None:
        """Take part in the first rank's `generate`.

        Raises: as `generate`; RankError too if the first rank failed alone.
        """
        events = decode(self._ranks.hear())
        for _ in self._llama.session.stream([event.request for event in events if isinstance(event, Add)]):
            pass

    def _answers(self, asks: Sequence[Ask], requests: Sequence[Request]) -> Iterator[Answer]:
        texts: dict[tuple[int, int], str] = {}
        for delta in self._llama.session.stream(requests):
            place = delta.index, delta.sample
            text = texts.pop(place, "") + delta.text
            if delta.finish_reason is None:
                texts[place] = text
                continue
            ask, tokens = asks[delta.index], 0 if delta.counts is None else delta.counts.generated
            yield Answer(ask.problem, ask.order, delta.sample, ask.seed, text, tokens, delta.finish_reason)

    def _request(self, row: int, ask: Ask, settings: Settings, sampling: SamplingParams) -> Request | str:
        """The request of an ask; the finish reason of its answers if it cannot be asked."""
        try:
            prompt = self._prompt(ask)
        except UnsafeTagError:
            return UNSAFE_TAG
        room = _longest(self._llama) - len(prompt.tokens)
        if room < 1:
            return PROMPT_TOO_LONG
        return Request(
            prompt=prompt.tokens,
            max_new_tokens=min(room, settings.max_gen_len),
            sampling=sampling,
            stop_ids=prompt.stop_ids,
            # A chat's answer is code within other text, so the stops of a continued text do not apply.
            stop=() if ask.order is Order.CHAT else ask.problem.stops,
            start_of_text=prompt.start_of_text,
            seed=ask.seed,
            n=ask.count,
            first_sample=ask.first,
            row=row,
            streaming=False,
        )

    def _prompt(self, ask: Ask) -> Prompt:
        tokenizer, problem = self._llama.tokenizer, ask.problem
        if ask.order is Order.CHAT:
            return formats.chat_prompt(tokenizer, [{"role": "user", "content": problem.question}])
        if ask.order is Order.PLAIN:
            return formats.completion_prompt(tokenizer, problem.prompt)
        suffix_first = ask.order is Order.SPM
        return formats.infilling_prompt(
            tokenizer, problem.prompt, problem.suffix or "", suffix_first=suffix_first
        )
