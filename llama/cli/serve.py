"""`codellama serve`: answers HTTP clients until SIGTERM."""

from __future__ import annotations

import argparse

from .arguments import add_tokenizer, path, positive

SUMMARY = "answer editors and other HTTP clients"
DESCRIPTION = """
    Serve a checkpoint over HTTP: OpenAI's, llama.cpp's, text-generation-inference's, Mistral's and Ollama's routes.

      codellama serve CodeLlama-7b/
      torchrun --nproc_per_node 2 -m llama serve CodeLlama-13b/
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout"
    )
    add_tokenizer(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: %(default)s)")
    parser.add_argument(
        "--max-seq-len", type=positive, default=4096, metavar="N", help="tokens of prompt and answer"
    )
    parser.add_argument(
        "--max-batch-size", type=positive, default=32, metavar="N", help="sequences at the same time"
    )


def run(options: argparse.Namespace) -> int:
    import asyncio

    from ..generation import Llama
    from ..serving.http.server import serve_http
    from ..serving.http.settings import Settings

    settings = Settings(model_name=options.folder.resolve().name, host=options.host, port=options.port)
    with Llama.build(options.folder, options.tokenizer, options.max_seq_len, options.max_batch_size) as llama:
        asyncio.run(serve_http(llama, settings))
    return 0
