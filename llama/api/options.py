"""`Options`: what all calls of `Llama` take, checked, and the requests made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from ..engine import Request
from ..engine.request import MOST_SAMPLES, stop_problem
from ..errors import PromptTooLongError, SamplingError
from ..printable import shown
from ..prompts import Prompt
from ..sampling import SamplingParams, bias_pairs
from ..values import flag, rows
from .arguments import check_integer, text_list

__all__ = ["Logprobs", "Options", "SamplingOptions"]

Logprobs = bool | int


class SamplingOptions(TypedDict, total=False):
    """What every call takes by keyword.

    top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty: see `SamplingParams`.
    logit_bias: a mapping from ids to what is added to their logits, in [-100, 100].
    stop: a string, or several, that end the text and are cut off; at most 64, of 8,192 characters together.
    stop_ids: further ids that end it.
    min_tokens: tokens that are generated in any case: no stop id is drawn before, and stop strings are looked
        for only in the text behind them. At most max_gen_len.
    ignore_eos: only stop_ids end the text, none of the ids that end such a prompt's output otherwise (eos, EOT).
    seed: an integer, or one for each prompt. Without it, and without one of `Llama.build`, torch's CPU
        generator gives one: one draw a call, and none if nothing is sampled.
    n: samples of each prompt, at most 4,096, one after the other in the result.
    prediction: text that the output is likely to repeat (the file before an edit), or one for each prompt. A
        right one makes the call faster; none ever changes the result.
    speculate: False switches off drafting from the prediction and from the prompt.
    """

    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]]
    stop: str | Iterable[str]
    stop_ids: Iterable[int]
    min_tokens: int
    ignore_eos: bool
    seed: int | Iterable[int] | None
    n: int
    prediction: str | Iterable[str]
    speculate: bool


@dataclass
class Options:
    """The parameters that all calls share. `Llama.text_completion` and `SamplingOptions` explain them.

    Numbers may be of any integer or real type, lists any ordered iterable; they are stored as Python's own.

    Raises:
        SamplingError: a value out of range or of the wrong type.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    max_gen_len: int | None = None
    logprobs: Logprobs = False
    echo: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    stop: str | Iterable[str] = ()
    stop_ids: Iterable[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | Iterable[int] | None = None
    n: int = 1
    prediction: str | Iterable[str] = ()
    speculate: bool = True
    sampling: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        self.sampling = SamplingParams(
            self.temperature,
            self.top_p,
            self.top_k,
            self.min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
            bias_pairs(self.logit_bias),
        )
        if self.max_gen_len is not None:
            self.max_gen_len = check_integer("max_gen_len", self.max_gen_len, 0)
        self.n = check_integer("n", self.n, 1)
        if self.n > MOST_SAMPLES:
            raise SamplingError(
                f"n is {self.n}; {MOST_SAMPLES} samples of a prompt are the most that a call returns, since it keeps"
                " them all until then; make several calls, each with a seed of its own"
            )
        scored = flag(self.logprobs)
        self.logprobs = check_integer("logprobs", self.logprobs, 0) if scored is None else scored
        self.min_tokens = check_integer("min_tokens", self.min_tokens, 0)
        if self.max_gen_len is not None and self.min_tokens > self.max_gen_len:
            raise SamplingError(
                f"min_tokens is {shown(self.min_tokens)}, but max_gen_len is {self.max_gen_len}; it may be at most that"
            )
        self.speculate = _flag("speculate", self.speculate)
        self.ignore_eos = _flag("ignore_eos", self.ignore_eos)
        if not isinstance(self.prediction, str):
            self.prediction = text_list("prediction", self.prediction)
        self._check_stops()

    def _check_stops(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else rows(self.stop)
        if stop is None:
            raise SamplingError(f"stop is {shown(self.stop)}; it must be a string or a list of strings")
        if problem := stop_problem(stop):
            raise SamplingError(problem)
        self.stop = tuple(str(text) for text in stop)
        ids = rows(self.stop_ids)
        if ids is None:
            raise SamplingError(f"stop_ids is {shown(self.stop_ids)}; it must be a list")
        self.stop_ids = tuple(check_integer("stop_ids", token, 0) for token in ids)

    @classmethod
    def of(
        cls,
        temperature: float,
        top_p: float,
        max_gen_len: int | None,
        logprobs: Logprobs,
        echo: bool,
        options: SamplingOptions,
    ) -> Options:
        """From a call's parameters.

        Raises:
            TypeError: an unknown keyword, as Python does for any function.
        """
        unknown = sorted(set(options) - set(SamplingOptions.__annotations__))
        if unknown:
            known = ", ".join(SamplingOptions.__annotations__)
            raise TypeError(f"unknown option {unknown[0]!r}; the keywords of this call are {known}")
        return cls(temperature, top_p, max_gen_len, logprobs, echo, **options)

    @property
    def samples(self) -> bool:
        """Whether random numbers decide anything."""
        return not self.sampling.greedy and self.max_gen_len != 0

    @property
    def scored(self) -> bool:
        """Whether log-probabilities were asked for; 0 is off, as in the reference."""
        return bool(self.logprobs)

    @property
    def top(self) -> int:
        """Number of alternatives asked for at each position."""
        return 0 if isinstance(self.logprobs, bool) else self.logprobs

    def predictions(self, prompts: int) -> list[str]:
        """The predicted output of each prompt; empty where there is none.

        Raises:
            SamplingError: a list whose length is not the number of prompts.
        """
        if isinstance(self.prediction, str):
            return [self.prediction] * prompts
        texts = list(self.prediction)
        if len(texts) not in (0, prompts):
            raise SamplingError(
                f"prediction has {len(texts)} texts for {prompts} prompts; give one text, or one for each"
            )
        return texts or [""] * prompts

    def request(
        self, row: int, prompt: Prompt, prediction: tuple[int, ...], max_seq_len: int, *, streaming: bool
    ) -> Request:
        """The request for the n samples of a prompt; its seed is set later.

        Args:
            row: the prompt's index in the call.
            prediction: ids that the output is likely to repeat.
            streaming: see `Request`.

        Raises:
            PromptTooLongError: the prompt leaves no room for a token.
        """
        length = len(prompt.tokens)
        room = max_seq_len - length
        wanted = room if self.max_gen_len is None else min(room, self.max_gen_len)
        if room < 0 or (room == 0 and self.max_gen_len != 0):
            raise PromptTooLongError(
                f"the prompt has {length} tokens, but max_seq_len is {max_seq_len} for prompt and generation together;"
                " shorten it, or build with a larger max_seq_len"
            )
        return Request(
            prompt=prompt.tokens,
            max_new_tokens=wanted,
            sampling=self.sampling,
            stop_ids=frozenset(self.stop_ids) | (frozenset() if self.ignore_eos else prompt.stop_ids),
            stop=tuple(self.stop),
            start_of_text=prompt.start_of_text,
            n=self.n,
            top=self.top,
            score_prompt=self.echo and self.scored,
            row=row,
            speculate=self.speculate,
            prediction=prediction,
            streaming=streaming,
            min_new_tokens=min(wanted, self.min_tokens),
        )


def _flag(name: str, value: object) -> bool:
    """A bool of any type. Raises SamplingError for anything else."""
    found = flag(value)
    if found is None:
        raise SamplingError(f"{name} is {shown(value)}; it must be True or False")
    return found
