"""Messages of a chat in a request's body: OpenAI's form, which llama.cpp's and vLLM's routes take too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ...prompts import Message

__all__ = ["ChatMessage", "Content", "plain_messages"]


def _text(content: Any) -> Any:
    """The text of a content that may come in parts. They are joined by line breaks, as in vLLM and llama.cpp."""
    if not isinstance(content, list):
        return content
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or set(part) - {"type", "text"}:
            raise PydanticCustomError(
                "content_part",
                "part {index} is not a text part with the fields type 'text' and text; this model reads only text",
                {"index": index},
            )
    return "\n".join(part["text"] for part in content)


_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
Content = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}]}),
]
"""A text, or a list of text parts."""


class ChatMessage(BaseModel):
    """One message. Fields of other kinds of messages, which clients send along, may be null or empty."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(None, description="Without effect.")
    destination: str | None = Field(None, description="Of the 70B chat format.")

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = ("role", "content")
        return {name: each for name, each in value.items() if name in kept or each not in (None, [])}


def plain_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages of llama/prompts.py. `developer` is OpenAI's newer name for system."""
    return [_plain(each) for each in messages]


def _plain(given: ChatMessage) -> Message:
    message: Message = {
        "role": "system" if given.role == "developer" else given.role,
        "content": given.content,
    }
    return message if given.destination is None else {**message, "destination": given.destination}
