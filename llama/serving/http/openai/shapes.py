"""What the OpenAI routes share: errors, the head and the usage of an answer, and the chunks of a stream.

Source: the API reference at platform.openai.com, and what its clients read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ... import TextDelta
from ..answer_fields import answer_head, error_fields
from ..outputs import News, Output
from ..problems import Family, Problem
from ..replies import Encoder, dumps, event, joined
from ..service import Run, Service

__all__ = ["FAMILY", "ChunkEncoder", "fields", "head", "usage"]


def _error(problem: Problem) -> dict[str, Any]:
    return {"error": {**error_fields(problem), **problem.details}}


FAMILY = Family("OpenAI", _error)


def head(service: Service, kind: str, prefix: str) -> dict[str, Any]:
    """As `answer_head`, with the fingerprint of the system."""
    return {
        **answer_head(service.settings.model_name, kind, prefix),
        "system_fingerprint": service.fingerprint,
    }


def usage(
    outputs: Sequence[Sequence[Output]], *, muted: bool = False, predicted: bool = False
) -> dict[str, Any]:
    """Tokens of a run, by its outputs so far. A prompt counts once, however many samples it has.

    Args:
        muted: what was generated is not told, so it does not count.
        predicted: tell how many drafted tokens were right. Most are of the prediction, some of the prompt.
    """
    prompt = sum(len(samples[0].request.prompt) for samples in outputs)
    completion = 0 if muted else sum(len(each.tokens) for samples in outputs for each in samples)
    firsts = [samples[0].sequence for samples in outputs]
    told: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(each.counts.reused for each in firsts if each is not None)
        },
    }
    if predicted:
        ended = [each.sequence for samples in outputs for each in samples if each.sequence is not None]
        accepted = sum(each.accepted for each in ended)
        told["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(each.drafted for each in ended) - accepted,
        }
    return told


def fields(values: dict[str, Any]) -> str:
    """Further fields of a JSON object, each behind a comma; nothing for none."""
    return f",{dumps(values)[1:-1]}" if values else ""


class ChunkEncoder(Encoder):
    """The chunks of a stream, one choice in each; a route says what is in a choice.

    Args:
        first: the head of every event.
        include_usage: whether a last event without choices tells the tokens.
        muted, predicted: see `usage`.
    """

    family = FAMILY

    def __init__(
        self,
        run: Run,
        first: dict[str, Any],
        *,
        include_usage: bool,
        muted: bool,
        predicted: bool = False,
    ) -> None:
        self.run, self.muted, self.predicted = run, muted, predicted
        self._first, self._include_usage = first, include_usage
        # Made by hand: one event is one token, and most of it never changes.
        self._before = f'data: {dumps(first)[:-1]},"choices":[{{"index":'
        self._after = '}],"usage":null}\n\n' if include_usage else "}]}\n\n"

    def event(self, index: int, choice: str) -> str:
        """An event with one choice, whose fields behind the index are given as JSON."""
        return f"{self._before}{index},{choice}{self._after}"

    def news(self, news: Sequence[News]) -> bytes:
        samples = len(self.run.outputs[0])
        return "".join(
            self.event(row * samples + delta.sample, choice)
            for row, delta in joined(news)
            for choice in self.choices(row, delta)
        ).encode()

    @abstractmethod
    def choices(self, row: int, delta: TextDelta) -> Sequence[str]:
        """What stands in the choices for a delta, behind the index: one event for each, perhaps none."""

    def end(self) -> bytes:
        if not self._include_usage:
            return b"data: [DONE]\n\n"
        told = usage(self.run.outputs, muted=self.muted, predicted=self.predicted)
        return event({**self._first, "choices": [], "usage": told}) + b"data: [DONE]\n\n"
