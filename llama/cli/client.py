"""`codellama client`: the chat program with a server's model."""

from __future__ import annotations

import argparse

from .chat import add_chat, run_chat
from .model_arguments import add_server, server

SUMMARY = "talk with a server's model at the terminal"
DESCRIPTION = """
    Talk with the model of a server that has OpenAI's routes /v1/chat/completions and /v1/completions, such as
    `codellama serve`. All else is as in `codellama chat`, and nothing is loaded here.

      codellama client http://127.0.0.1:8000
      codellama client https://models.example/v1 --api-key-file key.txt --cap infilling
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the server; a /v1 at its end may be left out")
    add_chat(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    return run_chat(options, server(options, options.url))
