"""`LocalBackend`: the model of this process answers."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator

from ..api.arguments import check_length
from ..engine import FinishReason
from ..errors import EngineClosedError, PromptTooLongError
from ..generation import Llama
from ..prompts import SPECIAL_TAGS, Prompt, chat_prompt, completion_prompt, infilling_prompt
from ..serving import AsyncEngine
from .backend import Ask, Chat, Completion, End, Infilling, Sampling

__all__ = ["LocalBackend"]


class LocalBackend:
    """A `Backend` on a loaded model and the AsyncEngine that `Llama.serve` gives.

    The keys and values of a conversation stay in the engine's prefix cache: the next turn computes only what
    is new in it.
    """

    def __init__(self, llama: Llama, engine: AsyncEngine, name: str) -> None:
        self.name = name
        self.context: int | None = llama.model.params.max_seq_len
        tokenizer = llama.tokenizer
        self.tags = tuple(tag for tag in SPECIAL_TAGS if (tag == "<step>") == (tokenizer.step_id is not None))
        self._llama, self._engine = llama, engine

    def room(self, ask: Ask) -> int | None:
        """See `Backend`. Exact."""
        assert self.context is not None
        try:
            return self.context - len(self._prompt(ask).tokens)
        except PromptTooLongError:  # by its number of characters alone
            return 0

    async def stream(self, ask: Ask, sampling: Sampling) -> AsyncGenerator[str | End, None]:
        """See `Backend`. Raises EngineClosedError if the engine is closed meanwhile, as at SIGTERM."""
        # Always with a seed: to draw one would be a collective, and the other ranks are following.
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        (request,) = self._llama.requests(
            [self._prompt(ask)], sampling.temperature, sampling.top_p, sampling.max_gen_len, seed=seed
        )
        async with contextlib.aclosing(self._engine.stream(request)) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield delta.text
                if delta.finish_reason is FinishReason.CANCELLED:  # nobody may take this for a whole answer
                    raise EngineClosedError("the engine was closed before the answer had ended")
                if delta.finish_reason is not None:
                    counts = None if delta.sequence is None else delta.sequence.counts
                    numbers = () if counts is None else (counts.prompt, counts.reused, counts.generated)
                    yield End(delta.finish_reason.value, *numbers)

    def _prompt(self, ask: Ask) -> Prompt:
        tokenizer, limit = self._llama.tokenizer, self._llama.model.params.max_seq_len
        match ask:
            case Completion(text):
                check_length(tokenizer, limit, text)
                return completion_prompt(tokenizer, text)
            case Infilling(prefix, suffix):
                check_length(tokenizer, limit, prefix, suffix)
                return infilling_prompt(tokenizer, prefix, suffix)
            case Chat(messages):
                check_length(tokenizer, limit, *(message["content"] for message in messages))
                return chat_prompt(tokenizer, messages)
