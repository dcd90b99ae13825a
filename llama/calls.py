"""What a call of `Llama` takes and gives: options, seeds, outputs, result dictionaries."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar

import numpy as np

from .engine import Counts, Delta, Request, Times, TokenScore
from .engine.request import stop_problem
from .errors import LlamaError, PromptError, PromptTooLongError, RequestError, SamplingError
from .prompts import Message, Prompt
from .sampling import SamplingParams
from .tokenizer import Tokenizer

__all__ = [
    "NOTHING",
    "ChatPrediction",
    "CompletionPrediction",
    "InfillingPrediction",
    "Logprobs",
    "Options",
    "Output",
    "SamplingOptions",
    "Seeds",
    "StreamDelta",
    "alternatives",
    "check_integer",
    "check_length",
    "id_lists",
    "naming",
    "numbered",
    "text_list",
]

# Samples of a prompt in one call.
MOST_SAMPLES = 4096

Logprobs = bool | int
TopLogprobs = list[dict[str, float]]
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class _Scores(TypedDict, total=False):
    tokens: list[str]
    logprobs: list[float]
    top_logprobs: TopLogprobs


class CompletionPrediction(_Scores):
    """A result of `text_completion`; tokens and scores only where they were asked for."""

    generation: str
    finish_reason: str


class InfillingPrediction(_Scores):
    """A result of `text_infilling`."""

    generation: str
    full_text: str
    finish_reason: str


class ChatPrediction(_Scores, total=False):
    """A result of `chat_completion`; `error` only where the dialog was refused."""

    generation: Message
    finish_reason: str
    error: str


@dataclass(frozen=True)
class StreamDelta:
    """New text of sample `sample` of prompt `index`; its last delta has a finish reason, counts and times."""

    index: int
    sample: int
    text: str
    finish_reason: str | None = None
    counts: Counts | None = None
    times: Times | None = None


@dataclass(frozen=True)
class Output:
    """One finished sample."""

    prompt: tuple[int, ...]
    tokens: list[int]
    text: str
    scores: list[TokenScore]
    prompt_scores: list[TokenScore]
    finish_reason: str

    @classmethod
    def of(cls, delta: Delta) -> Output:
        """From the last delta of a sequence."""
        s = delta.sequence
        assert delta.finish_reason is not None
        return cls(
            s.request.prompt, s.output, "".join(s.text), s.scores, s.prompt_scores, delta.finish_reason.value
        )


def text_list(name: str, texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises:
        PromptError: a lone string, or an entry that is none, naming its position.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise PromptError(f"{name} must be a list of strings, not {type(texts).__name__}; put it in brackets")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise PromptError(f"{name}[{i}] is {type(text).__name__}, not a string")
    return list(texts)


def id_lists(name: str, lists: object) -> list[tuple[int, ...]]:
    """Lists of ids as tuples.

    Raises:
        PromptError: not a list of lists, or an entry that is no integer, naming its position.
    """
    if not isinstance(lists, Sequence) or isinstance(lists, str | bytes):
        raise PromptError(f"{name} must be a list of lists of ids, not {type(lists).__name__}")
    for i, ids in enumerate(lists):
        if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
            raise PromptError(f"{name}[{i}] is {type(ids).__name__}, not a list of ids")
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise PromptError(f"{name}[{i}] holds {token!r}, which is no id")
    return [tuple(ids) for ids in lists]


def alternatives(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> TopLogprobs:
    """For each position the pieces of the best ids and their log-probabilities, best first."""
    return [{tokenizer.token_piece(token): value for token, value in score.top} for score in scores]


NOTHING = Output((), [], "", [], [], "error")


def check_length(tokenizer: Tokenizer, max_seq_len: int, *texts: object) -> None:
    """Refuse texts whose ids can never fit, by their length alone: encoding a long text takes long.

    Raises:
        PromptTooLongError: with the numbers.
    """
    characters = sum(len(text) for text in texts if isinstance(text, str))
    least = tokenizer.fewest_ids(characters)
    if least > max_seq_len:
        raise PromptTooLongError(
            f"the text has {characters:,} characters, which make at least {least:,} tokens, but max_seq_len is"
            f" {max_seq_len:,} for prompt and generation together; shorten it, or build with a larger max_seq_len"
        )


def numbered(make: Callable[[_Item], _Made], items: Sequence[_Item]) -> list[_Made]:
    """make(item) of each item; an error names the item's place in the call."""
    made = []
    for row, item in enumerate(items):
        with naming(row):
            made.append(make(item))
    return made


@contextlib.contextmanager
def naming(row: int) -> Iterator[None]:
    """Within it, an error gets the prompt's place in the call in front of its message."""
    try:
        yield
    except LlamaError as error:
        raise type(error)(f"prompt {row}: {error}") from error


class SamplingOptions(TypedDict, total=False):
    """What every call takes by name. See `Llama.text_completion` for their meaning."""

    top_k: int
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    seed: int | Sequence[int] | None
    n: int
    prediction: str | Sequence[str]
    speculate: bool


@dataclass
class Options:
    """The parameters that all calls share. See `Llama.text_completion` for their meaning.

    Raises:
        SamplingError: a value out of its range.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    max_gen_len: int | None = None
    logprobs: Logprobs = False
    echo: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    seed: int | Sequence[int] | None = None
    n: int = 1
    prediction: str | Sequence[str] = ()
    speculate: bool = True
    sampling: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        self.sampling = SamplingParams(
            self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty
        )
        if self.max_gen_len is not None:
            check_integer("max_gen_len", self.max_gen_len, 0)
        check_integer("n", self.n, 1)
        if self.n > MOST_SAMPLES:
            raise SamplingError(
                f"n is {self.n}; {MOST_SAMPLES} samples of a prompt are the most, since a call keeps all of them until"
                " it returns; ask in several calls, each with a seed of its own"
            )
        if not isinstance(self.logprobs, bool):
            check_integer("logprobs", self.logprobs, 0)
        for name in ("stop", "stop_ids"):
            if not isinstance(getattr(self, name), Iterable):
                raise SamplingError(f"{name} is {getattr(self, name)!r}; it must be a list")
        self.stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        self.stop_ids = tuple(self.stop_ids)
        if problem := stop_problem(self.stop):
            raise SamplingError(problem)
        for token in self.stop_ids:
            check_integer("stop_ids", token, 0)
        if not isinstance(self.speculate, bool):
            raise SamplingError(f"speculate is {self.speculate!r}; it must be True or False")
        if not isinstance(self.prediction, str):
            self.prediction = text_list("prediction", self.prediction)

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
            TypeError: a name that is no option, as Python does for any function.
        """
        unknown = sorted(set(options) - set(SamplingOptions.__annotations__))
        if unknown:
            known = ", ".join(SamplingOptions.__annotations__)
            raise TypeError(f"unknown option {unknown[0]!r}; by name this call takes {known}")
        return cls(temperature, top_p, max_gen_len, logprobs, echo, **options)

    @property
    def scored(self) -> bool:
        """Whether log-probabilities were asked for; 0 is off, as in the reference."""
        return bool(self.logprobs)

    @property
    def top(self) -> int:
        """Alternatives asked for at each position."""
        return 0 if isinstance(self.logprobs, bool) else self.logprobs

    def predictions(self, prompts: int) -> list[str]:
        """The prediction of each prompt, empty where there is none.

        Raises:
            SamplingError: a list of another length.
        """
        if isinstance(self.prediction, str):
            return [self.prediction] * prompts
        if len(self.prediction) not in (0, prompts):
            raise SamplingError(
                f"prediction has {len(self.prediction)} texts for {prompts} prompts; give one text, or one for each"
            )
        return list(self.prediction) or [""] * prompts

    def requests(
        self,
        row: int,
        prompt: Prompt,
        seed: int,
        prediction: tuple[int, ...],
        max_seq_len: int,
        max_batch_size: int,
        fitting: Callable[[int], int],
        live: bool = True,
    ) -> Iterator[Request]:
        """The requests for the n samples of a prompt: one, unless batch or cache cannot hold all at once.

        prediction: ids that the output is likely to repeat. fitting: sequences of so many positions that the
            cache holds together. live: see `Request`.
        """
        length = len(prompt.tokens)
        room = max_seq_len - length
        wanted = room if self.max_gen_len is None else min(room, self.max_gen_len)
        if room < 0 or (room == 0 and self.max_gen_len != 0):
            raise PromptTooLongError(
                f"the prompt has {length} tokens, but max_seq_len is {max_seq_len} for prompt and generation together;"
                " shorten it, or build with a larger max_seq_len"
            )
        together = max(1, min(max_batch_size, fitting(length + wanted)))
        for first in range(0, self.n, together):
            yield Request(
                prompt=prompt.tokens,
                max_new_tokens=wanted,
                sampling=self.sampling,
                stop_ids=prompt.stop_ids | frozenset(self.stop_ids),
                stop=tuple(self.stop),
                start_of_text=prompt.start_of_text,
                seed=seed,
                n=min(together, self.n - first),
                first_sample=first,
                top=self.top,
                score_prompt=self.echo and self.scored,
                row=row,
                speculate=self.speculate,
                prediction=prediction,
                live=live,
            )

    def tokens(self, output: Output) -> list[int]:
        """The ids to return."""
        return [*output.prompt, *output.tokens] if self.echo else output.tokens

    def scores(self, output: Output) -> list[TokenScore]:
        """The scores of these ids; a prompt's first id is given, so its log-probability is 0."""
        if output is NOTHING:
            return []
        return [TokenScore(0.0), *output.prompt_scores, *output.scores] if self.echo else output.scores

    def logprobs_of(self, output: Output) -> list[float]:
        """Just the log-probabilities of `scores`."""
        return [score.logprob for score in self.scores(output)]


def check_integer(name: str, value: object, least: int) -> None:
    """Raise SamplingError unless the value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SamplingError(f"{name} is {value!r}; it must be an integer of at least {least}")


class Seeds:
    """A seed for each request.

    A call's own seed goes to each of its prompts as it is, so that a result does not depend on what
    else is in the batch. Without one, prompts get different seeds: drawn from `base` and the number of
    the call where there is a base, else from the system's entropy. The host's generators are not touched.
    """

    def __init__(self, base: int | None) -> None:
        if base is not None:
            check_integer("seed", base, 0)
        self._base = base
        self._calls = 0

    def of(self, seed: int | Sequence[int] | None, count: int) -> list[int]:
        """`count` seeds for a call.

        Raises:
            RequestError: a list of another length. SamplingError: no non-negative integers.
        """
        if seed is None:
            self._calls += 1
            entropy = secrets.randbits(63) if self._base is None else [self._base, self._calls]
            return [int(each) for each in np.random.SeedSequence(entropy).generate_state(count, np.uint64)]
        if not isinstance(seed, Sequence):
            check_integer("seed", seed, 0)
            return [seed] * count
        if len(seed) != count:
            raise RequestError(
                f"{len(seed)} seeds for {count} prompts; give one integer, or one for each prompt"
            )
        for each in seed:
            check_integer("seed", each, 0)
        return list(seed)
