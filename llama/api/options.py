"""What a call of `Llama` takes and gives: options, seeds, outputs, result dictionaries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch

from ..engine import Counts, Delta, Request, Times, TokenScore
from ..engine.request import MOST_SAMPLES, stop_problem
from ..errors import LlamaError, PromptError, PromptTooLongError, RequestError, SamplingError
from ..printable import shown
from ..prompts import Message, Prompt
from ..sampling import SamplingParams
from ..tokenizer import Tokenizer
from ..values import flag, integer, rows

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
    "check_seed",
    "id_lists",
    "listed",
    "naming",
    "numbered",
    "text_list",
]

Logprobs = bool | int
TopLogprobs = list[dict[str, float]]
# No count is larger, nor any id. A seed may be a hash or a UUID.
_MOST = 2**63 - 1
_MOST_SEED = 2**256 - 1
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


def listed(name: str, items: object, of: str) -> list[Any]:
    """Whatever can be walked, in its order: a list, an array, a generator.

    of: what the items are, in the plural.

    Raises:
        PromptError: one string, a set, a mapping, or nothing that can be walked.
    """
    found = rows(items)
    if found is None:
        hint = ""
        if isinstance(items, str) and "strings" in of:
            hint = "; put it in brackets"
        elif isinstance(items, set | frozenset):
            hint = "; a set has no order: make a list of it"
        raise PromptError(f"{name} must be a list of {of}, not {type(items).__name__}{hint}")
    return found


def text_list(name: str, texts: Iterable[str]) -> list[str]:
    """The texts as a list of Python's own strings.

    Raises:
        PromptError: a lone string, or an entry that is none, naming its position.
    """
    found = listed(name, texts, "strings")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise PromptError(f"{name}[{i}] is {type(text).__name__}, not a string")
    return [str(text) for text in found]


def id_lists(name: str, lists: object) -> list[tuple[int, ...]]:
    """Lists of ids, of any integer type, as tuples of Python's own.

    Raises:
        PromptError: not a list of lists, or an entry that is no integer, naming its position.
    """
    made = []
    for i, ids in enumerate(listed(name, lists, "lists of ids")):
        found = rows(ids)
        if found is None:
            raise PromptError(f"{name}[{i}] is {type(ids).__name__}, not a list of ids")
        for at, token in enumerate(found):
            if type(token) is not int:
                found[at] = integer(token)
                if found[at] is None:
                    raise PromptError(f"{name}[{i}] holds {shown(token)}, which is no id")
        made.append(tuple(found))
    return made


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


def numbered(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
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
    stop: str | Iterable[str]
    stop_ids: Iterable[int]
    seed: int | Iterable[int] | None
    n: int
    prediction: str | Iterable[str]
    speculate: bool


@dataclass
class Options:
    """The parameters that all calls share. See `Llama.text_completion` for their meaning.

    Numbers may be of any integer or real type, lists anything that is walked in order: here they become Python's own.

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
    stop: str | Iterable[str] = ()
    stop_ids: Iterable[int] = ()
    seed: int | Iterable[int] | None = None
    n: int = 1
    prediction: str | Iterable[str] = ()
    speculate: bool = True
    sampling: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        self.sampling = SamplingParams(
            self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty
        )
        if self.max_gen_len is not None:
            self.max_gen_len = check_integer("max_gen_len", self.max_gen_len, 0)
        self.n = check_integer("n", self.n, 1)
        if self.n > MOST_SAMPLES:
            raise SamplingError(
                f"n is {self.n}; {MOST_SAMPLES} samples of a prompt are the most, since a call keeps all of them until"
                " it returns; ask in several calls, each with a seed of its own"
            )
        scored = flag(self.logprobs)
        self.logprobs = check_integer("logprobs", self.logprobs, 0) if scored is None else scored
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
        speculate = flag(self.speculate)
        if speculate is None:
            raise SamplingError(f"speculate is {shown(self.speculate)}; it must be True or False")
        self.speculate = speculate
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
    def samples(self) -> bool:
        """Whether random numbers decide anything."""
        return not self.sampling.greedy and self.max_gen_len != 0

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
        texts = list(self.prediction)
        if len(texts) not in (0, prompts):
            raise SamplingError(
                f"prediction has {len(texts)} texts for {prompts} prompts; give one text, or one for each"
            )
        return texts or [""] * prompts

    def request(
        self,
        row: int,
        prompt: Prompt,
        seed: int,
        prediction: tuple[int, ...],
        max_seq_len: int,
        streaming: bool = True,
    ) -> Request:
        """The request for the n samples of a prompt.

        prediction: ids that the output is likely to repeat. live: see `Request`.
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
            stop_ids=prompt.stop_ids | frozenset(self.stop_ids),
            stop=tuple(self.stop),
            start_of_text=prompt.start_of_text,
            seed=seed,
            n=self.n,
            top=self.top,
            score_prompt=self.echo and self.scored,
            row=row,
            speculate=self.speculate,
            prediction=prediction,
            streaming=streaming,
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


def check_integer(name: str, value: object, least: int, most: int = _MOST) -> int:
    """A value of any integer type as Python's own.

    Raises:
        SamplingError: it is none, or not from `least` to `most`.
    """
    number = integer(value)
    if number is None or number < least:
        raise SamplingError(f"{name} is {shown(value)}; it must be an integer of at least {least}")
    if number > most:
        raise SamplingError(f"{name} is {shown(value)}; it must be an integer below 2**{most.bit_length()}")
    return number


def check_seed(value: object) -> int:
    """A seed as Python's own integer. Raises as `check_integer`."""
    return check_integer("seed", value, 0, _MOST_SEED)


class Seeds:
    """A seed for each request.

    A call's own seed goes to each of its prompts as it is, so that a result does not depend on what
    else is in the batch. Without one, prompts get different seeds: drawn from `base` and the number of
    the call where there is a base, else from torch's CPU generator. That advances by one draw on every rank
    in a call that samples, and by none in any other; where the ranks' generators differ, what the first one
    drew counts on all.

    Args:
        base: of `Llama.build`.
        first: of a number that each replica has drawn, that of the first one; all of them ask at the same place.

    Raises:
        SamplingError: base is no non-negative integer.
    """

    def __init__(self, base: int | None, first: Callable[[int], int]) -> None:
        self._base = None if base is None else check_seed(base)
        self._first = first
        self._calls = 0

    def of(self, call: Options, count: int) -> list[int]:
        """`count` seeds for a call.

        Raises:
            RequestError: a list of another length. SamplingError: no non-negative integers.
        """
        seed = call.seed
        if seed is None:
            self._calls += 1
            entropy = self._drawn(call) if self._base is None else [self._base, self._calls]
            return [int(each) for each in np.random.SeedSequence(entropy).generate_state(count, np.uint64)]
        seeds = rows(seed)
        if seeds is None:
            return [check_seed(seed)] * count
        if len(seeds) != count:
            raise RequestError(
                f"{len(seeds)} seeds for {count} prompts; give one integer, or one for each prompt"
            )
        return [check_seed(each) for each in seeds]

    def _drawn(self, call: Options) -> int:
        """A number from the host's generator, the same on all ranks that decide anything."""
        if not call.samples:
            return 0
        # All is said: the host may have another default device or dtype.
        drawn = torch.randint(_MOST, (), generator=torch.default_generator, device="cpu", dtype=torch.int64)
        # Of a model's ranks the first one decides each token; the first ones of all replicas must agree.
        return self._first(int(drawn))
