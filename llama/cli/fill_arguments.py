"""What `complete` and `infill` share: the text, the place in it, where the result goes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

from .arguments import path, positive
from .model_arguments import add_sampling, add_source, sampling, source

if TYPE_CHECKING:
    from ..terminal.backend import Backend

__all__ = ["add_fill", "run_fill"]


def add_fill(parser: argparse.ArgumentParser, *, without_line: str) -> None:
    """Add the arguments.

    Args:
        without_line: where the place is without --line; for the help.
    """
    add_source(parser)
    parser.add_argument(
        "file", nargs="?", type=path, metavar="FILE", help="the text, in UTF-8 (default: standard input)"
    )
    place = parser.add_argument_group("the place")
    place.add_argument(
        "--line", type=positive, metavar="L", help=f"the cursor's line, from 1 (default: {without_line})"
    )
    place.add_argument(
        "--column",
        type=positive,
        metavar="C",
        help="the cursor stands before this character of the line, from 1, a tab counts as one (default: its end)",
    )
    result = parser.add_mutually_exclusive_group()
    result.add_argument("--full", action="store_true", help="print the text around the answer too")
    result.add_argument(
        "--in-place",
        action="store_true",
        help="write the answer into FILE, once it is complete, instead of printing it",
    )
    add_sampling(parser, temperature=0.0, max_gen_len=256, limit="256")


def run_fill(options: argparse.Namespace, kind: Literal["complete", "infill"]) -> int:
    """Run the verb `kind`."""
    from ..terminal.answers import Answers
    from ..terminal.fill import prepare
    from ..terminal.running import first_rank_of, run

    place = source(options)
    task = None
    if first_rank_of(place):  # the other ranks only follow, and standard input is one for all
        task = prepare(
            kind, options.file, options.line, options.column, in_place=options.in_place, full=options.full
        )

    async def main(backend: Backend) -> int:
        assert task is not None
        return await task.run(backend, sampling(options), Answers())

    return run(place, main)
