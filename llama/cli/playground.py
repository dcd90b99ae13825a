"""`codellama playground`: the playground in a browser, for a server elsewhere."""

from __future__ import annotations

import argparse

from ..errors import ConfigError
from .arguments import path

SUMMARY = "try a server's model in a browser"
DESCRIPTION = """
    Show the playground on this machine: completion, infilling and chat in a browser, with the model of a server
    that has OpenAI's routes, such as `codellama serve`. The page talks to this program, and this program to the
    server, so the server needs no further settings and the API key stays here.

      codellama playground http://gpu-box:8000
      codellama playground https://models.example --port 6006 --api-key-file key.txt

    (`codellama serve DIR --playground` shows the same page itself.)
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the server; a /v1 at its end may be left out")
    parser.add_argument(
        "--api-key-file",
        type=path,
        metavar="FILE",
        help="its first line is the server's API key (default: the environment's CODELLAMA_API_KEY)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (%(default)s: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=6006, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names besides localhost that browsers may use for this machine",
    )


def run(options: argparse.Namespace) -> int:
    try:
        from ..serving.http.playground.local import serve_page
        from ..terminal.remote import read_key
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; pip install 'codellama-runtime[server]'") from None

    serve_page(
        options.url,
        key=read_key(options.api_key_file),
        host=options.host,
        port=options.port,
        allowed_hosts=tuple(options.allowed_hosts),
    )
    return 0
