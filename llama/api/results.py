"""What a call returns: the reference's dictionaries and stream deltas, and the outputs they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..engine import Counts, Delta, Times, TokenScore
from ..errors import UnsafeTagError
from ..prompts import UNSAFE_ERROR, Message, Prompt, answer_message
from ..tokenizer import Tokenizer
from .options import Options

__all__ = [
    "ChatPrediction",
    "CompletionPrediction",
    "InfillingPrediction",
    "Output",
    "Scores",
    "StreamDelta",
    "answers",
    "completions",
    "infillings",
    "place",
]


class Scores(TypedDict, total=False):
    """Tokens, as their pieces, and scores of a result; each key is there only if it was asked for.

    top_logprobs: for each token the best pieces of its position and their log-probabilities, best first.
    """

    tokens: list[str]
    logprobs: list[float]
    top_logprobs: list[dict[str, float]]


class CompletionPrediction(Scores):
    """A result of `text_completion`."""

    generation: str
    finish_reason: str


class InfillingPrediction(Scores):
    """A result of `text_infilling`; `full_text` is prefix + generation + suffix."""

    generation: str
    full_text: str
    finish_reason: str


class ChatPrediction(Scores, total=False):
    """A result of `chat_completion`; `error` is there only if the dialog was refused."""

    generation: Message
    finish_reason: str
    error: str


@dataclass(frozen=True)
class StreamDelta:
    """New text of sample `sample` of prompt `index`; its last delta has a finish reason, counts and times.

    tokens: the ids whose text is complete with this delta; no id comes before its text, and all of a sample
    joined are its output. scores: their log-probabilities, with the alternatives that `logprobs` asked for.
    """

    index: int
    sample: int
    text: str
    finish_reason: str | None = None
    counts: Counts | None = None
    times: Times | None = None
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()

    @classmethod
    def of(cls, delta: Delta) -> StreamDelta:
        """From what the engine yields."""
        index, sample = place(delta)
        if delta.finish_reason is None:
            return cls(index, sample, delta.text, tokens=delta.tokens, scores=delta.scores)
        sequence, reason = delta.sequence, delta.finish_reason.value
        ended = (reason, sequence.counts, sequence.times)
        return cls(index, sample, delta.text, *ended, delta.tokens, delta.scores)


@dataclass(frozen=True)
class Output:
    """One finished sample: its prompt's ids, its own ids, text and scores.

    scores, prompt_scores: of `tokens`, and of `prompt` from its second id on; empty unless asked for.
    """

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

    @classmethod
    def refused(cls, text: str) -> Output:
        """A dialog's answer without running the model."""
        return cls((), [], text, [], [], "error")

    def ids(self, echo: bool) -> list[int]:
        """The ids to return: with `echo` the prompt's in front."""
        return [*self.prompt, *self.tokens] if echo else self.tokens

    def logprobs(self, echo: bool) -> list[float]:
        """The log-probability of each of `ids`; a prompt's first id is given, so it has 0."""
        return [score.logprob for score in self._scores(echo)]

    def scored(self, tokenizer: Tokenizer, call: Options) -> Scores:
        """Tokens and scores of a result, as the call asked: nothing, scores, or alternatives too."""
        if not call.scored:
            return {}
        found: Scores = {
            "tokens": [tokenizer.token_piece(token) for token in self.ids(call.echo)],
            "logprobs": self.logprobs(call.echo),
        }
        if call.top:
            found["top_logprobs"] = [
                {tokenizer.token_piece(token): value for token, value in score.top}
                for score in self._scores(call.echo)
            ]
        return found

    def _scores(self, echo: bool) -> list[TokenScore]:
        return [TokenScore(0.0), *self.prompt_scores, *self.scores] if echo else self.scores


def place(delta: Delta) -> tuple[int, int]:
    """(prompt, sample) of a delta in its call."""
    sequence = delta.sequence
    return sequence.request.row, sequence.request.first_sample + sequence.sample


# ---- the reference's dictionaries. The n samples of a prompt follow one another in `outputs`. ----


def completions(
    outputs: Sequence[Output], texts: Sequence[str], tokenizer: Tokenizer, call: Options
) -> list[CompletionPrediction]:
    """What `text_completion` returns for its texts."""
    return [
        {
            "generation": (texts[i // call.n] if call.echo else "") + output.text,
            "finish_reason": output.finish_reason,
            **output.scored(tokenizer, call),
        }
        for i, output in enumerate(outputs)
    ]


def infillings(
    outputs: Sequence[Output], pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, call: Options
) -> list[InfillingPrediction]:
    """What `text_infilling` returns for its pairs of prefix and suffix."""
    return [
        {
            "generation": output.text,
            "full_text": pairs[i // call.n][0] + output.text + pairs[i // call.n][1],
            "finish_reason": output.finish_reason,
            **output.scored(tokenizer, call),
        }
        for i, output in enumerate(outputs)
    ]


def answers(
    outputs: Sequence[Output], prompts: Sequence[Prompt | UnsafeTagError], tokenizer: Tokenizer, call: Options
) -> list[ChatPrediction]:
    """What `chat_completion` returns for its dialogs: `outputs` are those of the dialogs that were not refused."""
    ran, results = iter(outputs), list[ChatPrediction]()
    for prompt in prompts:
        error = prompt if isinstance(prompt, UnsafeTagError) else None
        for _ in range(call.n):
            output = next(ran) if error is None else Output.refused(UNSAFE_ERROR)
            results.append(
                {
                    "generation": answer_message(tokenizer, output.text),
                    "finish_reason": output.finish_reason,
                    **({} if error is None else {"error": str(error)}),
                    **output.scored(tokenizer, call),
                }
            )
    return results
