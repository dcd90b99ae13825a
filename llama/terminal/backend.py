"""What can be asked, and what answers: a model in this process or a server. Never imports torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from ..errors import LlamaError
from ..prompts import Message

__all__ = ["Ask", "Backend", "Chat", "Completion", "End", "Infilling", "Sampling", "ServerError"]


class ServerError(LlamaError, RuntimeError):
    """A server that cannot be reached, refuses the key, or breaks off; the message says which."""


@dataclass(frozen=True)
class Completion:
    """Continue `text` as it is."""

    text: str


@dataclass(frozen=True)
class Infilling:
    """Fill in what is missing between `prefix` and `suffix`."""

    prefix: str
    suffix: str


@dataclass(frozen=True)
class Chat:
    """Answer the last of `messages`."""

    messages: tuple[Message, ...]


Ask = Completion | Infilling | Chat


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    max_gen_len: most tokens of the answer; None for as many as there is room for.
    seed: of every answer; None for another one each time.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    max_gen_len: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class End:
    """The end of an answer: why, and tokens of the prompt, of those reused from the cache, and generated.

    A server may not tell the numbers; they are None then.
    """

    finish_reason: str
    prompt: int | None = None
    reused: int | None = None
    generated: int | None = None


class Backend(Protocol):
    """Answers one ask after the other.

    name: of the model.
    context: most tokens of prompt and answer together; None if unknown.
    tags: texts that the chat format gives a meaning, so that no message may hold them.
    """

    name: str
    context: int | None
    tags: tuple[str, ...]

    def stream(self, ask: Ask, sampling: Sampling) -> AsyncGenerator[str | End, None]:
        """The answer's text in pieces, and an `End` last. Closing the generator stops the answer.

        Raises:
            PromptTooLongError: the prompt leaves no room for an answer.
            RequestError: anything else that the model cannot be asked.
            ServerError: the server failed.
        """
        ...

    def room(self, ask: Ask) -> int | None:
        """Tokens that the ask leaves for its answer, below 1 if it does not fit; None if unknown.

        Raises:
            RequestError: as `stream`.
        """
        ...
