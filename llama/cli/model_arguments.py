"""Command-line arguments of the verbs that run a model: where it is, how it is loaded, how it samples."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .arguments import add_loading, path, positive

if TYPE_CHECKING:
    from ..terminal.backend import Sampling
    from ..terminal.running import Model, Server

__all__ = [
    "add_sampling",
    "add_server",
    "add_source",
    "is_url",
    "number",
    "place",
    "sampling",
    "seed",
    "server",
    "source",
]

# What changes the numbers, or where they are computed; None or "auto" if it was not given.
_OF_MODELS = ("tokenizer", "device", "dtype", "cache_dtype", "adapter", "quantize")


def add_source(parser: argparse.ArgumentParser, *, max_batch_size: int | None = None) -> None:
    """Add the model, a folder or a server, and what either needs to be reached.

    Args:
        max_batch_size: the default of --max-batch-size; None for a verb that has one request at a time.
    """
    parser.add_argument(
        "source",
        type=place,
        metavar="DIR",
        help="a checkpoint's folder or GGUF file, or the URL of a server (http://...)",
    )
    loading = parser.add_argument_group("a model of DIR (ranks: torchrun --nproc_per_node N -m llama ...)")
    add_loading(loading, max_batch_size=max_batch_size)
    add_server(parser)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add what a server needs to be told beside its URL."""
    remote = parser.add_argument_group("a server")
    remote.add_argument(
        "--api-key-file",
        type=path,
        metavar="FILE",
        help="its first line is the API key (default: the environment's CODELLAMA_API_KEY)",
    )
    remote.add_argument("--model", metavar="NAME", help="which of the server's models (default: its first)")


def add_sampling(
    parser: argparse.ArgumentParser, *, temperature: float, max_gen_len: int | None, limit: str
) -> None:
    """Add how an answer is drawn.

    Args:
        temperature, max_gen_len: defaults; None for a default that only the verb knows.
        limit: the default of max_gen_len in words.
    """
    group = parser.add_argument_group("the answer")
    group.add_argument(
        "--temperature",
        type=number,
        default=temperature,
        metavar="T",
        help="0 always takes the likeliest token (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=number,
        default=0.9,
        metavar="P",
        help="draw from the likeliest tokens that together have this probability (default: %(default)s)",
    )
    group.add_argument(
        "--max-gen-len",
        type=positive,
        default=max_gen_len,
        metavar="N",
        help=f"most tokens of an answer (default: {limit})",
    )
    group.add_argument("--seed", type=seed, metavar="N", help="draw the same each time (default: not)")


def source(options: argparse.Namespace) -> Model | Server:
    """What `add_source` parsed: a server if it is a URL.

    Raises:
        ConfigError: a server, and an option that says how a model is loaded.
    """
    if is_url(options.source):
        for name in _OF_MODELS:
            if getattr(options, name) not in (None, "auto"):
                raise ConfigError(
                    f"--{name.replace('_', '-')} says how a model of DIR is loaded; the server at {options.source} has"
                    " loaded its own. Leave it out, or start the server with it"
                )
        return server(options, options.source)
    from ..terminal.running import Model

    return Model(
        Path(options.source),
        options.tokenizer,
        options.max_seq_len,
        getattr(options, "max_batch_size", 1),
        options.device,
        options.dtype,
        adapter=options.adapter,
        quantize=options.quantize,
        cache_dtype=options.cache_dtype,
    )


def server(options: argparse.Namespace, url: str) -> Server:
    """The server at `url`, as the options say."""
    from ..terminal.running import Server

    return Server(url, options.api_key_file, options.model)


def sampling(options: argparse.Namespace) -> Sampling:
    """What `add_sampling` parsed."""
    from ..terminal.backend import Sampling

    return Sampling(options.temperature, options.top_p, options.max_gen_len, options.seed)


def number(text: str) -> float:
    """A finite number of at least 0, as an argument's type."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return found


def seed(text: str) -> int:
    """A seed, as an argument's type."""
    # 19 digits at most, before int() sees them: it refuses more than 4,300 with another error.
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 1 << 63
    if number >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2**63 - 1")
    return number


def place(text: str) -> str:
    """A folder or a URL, as an argument's type."""
    return text if is_url(text) else str(path(text))


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a folder."""
    return text.lower().startswith(("http://", "https://"))
