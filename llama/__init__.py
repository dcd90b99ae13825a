"""A model-parallel runtime for the Code Llama family.

Start at `Llama.build`; docs/architecture.md shows the way from a call to a matrix product. Everything here is
imported on first use: `import llama` takes milliseconds, where torch alone takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        CheckpointError,
        CheckpointFormatError,
        CheckpointMismatchError,
        CheckpointNotFoundError,
        CheckpointWriteError,
        ConfigError,
        DialogError,
        EngineClosedError,
        EvaluationError,
        LlamaError,
        NumericsError,
        OutOfMemoryError,
        ParallelismError,
        PromptError,
        PromptTooLongError,
        RankError,
        RequestError,
        SamplingError,
        TokenizerError,
        UnsafeTagError,
        UnsupportedError,
    )
    from .generation import (
        ChatPrediction,
        CompletionPrediction,
        Dialog,
        InfillingPrediction,
        Llama,
        Message,
        StreamDelta,
    )
    from .model import Transformer
    from .sampling import SamplingParams
    from .sizing.args import ModelArgs
    from .tokenizer import Tokenizer

__all__ = [
    "ChatPrediction",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointWriteError",
    "CompletionPrediction",
    "ConfigError",
    "Dialog",
    "DialogError",
    "EngineClosedError",
    "EvaluationError",
    "InfillingPrediction",
    "Llama",
    "LlamaError",
    "Message",
    "ModelArgs",
    "NumericsError",
    "OutOfMemoryError",
    "ParallelismError",
    "PromptError",
    "PromptTooLongError",
    "RankError",
    "RequestError",
    "SamplingError",
    "SamplingParams",
    "StreamDelta",
    "Tokenizer",
    "TokenizerError",
    "Transformer",
    "UnsafeTagError",
    "UnsupportedError",
]
__version__ = "0.1.0"

# Where each name lives. The rest of `__all__` is in errors.py.
_HOMES = {
    **dict.fromkeys(("ChatPrediction", "CompletionPrediction", "InfillingPrediction"), "generation"),
    **dict.fromkeys(("Dialog", "Llama", "Message", "StreamDelta"), "generation"),
    "ModelArgs": "sizing.args",
    "SamplingParams": "sampling",
    "Tokenizer": "tokenizer",
    "Transformer": "model",
}


if not TYPE_CHECKING:  # type checkers would take any misspelled name for Any

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
