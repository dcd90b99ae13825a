"""`codellama info`: describes a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LlamaError
from .arguments import add_tokenizer, path
from .terminal import out

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..tokenizer import Tokenizer

SUMMARY = "describe a checkpoint in a few lines"
DESCRIPTION = """
    Describe a checkpoint in a few lines: which model of the family it is (guessed from its shapes), layout,
    parameters, dtype, context, infilling, chat format, and memory per rank on 1, 2, 4 and 8 ranks.
    Reads no weights, so it takes a moment for any size.

      codellama info CodeLlama-7b/
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout"
    )
    add_tokenizer(parser)


def run(options: argparse.Namespace) -> int:
    from ..checkpoint import open_checkpoint
    from ..checkpoint.info import describe

    checkpoint = open_checkpoint(options.folder)
    for label, text in describe(checkpoint, _tokenizer(checkpoint, options.tokenizer)):
        out(f"{label:<14}  {text}")
    return 0


def _tokenizer(checkpoint: Checkpoint, path: Path | None) -> Tokenizer | None:
    """The tokenizer; None if the folder has none that can be read. A `path` must be readable."""
    from ..checkpoint import tokenizer_of

    try:
        return tokenizer_of(checkpoint, path)
    except LlamaError:
        if path is not None:
            raise
        return None
