"""Log-probabilities as the OpenAI routes tell them: flat lists for completions, one entry a token for chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ....engine.sequence import TokenScore
from ....tokenizer import Tokenizer
from ..token_texts import TokenNames, TokenTexts

__all__ = ["Position", "Positions", "chat_logprobs", "completion_logprobs"]


class Alternative(NamedTuple):
    """An id that could stand at a position. key: its name in `TokenNames`; name, text: there, in that text."""

    key: str
    name: str
    text: bytes
    logprob: float


class Position(NamedTuple):
    """A token of a text. offset: characters before it. logprob: None for a text's first id, which is given."""

    key: str
    name: str
    text: bytes
    logprob: float | None
    top: tuple[Alternative, ...]
    offset: int


class Positions:
    """The tokens of one text with their scores, as they come.

    Args:
        start_of_text: as `Request.start_of_text`: the text's first token goes without its space.
        offset: characters in front of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, names: TokenNames, *, start_of_text: bool, offset: int = 0
    ) -> None:
        self._tokenizer, self._names = tokenizer, names
        self._texts = TokenTexts(tokenizer, start_of_text=start_of_text)
        self._drops_space = start_of_text and tokenizer.has_dummy_prefix
        self._offset = offset

    def push(
        self, tokens: Sequence[int], scores: Iterable[TokenScore | None], *, final: bool = False
    ) -> list[Position]:
        """The positions of the next tokens. See `TokenTexts.push` for `final`."""
        found = []
        texts = self._texts.push(tokens, final=final)
        for token, text, score in zip(tokens, texts, scores, strict=True):
            told = self._told(token)
            top = () if score is None else tuple(Alternative(*self._told(t), p) for t, p in score.top)
            # In front of its own text may stand U+FFFD for bytes before it that became no character.
            before = len(text) - min(len(text), _own_length(told[2], text))
            logprob = None if score is None else score.logprob
            found.append(Position(*told, logprob, top, self._offset + before))
            self._offset += len(text)
            self._drops_space = self._drops_space and not told[2]
        return found

    def _told(self, token: int) -> tuple[str, str, bytes]:
        key, data = self._names[token], self._names.bytes_of(token)
        if self._drops_space and data.startswith(b" ") and token != self._tokenizer.unk_id:
            return key, key[1:], data[1:]
        return key, key, data


def _own_length(data: bytes, text: str) -> int:
    """Characters of a token within the text that it brought; all of them for the last byte of a character."""
    try:
        return len(data.decode())
    except UnicodeDecodeError:
        return len(text)


def completion_logprobs(positions: Sequence[Position]) -> dict[str, Any]:
    """The `logprobs` of a choice of /v1/completions. The chosen token is always among its top ones."""
    return {
        "tokens": [each.key for each in positions],
        "token_logprobs": [each.logprob for each in positions],
        "top_logprobs": [
            None
            if each.logprob is None
            # Keys, since a first token without its space could have the name of another.
            else {**{other.key: other.logprob for other in each.top}, each.key: each.logprob}
            for each in positions
        ],
        "text_offset": [each.offset for each in positions],
    }


def chat_logprobs(positions: Sequence[Position]) -> dict[str, Any]:
    """The `logprobs` of a choice of /v1/chat/completions. Joined, the bytes are those of the text."""

    def entry(each: Position | Alternative) -> dict[str, Any]:
        return {"token": each.name, "logprob": each.logprob, "bytes": list(each.text)}

    content = [{**entry(each), "top_logprobs": [entry(other) for other in each.top]} for each in positions]
    return {"content": content, "refusal": None}
