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
from .generator import PROMPT_TOO_LONG, UNSAFE_TAG, Generator, ModelInfo, SampleRequest
from .header import Header
from .problem import Answer, Order, Sample
from .ranks import Ranks
from .samples import from_bytes, to_bytes
from .settings import Settings

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
        weights=None
        if folder is None
        else fingerprint(
            open_checkpoint(folder, agree=False, adapter=llama.adapter, quantize=llama.quantize)
        ),
        dtype=str(llama.model.dtype).removeprefix("torch."),
        max_seq_len=_longest(llama),
        member=None if member is None else member.name,
        variants=variants_of(params, has_step),
        quantization=None if llama.origin is None else llama.origin.quantization,
        cache_dtype=None if llama.model.cache_dtype == "auto" else llama.model.cache_dtype,
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

    def generate(self, requests: Sequence[SampleRequest], settings: Settings) -> Iterator[Answer]:
        """See `Generator`. All requests go to the engine at once; the samples of one share its prompt's prefill.

        Raises:
            UnsupportedError: the vocabulary has no infilling pieces.
            NumericsError: logits that are not finite.
            RankError: another rank failed.
        """
        sampling = SamplingParams(settings.temperature, settings.top_p)
        made = [self._for_engine(row, request, settings, sampling) for row, request in enumerate(requests)]
        accepted = [each for each in made if isinstance(each, Request)]
        for each in accepted:
            self._llama.engine.check(each)
        self._ranks.tell(encode([Add(each.row, each) for each in accepted]))
        for request, reason in zip(requests, made, strict=True):
            if isinstance(reason, str):
                for sample in request.samples:
                    yield request.answer(sample, "", 0, reason)
        yield from self._answers(requests, accepted)

    def follow(self) -> None:
        """Take part in the first rank's `generate`.

        Raises: as `generate`; RankError too if the first rank failed alone.
        """
        events = decode(self._ranks.hear())
        for _ in self._llama.session.stream([event.request for event in events if isinstance(event, Add)]):
            pass

    def _answers(self, requests: Sequence[SampleRequest], accepted: Sequence[Request]) -> Iterator[Answer]:
        texts: dict[tuple[int, int], str] = {}
        for delta in self._llama.session.stream(accepted):
            place = delta.index, delta.sample
            text = texts.pop(place, "") + delta.text
            if delta.finish_reason is None:
                texts[place] = text
                continue
            tokens = 0 if delta.counts is None else delta.counts.generated
            yield requests[delta.index].answer(delta.sample, text, tokens, delta.finish_reason)

    def _for_engine(
        self, row: int, request: SampleRequest, settings: Settings, sampling: SamplingParams
    ) -> Request | str:
        """The engine's request for these samples; the finish reason of their answers if it cannot be made."""
        try:
            prompt = self._prompt(request)
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
            stop=request.stops,
            start_of_text=prompt.start_of_text,
            seed=request.seed,
            n=request.count,
            first_sample=request.first,
            row=row,
            streaming=False,
        )

    def _prompt(self, request: SampleRequest) -> Prompt:
        tokenizer, problem = self._llama.tokenizer, request.problem
        if request.order is Order.CHAT:
            return formats.chat_prompt(tokenizer, [{"role": "user", "content": problem.question}])
        if request.order is Order.PLAIN:
            return formats.completion_prompt(tokenizer, problem.prompt)
        suffix_first = request.order is Order.SPM
        return formats.infilling_prompt(
            tokenizer, problem.prompt, problem.suffix or "", suffix_first=suffix_first
        )
