"""What a checkpoint is, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from ..kernels.cached import BLOCK, INT8
from ..sizing.args import ModelArgs, can_split
from ..sizing.budget import amount, cache_bytes_per_token, parameter_count
from ..sizing.family import context_of, member_of
from ..tokenizer import Tokenizer
from .base import Checkpoint, dtype_name
from .lora import AdaptedCheckpoint
from .memory import largest_rank

__all__ = ["describe", "guess", "shortened"]

_SIZES = (1, 2, 4, 8)
_CACHED = 4096


def shortened(count: float) -> str:
    """A count with three significant digits, e.g. 6.74B."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}B"


def guess(args: ModelArgs, tokenizer: Tokenizer | None) -> str:
    """The member of the family, as far as shapes, vocabulary and rope_theta show."""
    member = member_of(args)
    if member is None:
        return "none of the Code Llama family has these shapes"
    name = f"Code Llama {member.name}"
    if args.rope_theta == 1e4 and member.name != "70B":
        return f"{name} with a wrong rope_theta, or Llama 2 {member.name}: run verify"
    if member.name == "34B":
        return f"{name} (base, Python and Instruct have the same shapes and vocabulary)"
    if member.name == "70B":
        if args.rope_theta != 1e4:
            return f"{name} (base or Python)"
        chat = tokenizer is not None and tokenizer.step_id is not None
        return f"{name} {'Instruct' if chat else 'or Llama 2 70B, which has the same shapes'}"
    return f"{name} {'Python' if args.vocab_size == 32000 else '(base or Instruct)'}"


def describe(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> Iterator[tuple[str, str]]:
    """Label and text of each line. `tokenizer` is None if it is missing or does not fit."""
    args, dtype = checkpoint.args, checkpoint.dtype
    files = sum(path.stat().st_size for path in checkpoint.files)
    shards = f"{checkpoint.shards} weight file{'s' if checkpoint.shards > 1 else ''}"
    yield "member", guess(args, tokenizer)
    yield "layout", f"{checkpoint.layout}, {shards}, {amount(files)}"
    if isinstance(checkpoint, AdaptedCheckpoint):
        yield "adapter", str(checkpoint.adapter)
    yield (
        "parameters",
        f"{shortened(parameter_count(args))} in {checkpoint.quantization or dtype_name(dtype)}",
    )
    yield from checkpoint.details()
    for note in checkpoint.notes:
        yield "note", note
    yield (
        "shape",
        f"dim {args.dim}, {args.n_layers} layers, {args.n_heads} heads, {args.kv_heads} key/value heads,"
        f" feed-forward {args.ffn_dim}",
    )
    yield "context", _context(args, checkpoint.context_length)
    if tokenizer is None:
        yield (
            "vocabulary",
            f"{args.vocab_size:,} rows; the tokenizer is missing or does not fit: run verify",
        )
    else:
        yield "vocabulary", f"{args.vocab_size:,} pieces"
        yield (
            "infilling",
            "yes" if tokenizer.supports_infilling else "no: the vocabulary has no infilling pieces",
        )
        yield "chat format", "Source: / Destination: / <step>" if tokenizer.step_id is not None else "[INST]"
    yield from _memory(checkpoint)


def _context(args: ModelArgs, stated: int | None) -> str:
    """The context length of the training: as a file states it, else guessed from shapes and rope_theta."""
    length, theta = context_of(args), f"rope_theta {args.rope_theta:,.0f}"
    if stated is not None:
        return f"{stated:,} tokens in training, as the file says ({theta})"
    if length is None:
        return f"not known: {theta} does not tell it; see the model's card"
    return f"{length:,} tokens in training, if it is that member ({theta})"


def _memory(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    args, dtype = checkpoint.args, checkpoint.dtype
    for size in _SIZES:
        if not can_split(args, size):
            yield f"memory, MP {size}", "does not fit its heads"
            continue
        weights = largest_rank(checkpoint, size, dtype)
        cache = cache_bytes_per_token(args, size, dtype) * _CACHED
        text = f"{amount(weights)} of weights per rank, {amount(cache)} for {_CACHED:,} cached tokens"
        if args.head_dim % BLOCK == 0:
            text += f" ({amount(cache_bytes_per_token(args, size, INT8) * _CACHED)} in {INT8})"
        yield f"memory, MP {size}", text
