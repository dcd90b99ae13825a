"""The texts of a call become prompts. Their length is checked first, since encoding a long text takes long."""

from __future__ import annotations

from .. import prompts as formats
from ..engine import Engine
from ..errors import UnsafeTagError
from ..prompts import Dialog, Prompt
from .arguments import check_length

__all__ = ["Texts"]


class Texts:
    """Makes prompts in the formats of prompts.py for one engine. Every method raises as `Llama`'s call does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokenizer = engine.tokenizer

    def completion(self, text: str | Prompt, allow_control: bool = False) -> Prompt:
        """The prompt of a text to continue; a Prompt stays as it is."""
        if isinstance(text, Prompt):
            return text
        self._check_length(text)
        return formats.completion_prompt(self.tokenizer, text, allow_control=allow_control)

    def infilling(self, pair: tuple[str, str], suffix_first: bool = False) -> Prompt:
        """The prompt that fills between a prefix and a suffix."""
        self._check_length(*pair)
        return formats.infilling_prompt(self.tokenizer, *pair, suffix_first=suffix_first)

    def chat(self, dialog: Dialog) -> Prompt | UnsafeTagError:
        """The prompt of a dialog; the error, as a value, if a message holds a tag of the chat format."""
        try:
            if isinstance(dialog, list | tuple):
                self._check_length(*(each.get("content") for each in dialog if isinstance(each, dict)))
            return formats.chat_prompt(self.tokenizer, dialog)
        except UnsafeTagError as error:
            return error

    def _check_length(self, *texts: object) -> None:
        check_length(self.tokenizer, self.engine.model.params.max_seq_len, *texts)
