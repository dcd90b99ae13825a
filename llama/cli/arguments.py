"""Command-line arguments that several verbs share, and their types."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..printable import printable, tell
from .terminal import out

if TYPE_CHECKING:
    import torch

__all__ = [
    "CACHE_DTYPES",
    "DTYPES",
    "Parser",
    "add_adapter",
    "add_cache_dtype",
    "add_loading",
    "add_quantize",
    "add_replicas",
    "add_tokenizer",
    "path",
    "positive",
    "torch_dtype",
]

DTYPES = ("bfloat16", "float16", "float32")
# As in sizing/budget.py, which imports torch.
CACHE_DTYPES = ("auto", "int8")
_MAX_DIGITS = 12


class Parser(argparse.ArgumentParser):
    """argparse's parser; words of the command line that its messages quote are made printable.

    Names may stand before, between and behind options, as with other programs. By itself argparse takes an
    optional FILE only directly behind DIR.
    """

    _intermixes = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._intermixes or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._intermixes = True  # it calls this method in turn
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixes = False

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.splitlines():
            if file is sys.stdout:
                out(line)
            else:
                tell(line)


def add_tokenizer(parser: argparse._ActionsContainer, folder: str = "DIR") -> None:
    """Add --tokenizer, by default the file in the folder of that name."""
    parser.add_argument(
        "--tokenizer",
        type=path,
        metavar="FILE",
        help=f"the SentencePiece model (default: tokenizer.model in {folder}, or a GGUF file's own)",
    )


def add_cache_dtype(parser: argparse._ActionsContainer) -> None:
    """Add --cache-dtype."""
    parser.add_argument(
        "--cache-dtype",
        choices=CACHE_DTYPES,
        default="auto",
        help="of keys and values; int8 takes about half of 16 bits (default: as the arithmetic)",
    )


def add_adapter(parser: argparse._ActionsContainer) -> None:
    """Add --adapter."""
    parser.add_argument(
        "--adapter",
        type=path,
        metavar="FOLDER",
        help="a LoRA adapter as PEFT saves it, to merge into the weights",
    )


def add_quantize(parser: argparse._ActionsContainer) -> None:
    """Add --quantize."""
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="quantize the weights while they are read: about 8.5 or 5 bits each in memory",
    )


def add_loading(parser: argparse._ActionsContainer, *, max_batch_size: int | None) -> None:
    """Add how a model is loaded: what of `Llama.build` is the same for every verb that runs one.

    Args:
        max_batch_size: the default of --max-batch-size; None for a verb that has one request at a time.
    """
    add_tokenizer(parser)
    parser.add_argument(
        "--max-seq-len",
        type=positive,
        default=4096,
        metavar="N",
        help="most tokens of prompt and answer together (default: %(default)s)",
    )
    if max_batch_size is not None:
        parser.add_argument(
            "--max-batch-size",
            type=positive,
            default=max_batch_size,
            metavar="N",
            help="sequences that run at the same time (default: %(default)s)",
        )
    parser.add_argument(
        "--device", default="auto", help="cuda, mps, cpu (default: the first of them that is there)"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of weights and arithmetic (default: as stored)",
    )
    add_cache_dtype(parser)
    add_adapter(parser)
    add_quantize(parser)


def add_replicas(parser: argparse.ArgumentParser, does: str) -> None:
    """Add --ray and --replicas.

    Args:
        does: what --ray does, for the help.
    """
    group = parser.add_argument_group("replicas on Ray (extra [ray])")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help=f"{does}; without ADDRESS on a cluster that is started on this machine",
    )
    group.add_argument(
        "--replicas",
        type=positive,
        default=2,
        metavar="N",
        help="with --ray, each on one rank (default: %(default)s)",
    )


def positive(text: str) -> int:
    """An integer of at least 1, as an argument's type."""
    # Not isdigit alone: "²" is a digit, and int() accepts at most 4,300 of them.
    if not (text.isascii() and text.isdigit()) or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    if len(text.lstrip("0")) > _MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is too large: it has more than {_MAX_DIGITS} digits")
    return int(text)


def path(text: str) -> Path:
    """A name that a file can have, as an argument's type. Whether the file exists is up to the verb."""
    if not text:  # as a Path it would be the current folder
        raise argparse.ArgumentTypeError("the name is empty; is a shell variable not set?")
    try:
        os.lstat(text)
    except OSError:
        pass  # it does not exist: the verb says so
    except ValueError:  # NUL, or half a surrogate pair
        raise argparse.ArgumentTypeError(f"{text!r} is not a possible file name") from None
    return Path(text)


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of a --dtype; imports torch."""
    import torch

    return None if name is None else getattr(torch, name)
