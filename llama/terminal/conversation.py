"""A conversation: the system message and the turns, what of it is sent, and its file. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DialogError
from ..printable import shown
from ..prompts import Message
from .files import write_atomically

__all__ = ["Conversation", "Turn"]


@dataclass(frozen=True)
class Turn:
    """What the user said, and the answer."""

    question: str
    answer: str


@dataclass
class Conversation:
    """The system message (empty for none) and the turns, oldest first."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def dialog(self, question: str) -> tuple[Message, ...]:
        """The messages that ask `question` behind all turns."""
        return (*self.messages(), Message(role="user", content=question))

    def messages(self) -> tuple[Message, ...]:
        """The system's message, if there is one, and those of the turns."""
        messages = [Message(role="system", content=self.system)] if self.system else []
        for turn in self.turns:
            messages.append(Message(role="user", content=turn.question))
            messages.append(Message(role="assistant", content=turn.answer))
        return tuple(messages)

    def forget_oldest(self, enough: Callable[[], bool]) -> int:
        """Drop turns, oldest first, until it is enough or none is left -> how many."""
        dropped = 0
        while self.turns and not enough():
            del self.turns[0]
            dropped += 1
        return dropped

    def save(self, path: Path) -> None:
        """Write `{"messages": [...]}`, the messages as OpenAI's API has them. Raises OSError."""
        text = json.dumps({"messages": self.messages()}, ensure_ascii=False, indent=2)
        write_atomically(path.resolve(), text.encode("utf-8") + b"\n")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote.

        Raises:
            DialogError: the file holds something else; the message says what.
            OSError: it cannot be read.
        """
        content = path.read_bytes()
        try:
            found = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DialogError(f"{shown(str(path))} is not JSON: {type(error).__name__}: {error}") from None
        if (
            not isinstance(found, dict)
            or found.keys() != {"messages"}
            or not isinstance(found["messages"], list)
        ):
            raise DialogError(f'{shown(str(path))} does not hold {{"messages": [...]}} and nothing else')
        messages = found["messages"]
        contents = [_content(index, message) for index, message in enumerate(messages)]
        first = 1 if messages and messages[0]["role"] == "system" else 0
        _check_order([message["role"] for message in messages[first:]], first)
        pairs = zip(contents[first::2], contents[first + 1 :: 2], strict=True)
        return cls(contents[0] if first else "", [Turn(*pair) for pair in pairs])


def _content(index: int, message: Any) -> str:
    """The text of a message of a file; its role is checked for its type here, for its place later."""
    keys = {"role", "content"}
    if (
        not isinstance(message, dict)
        or message.keys() != keys
        or not all(isinstance(message[k], str) for k in keys)
    ):
        raise DialogError(
            f"message {index} of the file is not an object of a role and a content, both strings"
        )
    text: str = message["content"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DialogError(f"message {index} of the file holds half a surrogate pair") from None
    return text


def _check_order(roles: Sequence[str], first: int) -> None:
    for index, role in enumerate(roles):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise DialogError(
                f"message {first + index} of the file has the role {shown(role)}, expected {expected!r}"
            )
    if len(roles) % 2:
        raise DialogError("the last message of the file is the user's, and has no answer")
