"""Messages of a chat, as /apply-template and vLLM's /tokenize take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ....prompts import Message
from ..bodies import Body

__all__ = ["TemplateMessage", "plain_messages"]


class TemplateText(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class TemplateMessage(Body):
    """One message; its content is a text, or parts that are texts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TemplateText]
    name: str | None = None


def plain_messages(messages: Sequence[TemplateMessage]) -> list[Message]:
    """The messages of llama/prompts.py. `developer` is OpenAI's newer name for system."""
    return [
        {
            "role": "system" if each.role == "developer" else each.role,
            "content": each.content
            if isinstance(each.content, str)
            else "".join(part.text for part in each.content),
        }
        for each in messages
    ]
