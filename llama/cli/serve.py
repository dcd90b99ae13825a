"""`codellama serve`: answers HTTP clients until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..serving.http.settings import CAPABILITIES
from .arguments import add_loading, add_replicas, path, positive

if TYPE_CHECKING:
    from ..serving.http.settings import Settings

SUMMARY = "answer editors and other clients over HTTP"
DESCRIPTION = """
    Serve a checkpoint over HTTP, to clients of OpenAI, llama.cpp, text-generation-inference, Mistral and Ollama.
    docs/server.md has a line to copy for each. SIGTERM ends it in order: running answers are finished first.

      codellama serve CodeLlama-7b/
      torchrun --nproc_per_node 2 -m llama serve CodeLlama-13b/
      curl localhost:8000/v1/completions -d '{"prompt": "def fib(", "suffix": "    return a"}'
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout, or a GGUF file"
    )
    _add_model(parser.add_argument_group("model"))
    _add_prompts(parser.add_argument_group("requests"))
    _add_door(parser.add_argument_group("door"))
    _add_limits(parser.add_argument_group("limits"))
    add_replicas(parser, "serve replicas behind one address")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add_loading(group, max_batch_size=32)
    group.add_argument(
        "--cache-memory", metavar="SIZE", help="for keys and values: 4GiB, or 50%% of what is free"
    )
    group.add_argument(
        "--model-name", metavar="NAME", help="the model's name in answers (default: the folder's)"
    )


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--capability",
        choices=CAPABILITIES,
        help="what a message without a format means on chat routes (default: chat)",
    )
    group.add_argument(
        "--chat-template", type=path, metavar="FILE", help="lmdeploy's JSON with model_name and capability"
    )
    group.add_argument(
        "--text-fim", action="store_true", help="recognise infilling sent as text, <PRE> p <SUF>s <MID>"
    )
    group.add_argument(
        "--strict-model", action="store_true", help="answer 404 to a request that names another model"
    )


def _add_door(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, only this machine)",
    )
    group.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    group.add_argument(
        "--api-key-file",
        type=path,
        metavar="FILE",
        help="keys, one a line; also CODELLAMA_API_KEYS in the environment",
    )
    group.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names besides localhost that clients may use for this machine",
    )
    group.add_argument(
        "--cors-origin",
        nargs="+",
        default=[],
        metavar="ORIGIN",
        help="origins whose pages may call, such as https://example.org",
    )
    group.add_argument("--ssl-certfile", type=path, metavar="FILE", help="a TLS certificate, with its chain")
    group.add_argument("--ssl-keyfile", type=path, metavar="FILE", help="its key")
    group.add_argument("--playground", action="store_true", help="show the playground at /")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-queue",
        type=positive,
        default=256,
        metavar="N",
        help="requests that may wait; more get 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-body",
        type=positive,
        default=8 << 20,
        metavar="BYTES",
        help="of a request (default: %(default)s)",
    )
    for name, default, what in (
        ("--body-timeout", 30, "for a body to arrive"),
        ("--request-timeout", 600, "for an answer"),
        ("--drain-seconds", 20, "after SIGTERM, for running answers"),
    ):
        group.add_argument(
            name, type=float, default=default, metavar="S", help=f"seconds {what} (default: %(default)s)"
        )
    group.add_argument("--log-prompts", action="store_true", help="write prompts to the log")


def run(options: argparse.Namespace) -> int:
    import logging

    try:
        from ..serving.http.server import bind, serve_http
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; pip install 'codellama-runtime[server]'") from None
    from ..generation import Llama

    settings = _settings(options)
    # Python lets a thread hold its lock for 5 ms, while a step of the engine waits for it (docs/log.md).
    sys.setswitchinterval(0.0005)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if options.ray is not None:
        return _run_on_ray(options, settings)
    # Before minutes of loading: the port may be taken.
    listener = bind(settings) if os.environ.get("RANK", "0") == "0" else None
    with Llama.build(**_build(options)) as llama, _runner() as runner:
        runner.run(serve_http(llama, settings, listener))
    return 0


def _build(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Llama.build`."""
    return {
        "ckpt_dir": options.folder,
        "tokenizer_path": options.tokenizer,
        "max_seq_len": options.max_seq_len,
        "max_batch_size": options.max_batch_size,
        "device": options.device,
        "dtype": options.dtype,
        "cache_memory": options.cache_memory,
        "adapter": options.adapter,
        "quantize": options.quantize,
        "cache_dtype": options.cache_dtype,
    }


def _run_on_ray(options: argparse.Namespace, settings: Settings) -> int:
    try:
        from ..serving.http.ray_serve import Replicas, serve_on_ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; pip install 'codellama-runtime[ray]'") from None
    # Replicas have other working folders.
    adapter = None if options.adapter is None else options.adapter.resolve()
    build = _build(options) | {"ckpt_dir": options.folder.resolve(), "adapter": adapter}
    replicas = Replicas(build, options.replicas, options.ray or None)
    asyncio.run(serve_on_ray(replicas, settings))
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    from ..serving.http.settings import Settings, read_chat_template, read_keys

    name, capability = (
        (None, None) if options.chat_template is None else read_chat_template(options.chat_template)
    )
    return Settings(
        model_name=options.model_name or name or options.folder.resolve().name,
        host=options.host,
        port=options.port,
        strict_model=options.strict_model,
        capability=options.capability or capability or "chat",
        text_fim=options.text_fim,
        max_queue=options.max_queue,
        max_body=options.max_body,
        body_timeout=options.body_timeout,
        request_timeout=options.request_timeout,
        drain_seconds=options.drain_seconds,
        api_keys=read_keys(options.api_key_file, os.environ),
        allowed_hosts=tuple(options.allowed_hosts),
        cors_origins=tuple(options.cors_origin),
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        playground=options.playground,
        log_prompts=options.log_prompts,
    )


def _runner() -> asyncio.Runner:
    """An event loop in C, where there is one."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
