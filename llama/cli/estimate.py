"""`codellama estimate`: the memory that a model needs."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointNotFoundError, ConfigError
from ..sizing.family import MEMBERS, args_of
from .arguments import DTYPES, add_cache_dtype, positive, torch_dtype
from .terminal import out

if TYPE_CHECKING:
    import torch

    from ..checkpoint import Checkpoint
    from ..sizing.args import ModelArgs

_FAMILY = tuple(member.name.lower() for member in MEMBERS)

SUMMARY = "estimate a model's memory without loading it"
DESCRIPTION = """
    Memory per rank of a model: weights, KV cache and work space; whether that fits on the devices of this
    machine, and the longest sequences and the largest batch that fit.

      codellama estimate --model 34b --mp 4 --seq 16384 --batch 2
      codellama estimate --model CodeLlama-7b/ --dtype float32
      codellama estimate --table          the family's table, in Markdown
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME|DIR",
        help=f"one of {', '.join(_FAMILY)}, or a checkpoint's folder or GGUF file",
    )
    parser.add_argument(
        "--mp", type=positive, default=1, metavar="N", help="ranks that hold the model (default 1)"
    )
    parser.add_argument(
        "--seq", type=positive, default=4096, metavar="S", help="tokens of a sequence (default 4096)"
    )
    parser.add_argument(
        "--batch", type=positive, default=1, metavar="B", help="sequences at the same time (default 1)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of weights and arithmetic (default: as stored; bfloat16 for a name)"
    )
    add_cache_dtype(parser)
    parser.add_argument(
        "--quantize",
        "--quant",
        choices=("int8", "int4"),
        help="of a plain model: as --quantize of the other verbs and quantize= of Llama.build load it",
    )
    parser.add_argument(
        "--table", action="store_true", help="print only the family's memory, as a Markdown table"
    )


def run(options: argparse.Namespace) -> int:
    import torch

    from ..checkpoint.base import dtype_name
    from ..checkpoint.memory import largest_rank
    from ..sizing.args import ModelArgs, check_size
    from ..sizing.budget import GIB, check_cache_dtype
    from ..sizing.estimate import devices, estimate, step_tokens_on, table

    if options.table:
        for line in table().splitlines():
            out(line)
        return 0
    if options.model is None:
        raise ConfigError(
            f"pass --model with one of {', '.join(_FAMILY)}, a checkpoint's folder or GGUF file, or --table"
        )
    checkpoint = _checkpoint(options)
    if isinstance(checkpoint, ModelArgs):
        args, kind, dtype = checkpoint, options.quantize, torch_dtype(options.dtype) or torch.bfloat16
        check_size(args, options.mp)
        weights = estimate(args, options.mp, 1, 1, dtype, kind).weights
    else:
        args, kind, dtype = (
            checkpoint.args,
            checkpoint.quantization,
            torch_dtype(options.dtype) or checkpoint.dtype,
        )
        check_size(args, options.mp)
        weights = largest_rank(checkpoint, options.mp, dtype)
    cache = check_cache_dtype(options.cache_dtype, args.head_dim)
    sizes = (options.mp, options.seq, options.batch)
    step_tokens = step_tokens_on(devices()[0][0])
    found = estimate(args, *sizes, dtype, weights=weights, cache_dtype=cache, step_tokens=step_tokens)
    out(f"{options.model} on {options.mp} rank{'s' if options.mp > 1 else ''}, GiB per rank:")
    out(f"  weights     {found.weights / GIB:8.2f}  {kind or dtype_name(dtype)}")
    in_format = "" if cache == "auto" else f" in {cache}"
    out(f"  cache       {found.cache / GIB:8.2f}  {options.batch} x {options.seq:,} tokens{in_format}")
    out(f"  work space  {found.work / GIB:8.2f}")
    out(f"  total       {found.total / GIB:8.2f}")
    _print_devices(args, dtype, weights, options)
    return 0


def _print_devices(args: ModelArgs, dtype: torch.dtype, weights: int, options: argparse.Namespace) -> None:
    """A line for each device: whether the model fits on it."""
    from ..sizing import estimate

    devices = estimate.devices()
    on_cpu = devices[0][0] == "cpu"
    for name, free in devices:
        # The ranks of one machine share its memory; each GPU has its own.
        per_rank = None if free is None else free // options.mp if on_cpu else free
        out(_fit(name, per_rank, args, dtype, weights, options))
    if not on_cpu and len(devices) < options.mp:
        out(f"{options.mp} ranks need as many GPUs; this machine has {len(devices)}")


def _fit(
    name: str,
    free: int | None,
    args: ModelArgs,
    dtype: torch.dtype,
    weights: int,
    options: argparse.Namespace,
) -> str:
    """Whether a rank's part fits in the free bytes, and the longest sequences and largest batch that do."""
    from ..sizing.budget import GIB, SPARE
    from ..sizing.estimate import estimate, largest, step_tokens_on

    if free is None:
        return f"{name}: the system does not say how much memory is free"
    size, seq, batch = options.mp, options.seq, options.batch
    estimated = partial(
        estimate, weights=weights, cache_dtype=options.cache_dtype, step_tokens=step_tokens_on(name)
    )

    def fits(seq: int, batch: int) -> bool:
        return estimated(args, size, seq, batch, dtype).total <= free * SPARE

    has = f"{name}: {free / GIB:.2f} GiB free per rank"
    if not fits(1, 1):
        return f"{has}: does not fit, not even with an empty cache; use more ranks or a smaller dtype"
    verdict = "fits" if fits(seq, batch) else "does not fit"
    longest, most = largest(lambda n: fits(n, batch)), largest(lambda n: fits(seq, n))
    return f"{has}: {verdict}; what fits: {batch:,} x {longest:,} tokens, or {most:,} x {seq:,}"


def _checkpoint(options: argparse.Namespace) -> ModelArgs | Checkpoint:
    """The shapes of a model of the family, by its name; or a checkpoint, quantized if that is asked for."""
    from ..checkpoint import open_checkpoint

    model = options.model
    for member in MEMBERS:
        if model.lower() == member.name.lower():
            return args_of(member)
    if not Path(model).exists():
        raise CheckpointNotFoundError(
            f"there is no model, folder or GGUF file {model!r}; pass one of {', '.join(_FAMILY)}, or a"
            " checkpoint's folder or GGUF file"
        )
    return open_checkpoint(model, quantize=options.quantize)
