"""`codellama batch`: answers a file of requests."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .arguments import add_replicas, path, positive
from .model_arguments import add_source, source

if TYPE_CHECKING:
    from ..generation import Llama
    from ..serving import AsyncEngine
    from ..terminal.batch import Batch
    from ..terminal.running import Model, Server

SUMMARY = "answer a file of requests"
DESCRIPTION = """
    Answer the requests of IN, one a line in the form of OpenAI's batches, and write the answers to OUT in the same
    order:

      {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "def f(", "max_tokens": 64}}

    url is /v1/completions or /v1/chat/completions. A request that is refused gets a line with the reason, and the
    rest goes on; the exit code is 0. After an interrupt the same command continues after the last complete line of OUT.

      codellama batch CodeLlama-7b/ requests.jsonl answers.jsonl
      codellama batch http://127.0.0.1:8000 requests.jsonl answers.jsonl --in-flight 64
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser, max_batch_size=32)
    parser.add_argument("input", type=path, metavar="IN", help="the requests, JSON Lines")
    parser.add_argument(
        "output", type=path, metavar="OUT", help="the answers; a file that is there is continued"
    )
    parser.add_argument(
        "--in-flight",
        type=positive,
        metavar="N",
        help="requests that are asked at the same time (default: 32 of a server, else twice --max-batch-size)",
    )
    add_replicas(parser, "share the requests out among replicas of DIR")


def run(options: argparse.Namespace) -> int:
    from ..terminal.running import extra, first_rank_of, ranks_of

    with extra("terminal", "batches"):
        from ..terminal.batch import Batch
    place = source(options)
    # Before a model is loaded: files that do not fit together should be told at once. Other ranks only follow.
    opened = Batch(options.input, options.output) if first_rank_of(place) else nullcontext()
    with opened as batch:
        # Several ranks would have to agree on it.
        if batch is not None and batch.done and ranks_of(place) == 1:
            return 0
        return _run(options, place, batch)


def _run(options: argparse.Namespace, place: Model | Server, batch: Batch | None) -> int:
    from ..terminal.batch import Poster
    from ..terminal.remote import open_client, read_key
    from ..terminal.running import Model, extra, run_here, run_model

    if isinstance(place, Model):
        with extra("server", "batches of a model in this process"):
            from ..terminal.in_process import check_alive, open_in_process
        in_flight = options.in_flight or 2 * options.max_batch_size
        if options.ray is not None:
            return _run_on_ray(batch, place, options, in_flight)

        async def lead(llama: Llama, engine: AsyncEngine) -> int:
            assert batch is not None
            async with open_in_process(llama, engine, place.name) as client:
                poster = Poster(client, partial(check_alive, engine))
                return await batch.run(poster, in_flight)

        return run_model(place, lead)

    if options.ray is not None:
        raise ConfigError("--ray starts replicas of a folder; a server at a URL has its own")

    async def post() -> int:
        assert batch is not None
        async with open_client(place.url, read_key(place.key_file)) as client:
            return await batch.run(Poster(client), options.in_flight or 32)

    return run_here(post)


def _run_on_ray(batch: Batch | None, model: Model, options: argparse.Namespace, in_flight: int) -> int:
    from ..terminal.running import extra

    with extra("ray", "replicas"):
        from ..terminal.ray_data import run_on_ray
    # Of several ranks each is told that Ray starts them itself.
    return run_on_ray(batch, model, options.replicas, options.ray or None, in_flight)
