"""What text-generation-inference tells of tokens: ids, texts, log-probabilities, alternatives, the prompt's too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ....engine import FinishReason, Request
from ....engine.sequence import TokenScore
from ... import TextDelta
from ..outputs import Output
from ..service import Service
from ..token_texts import TokenTexts

__all__ = ["TokenRow", "TokenRows", "details", "finish_reason", "rows_of", "seed"]


class TokenRow(NamedTuple):
    """A generated token: `token` has id, text, logprob, special; `top` lists the most probable ones there."""

    token: dict[str, Any]
    top: list[dict[str, Any]]


class TokenRows:
    """Turns the deltas of one sample into its tokens. Their texts, joined, are the sample's text.

    The ids that ended the sample come last: an end token with an empty text, so that clients that print every
    token do not print `</s>`, or the tokens of a stop string, whose text before the stop is the first one's.
    """

    def __init__(self, service: Service, request: Request) -> None:
        self._service, self._top = service, request.top
        self._texts = TokenTexts(service.tokenizer, start_of_text=request.start_of_text)
        self._untold = ""

    def take(self, delta: TextDelta) -> list[TokenRow]:
        """The tokens that are complete with a delta; with the last one at least one.

        Text of a token that is not complete yet, since a stop string may go through it, is kept until it is.
        """
        reason = delta.finish_reason
        # A stop string goes through the next token, so no incomplete character ends here.
        final = reason is not None and reason is not FinishReason.STOP_SEQUENCE
        texts = self._texts.push(delta.tokens, final=final)
        rows = [self._row(*each) for each in zip(delta.tokens, texts, delta.scores, strict=True)]
        self._untold = (self._untold + delta.text)[len("".join(texts)) :]
        if reason is not None and delta.sequence is not None:
            for token, score in delta.sequence.dropped:
                rows.append(self._row(token, self._untold, score))
                self._untold = ""
        return rows

    def _row(self, token: int, text: str, score: TokenScore) -> TokenRow:
        names = self._service.token_names
        top = [self._token(each, names[each], logprob) for each, logprob in score.top[: self._top]]
        return TokenRow(self._token(token, text, score.logprob), top)

    def _token(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        special = token in self._service.tokenizer.control_ids
        return {"id": token, "text": text, "logprob": logprob, "special": special}


def rows_of(service: Service, output: Output) -> list[TokenRow]:
    """The tokens of a whole sample."""
    told = (tuple(output.tokens), tuple(output.scores))
    delta = TextDelta(output.sample, output.text, output.finish_reason, output.sequence, *told)
    return TokenRows(service, output.request).take(delta)


def finish_reason(reason: FinishReason | None) -> str:
    """TGI's name for why a sample ended."""
    names = {FinishReason.LENGTH: "length", FinishReason.STOP_SEQUENCE: "stop_sequence"}
    return "eos_token" if reason is None else names.get(reason, "eos_token")


def details(service: Service, output: Output, rows: Sequence[TokenRow]) -> dict[str, Any]:
    """The `details` of a whole sample. `prefill` is empty unless the prompt was scored."""
    return {
        "finish_reason": finish_reason(output.finish_reason),
        "generated_tokens": len(rows),
        "seed": seed(output.request),
        "prefill": _prefill(service, output),
        "tokens": [row.token for row in rows],
        **({"top_tokens": [row.top for row in rows]} if output.request.top else {}),
    }


def seed(request: Request) -> int | None:
    """The seed with which the request can be repeated; None if nothing was drawn."""
    return None if request.sampling.greedy else request.seed


def _prefill(service: Service, output: Output) -> list[dict[str, Any]]:
    if not output.request.score_prompt:
        return []
    names, logprobs = service.token_names, [None, *(score.logprob for score in output.prompt_scores)]
    return [
        {"id": token, "text": names[token], "logprob": logprob}
        for token, logprob in zip(output.request.prompt, logprobs, strict=True)
    ]
