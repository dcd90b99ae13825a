"""The errors that a caller can catch, as a tree.

    LlamaError
    ├── CheckpointError (ValueError)            a checkpoint folder that cannot be loaded
    │   ├── CheckpointNotFoundError             the folder, or a file it must hold, is not there
    │   ├── CheckpointFormatError               a file is there, but is not what its name says
    │   ├── CheckpointMismatchError             files that are sound, but do not fit together
    │   └── CheckpointWriteError                a folder that cannot be written: exists, read-only, disk full
    ├── ConfigError (ValueError)                a parameter of build, params.json or ModelArgs out of range
    ├── ParallelismError (ValueError)           ranks, devices and heads that do not fit together
    ├── OutOfMemoryError (MemoryError)          weights or cache larger than the memory that is free
    ├── TokenizerError (ValueError)             a tokenizer file that cannot be used, ids outside of it
    ├── RequestError (ValueError)               a call that asks for the impossible; nothing was generated
    │   ├── SamplingError                       a sampling parameter out of range
    │   ├── PromptError                         a prompt that cannot be encoded
    │   │   ├── PromptTooLongError              more tokens than max_seq_len leaves room for
    │   │   ├── DialogError                     roles or an order that the chat format does not know
    │   │   └── UnsafeTagError                  a chat message that holds a tag of the chat format
    │   └── UnsupportedError                    the loaded checkpoint has no such capability
    ├── NumericsError (ArithmeticError)         logits that are not finite
    ├── EngineClosedError (RuntimeError)        a request to an AsyncEngine that was closed
    ├── EvaluationError (RuntimeError)          a benchmark that cannot be run: its data, sandbox or file of results
    └── RankError (RuntimeError)                a rank failed, is gone, or differs; the model has ended

Each also derives from the built-in class in brackets, so that `except ValueError` in a host program works. A
message says what was wrong, with numbers, and what to do about it. It is one printable line of bounded
length, whatever the file or call that it quotes.
"""

from __future__ import annotations

from .printable import printable

__all__ = [
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointWriteError",
    "ConfigError",
    "DialogError",
    "EngineClosedError",
    "EvaluationError",
    "LlamaError",
    "NumericsError",
    "OutOfMemoryError",
    "ParallelismError",
    "PromptError",
    "PromptTooLongError",
    "RankError",
    "RequestError",
    "SamplingError",
    "TokenizerError",
    "UnsafeTagError",
    "UnsupportedError",
]

# Characters of a message; a longer one quotes too much of a file.
_MAX_LENGTH = 2000


class LlamaError(Exception):
    """Base of every error that this package raises on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, _MAX_LENGTH))


class CheckpointError(LlamaError, ValueError):
    """A checkpoint folder that cannot be loaded."""


class CheckpointNotFoundError(CheckpointError):
    """The folder, or a file it must hold, is not there."""


class CheckpointFormatError(CheckpointError):
    """A file is there, but is not what its name says: truncated, HTML, unsafe pickle, broken JSON."""


class CheckpointMismatchError(CheckpointError):
    """Sound files that do not fit together: a missing or misshapen tensor, another model's tokenizer."""


class CheckpointWriteError(CheckpointError):
    """A folder that cannot be written: it exists, is read-only, or the disk is full. It is left as it was."""


class ConfigError(LlamaError, ValueError):
    """A parameter of `Llama.build`, params.json or `ModelArgs` that is unknown or out of range."""


class ParallelismError(LlamaError, ValueError):
    """A number of ranks that heads, devices or the launched world do not allow."""


class OutOfMemoryError(LlamaError, MemoryError):
    """Weights or KV cache larger than the memory that is free."""


class TokenizerError(LlamaError, ValueError):
    """A tokenizer file that cannot be used, or ids outside its vocabulary."""


class RequestError(LlamaError, ValueError):
    """A call that asks for the impossible. Nothing was generated."""


class SamplingError(RequestError):
    """A sampling parameter out of range."""


class PromptError(RequestError):
    """A prompt that cannot be turned into ids."""


class PromptTooLongError(PromptError):
    """A prompt with more tokens than max_seq_len leaves room for."""


class DialogError(PromptError):
    """Messages whose roles, or their order, the chat format does not know."""


class UnsafeTagError(PromptError):
    """A chat message that holds a tag of the loaded model's chat format.

    `tag` is the tag, `index` the position of the message in its dialog.
    """

    def __init__(self, tag: str, index: int) -> None:
        super().__init__(
            f"message {index} of the dialog holds {tag!r}, which has a meaning in this model's chat format;"
            " remove it or spell it differently"
        )
        self.tag = tag
        self.index = index

    def __reduce__(self) -> tuple[type[UnsafeTagError], tuple[str, int]]:
        return type(self), (self.tag, self.index)


class UnsupportedError(RequestError):
    """The loaded checkpoint or tokenizer has no such capability (e.g. no infilling pieces)."""


class NumericsError(LlamaError, ArithmeticError):
    """Logits that are not finite; the message names row, step and dtype.

    request_id: the engine's id of their request, if known.
    """

    request_id: int | None = None


class EngineClosedError(LlamaError, RuntimeError):
    """A request to an AsyncEngine that was closed, or is closing."""


class EvaluationError(LlamaError, RuntimeError):
    """A benchmark that cannot be run: no data, no sandbox, or a file of results that does not fit."""


class RankError(LlamaError, RuntimeError):
    """A rank of the model failed, is gone, or does something else; the message says which and why.

    If the message says that the model has ended, it and its service cannot be used any more. Otherwise only
    the call has ended: a replica failed as a whole, and its ranks still agree.
    """
