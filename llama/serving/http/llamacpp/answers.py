"""Answers of /completion and /infill: one object, an array for several samples, or a stream of events."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from ....engine import FinishReason
from ....engine.sequence import SequenceState, TokenScore
from ... import TextDelta
from ..outputs import News
from ..problems import Problem
from ..replies import Encoder, dumps, event
from ..response_fields import pick
from ..service import Run
from ..token_texts import TokenTexts, spelled, token_bytes
from .bodies import GenerationBody, temperature
from .limits import LineLimits
from .shapes import FAMILY

__all__ = ["Answers", "AnswersEncoder"]

_STOP_TYPES = {FinishReason.STOP: "eos", FinishReason.STOP_SEQUENCE: "word"}
_NO_SLOT = -1  # this server has none; llama.cpp takes -1 for any
# The log-probability of an id that cannot be drawn; JSON has no infinity.
_LEAST = -9999.0


class Added(NamedTuple):
    """What a delta adds to what may be shown of a sample; last: nothing follows."""

    text: str
    tokens: list[int]
    scores: list[TokenScore]
    last: bool


class Sample:
    """One sample on its way: what may be shown of it, with the ids and scores of just that text.

    reason: why it ended; LENGTH also for the limits of lines. sequence: the engine's record, from its first
    delta on.
    """

    def __init__(self, run: Run, row: int, sample: int, body: GenerationBody) -> None:
        request = run.requests[row]
        self.index = row * request.n + sample
        self.request, self.body, self.service = request, body, run.service
        self.text = ""
        self.tokens: list[int] = []
        self.scores: list[TokenScore] = []
        self.reason: FinishReason | None = None
        self.sequence: SequenceState | None = None
        self.ended_at: float | None = None
        self._limits = LineLimits(body.n_indent, body.t_max_predict_ms / 1000)
        self._texts = TokenTexts(run.service.tokenizer, start_of_text=request.start_of_text)
        self._waiting: deque[tuple[int, int, TokenScore]] = deque()  # end of its text, id, score
        self._decoded = 0

    @property
    def cut(self) -> bool:
        """Whether a limit of lines has ended it, so that the engine need not go on."""
        return self._limits.ended

    def take(self, delta: TextDelta) -> Added | None:
        """What a delta adds; None for one that came in the same moment as the cut, but behind it."""
        if self.reason is not None:
            return None
        self.sequence = delta.sequence or self.sequence
        text, tokens, scores = delta.text, list(delta.tokens), list(delta.scores)
        if self.body.discards:
            text, tokens, scores = "", [], []
        elif self._limits.on:
            text = self._limits.feed(text, final=delta.finish_reason is not None)
            tokens, scores = self._shown(tokens, scores, len(self.text) + len(text), delta.finish_reason)
        self.text += text
        self.tokens += tokens
        self.scores += scores
        self.reason = FinishReason.LENGTH if self.cut else delta.finish_reason
        if self.reason is not None:
            ended = None if self.sequence is None else self.sequence.times.ended
            self.ended_at = self.service.engine.engine.clock() if ended is None else ended
        return Added(text, tokens, scores, self.reason is not None)

    def _shown(
        self, tokens: list[int], scores: list[TokenScore], end: int, reason: FinishReason | None
    ) -> tuple[list[int], list[TokenScore]]:
        """The ids whose text ends at or before `end`; all if the text ended by itself."""
        for token, text, score in zip(tokens, self._texts.push(tokens), scores, strict=True):
            self._decoded += len(text)
            self._waiting.append((self._decoded, token, score))
        whole = reason is not None and not self.cut
        shown = []
        while self._waiting and (whole or self._waiting[0][0] <= end):
            shown.append(self._waiting.popleft())
        return [token for _, token, _ in shown], [score for *_, score in shown]

    # ---- as JSON -------------------------------------------------------------------------------------------

    def answer(self, truncated: bool, content: str | None = None) -> dict[str, Any]:
        """The full answer, or with `content` the last event of a stream, which has no ids."""
        body, sequence = self.body, self.sequence
        stopped = sequence.detokenizer.stopped if sequence else None
        words = self.reason is FinishReason.STOP_SEQUENCE
        predicted, room = len(self.tokens), self.service.max_model_len - len(self.request.prompt)
        full = predicted == room and not self.cut and body.n_predict != predicted
        told: dict[str, Any] = {
            "index": self.index,
            "content": self.text if content is None else content,
            "tokens": self.tokens if content is None and body.return_tokens else [],
            "id_slot": _NO_SLOT,
            "stop": True,
            "model": self.service.settings.model_name,
            "tokens_predicted": predicted,
            "tokens_evaluated": len(self.request.prompt),
            "generation_settings": self._settings(),
            "prompt": "",
            "has_new_line": "\n" in self.text,
            "truncated": truncated or full,
            "stop_type": "limit" if self.reason is None else _STOP_TYPES.get(self.reason, "limit"),
            "stopping_word": stopped if words and stopped else "",
            "tokens_cached": len(self.request.prompt) + predicted,
            "timings": self.timings(),
        }
        if body.n_probs and content is None:
            told["completion_probabilities"] = self.probabilities(self.tokens, self.scores)
        if not body.response_fields or "prompt" in body.response_fields:
            told["prompt"] = spelled(self.service.tokenizer, self.request.prompt)
        return pick(told, body.response_fields)

    def timings(self) -> dict[str, Any]:
        """How many tokens were reused, computed and generated, and in how many milliseconds."""
        sequence = self.sequence
        reused = 0 if sequence is None else sequence.reused
        prompt_n, predicted_n = len(self.request.prompt) - reused, len(self.tokens)
        prompt_ms = predicted_ms = 0.0
        if sequence is not None and sequence.times.begun is not None:
            first, begun = sequence.times.first_token, sequence.times.begun
            if first is not None:
                now = self.service.engine.engine.clock() if self.ended_at is None else self.ended_at
                prompt_ms, predicted_ms = 1000 * (first - begun), 1000 * (now - first)
        return {
            "cache_n": reused,
            "prompt_n": prompt_n,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else 0.0,
            "prompt_per_second": 1000 * prompt_n / prompt_ms if prompt_ms else 0.0,
            "predicted_n": predicted_n,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": predicted_ms / predicted_n if predicted_n else 0.0,
            "predicted_per_second": 1000 * predicted_n / predicted_ms if predicted_ms else 0.0,
        }

    def probabilities(self, tokens: Sequence[int], scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
        """Each id with its log-probability and those of the most probable ids at its place."""

        def named(token: int, logprob: float) -> dict[str, Any]:
            told = list(token_bytes(self.service.tokenizer, token))
            name = self.service.token_names[token]
            return {"id": token, "token": name, "bytes": told, "logprob": max(logprob, _LEAST)}

        return [
            {**named(token, score.logprob), "top_logprobs": [named(*each) for each in score.top]}
            for token, score in zip(tokens, scores, strict=True)
        ]

    def _settings(self) -> dict[str, Any]:
        body, sampling = self.body, self.request.sampling
        return {
            "n_ctx": self.service.max_model_len,
            "n_predict": body.n_predict,
            "n_cmpl": body.n_cmpl,
            "n_indent": body.n_indent,
            "t_max_predict_ms": body.t_max_predict_ms,
            "model": self.service.settings.model_name,
            "seed": self.request.seed,
            "temperature": temperature(body),
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "ignore_eos": body.ignore_eos,
            "stop": list(self.request.stop),
            "samplers": body.samplers or [],
            "n_probs": body.n_probs,
            "stream": body.stream,
        }


class Answers:
    """All samples of a run, in order, and the value that is made of them.

    truncated: of each prompt, whether some of what was sent is not in it.
    """

    def __init__(self, run: Run, body: GenerationBody, truncated: Sequence[bool]) -> None:
        self.run, self.truncated = run, truncated
        self.samples = [
            [Sample(run, row, sample, body) for sample in range(request.n)]
            for row, request in enumerate(run.requests)
        ]

    def take(self, news: News) -> tuple[Sample, Added | None]:
        """A delta's sample, and what it adds; the request is cut if a limit has ended the sample."""
        sample = self.samples[news.row][news.delta.sample]
        added = sample.take(news.delta)
        if sample.cut:
            self.run.cut(news.row, news.delta.sample)
        return sample, added

    def see(self, news: Sequence[News]) -> None:
        """Take deltas of an answer that is not streamed."""
        for each in news:
            self.take(each)

    def value(self) -> Any:
        """One object for one sample, an array for several."""
        told = [
            sample.answer(self.truncated[row])
            for row, samples in enumerate(self.samples)
            for sample in samples
        ]
        return told[0] if len(told) == 1 else told


class AnswersEncoder(Encoder):
    """The stream: events with new text, and one with the numbers at the end of each sample. No [DONE]."""

    family = FAMILY

    def __init__(self, answers: Answers, body: GenerationBody) -> None:
        self._answers, self._body = answers, body

    def news(self, news: Sequence[News]) -> bytes:
        return b"".join(self._events(each) for each in news)

    def _events(self, news: News) -> bytes:
        sample, added = self._answers.take(news)
        if added is None:
            return b""
        made = self._part(sample, added) if added.text or added.tokens else b""
        if added.last:
            made += event(sample.answer(self._answers.truncated[news.row], content=""))
        return made

    def _part(self, sample: Sample, added: Added) -> bytes:
        body = self._body
        more = ""
        if body.timings_per_token:
            more += f',"timings":{dumps(sample.timings())}'
        if body.n_probs:
            more += f',"completion_probabilities":{dumps(sample.probabilities(added.tokens, added.scores))}'
        return (
            f'data: {{"index":{sample.index},"content":{dumps(added.text)},"tokens":{dumps(added.tokens)},"stop":false,'
            f'"id_slot":{_NO_SLOT},"tokens_predicted":{len(sample.tokens)},'
            f'"tokens_evaluated":{len(sample.request.prompt)}{more}}}\n\n'
        ).encode()

    def failed(self, problem: Problem) -> bytes:
        # Tabby cannot parse an event without `content` and `stop`.
        return event({"content": "", "stop": True, **FAMILY.error(problem)})
