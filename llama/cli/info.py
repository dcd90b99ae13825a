"""`codellama info`: describes a checkpoint, or the kernels that this machine uses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LlamaError
from .arguments import add_adapter, add_tokenizer, path
from .terminal import out

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..tokenizer import Tokenizer

SUMMARY = "describe a checkpoint, or the kernels"
DESCRIPTION = """
    Describe a checkpoint in a few lines: which model of the family it is (guessed from its shapes), layout,
    parameters, dtype, context, infilling, chat format, and memory per rank on 1, 2, 4 and 8 ranks.
    Reads no weights, so it takes a moment for any size.

    With --kernels, tell which implementation of each operator this machine uses, and why not a faster one: for a
    checkpoint's shapes and dtype, or without DIR for all dtypes.

      codellama info CodeLlama-7b/
      codellama info --kernels
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=path,
        nargs="?",
        metavar="DIR",
        help="a folder in Meta's or Hugging Face's layout, or a GGUF file",
    )
    add_tokenizer(parser)
    add_adapter(parser)
    parser.add_argument(
        "--kernels", action="store_true", help="tell which kernels this machine uses; DIR may be left out"
    )
    parser.set_defaults(usage=parser.error)


def run(options: argparse.Namespace) -> int:
    if options.folder is None and not options.kernels:
        options.usage("name a checkpoint's folder, or ask for --kernels")
    for line in (
        _kernels(options.folder)
        if options.kernels
        else _checkpoint(options.folder, options.tokenizer, options.adapter)
    ):
        out(line)
    return 0


def _checkpoint(folder: Path, tokenizer: Path | None, adapter: Path | None) -> Iterator[str]:
    from ..checkpoint import open_checkpoint
    from ..checkpoint.info import describe

    checkpoint = open_checkpoint(folder, adapter=adapter)
    for label, text in describe(checkpoint, _tokenizer(checkpoint, tokenizer)):
        yield f"{label:<14}  {text}"


def _kernels(folder: Path | None) -> Iterator[str]:
    from ..kernels.report import describe

    if folder is None:
        return describe()
    from ..checkpoint import open_checkpoint
    from ..sizing.shapes import is_product

    checkpoint = open_checkpoint(folder)
    args = checkpoint.args
    matrices = [(name, (0, shape[1])) for name, shape in checkpoint.shapes.items() if is_product(name)]
    forms = [form for name, columns in matrices if (form := checkpoint.form(name, columns)) is not None]
    quantized = {form.format: form.group for form in forms}
    sizes = {"width": args.dim, "head_dim": args.head_dim, "hidden": args.ffn_dim}
    return describe(checkpoint.dtype, quantized, **sizes)


def _tokenizer(checkpoint: Checkpoint, path: Path | None) -> Tokenizer | None:
    """The tokenizer; None if there is none that can be read. A `path` must be readable."""
    from ..checkpoint import tokenizer_of

    try:
        return tokenizer_of(checkpoint, path)
    except LlamaError:
        if path is not None:
            raise
        return None
