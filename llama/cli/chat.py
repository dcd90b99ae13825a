"""`codellama chat`: talks with a model at the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..serving.http.settings import CAPABILITIES
from .model_arguments import add_sampling, add_source, sampling, source

if TYPE_CHECKING:
    from ..terminal.backend import Backend
    from ..terminal.readers import Reader
    from ..terminal.running import Model, Server

SUMMARY = "talk with a model at the terminal"
DESCRIPTION = """
    Talk with a model. A text may have several lines; a line that holds only !! ends it. `exit` leaves, `end` begins
    a new conversation, /help lists the commands. Ctrl-C stops an answer.

    Answers go to standard output, all else to standard error. When standard input is not a terminal, texts are read
    from it in the same form; the exit code is then 1 if any of them was refused.

      codellama chat CodeLlama-7b-Instruct/
      codellama chat CodeLlama-7b/ --cap infilling --temperature 0
      torchrun --nproc_per_node 2 -m llama chat CodeLlama-13b-Instruct/
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_chat(parser)
    add_source(parser)


def run(options: argparse.Namespace) -> int:
    return run_chat(options, source(options))


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Add what chat and client share."""
    parser.add_argument(
        "--cap",
        choices=CAPABILITIES,
        default="chat",
        help="what a text is: the next message of a chat (default), a text to continue as it is (completion, python),"
        " or one with <FILL> where it is to be filled in (infilling)",
    )
    parser.add_argument(
        "--sys-instruct",
        default="",
        metavar="TEXT",
        help="the system message (--cap chat only)",
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="tell the tokens of each answer, and how many came from the cache",
    )
    add_sampling(
        parser, temperature=0.6, max_gen_len=None, limit="as many as there is room for in a chat, else 256"
    )


def run_chat(options: argparse.Namespace, place: Model | Server) -> int:
    """Run the chat program on a model or a server."""
    from ..terminal.answers import Answers
    from ..terminal.chat import ChatProgram
    from ..terminal.conversation import Conversation
    from ..terminal.readers import LineReader
    from ..terminal.running import first_rank_of, run

    if options.cap != "chat" and options.max_gen_len is None:
        options.max_gen_len = 256  # a base model may never stop by itself
    # Before the model is loaded, since what is missing should be told at once. The other ranks only follow.
    reader = _reader() if first_rank_of(place) else LineReader(None)

    async def main(backend: Backend) -> int:
        conversation = Conversation(options.sys_instruct)
        drawn = sampling(options)
        program = ChatProgram(
            backend, reader, Answers(), conversation, options.cap, drawn, stats=options.stats
        )
        return await program.run()

    return run(place, main)


def _reader() -> Reader:
    from ..terminal.readers import LineReader
    from ..terminal.running import extra

    if sys.stdin is None or sys.stdin.closed:
        return LineReader(None)
    if not sys.stdin.isatty():
        return LineReader(sys.stdin.fileno())
    with extra("terminal", "the prompt at a terminal"):
        from ..terminal.line_editor import LineEditor
    return LineEditor()
