"""From a checkpoint folder to a model on its device: checks first, then ranks, then weights."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache

import torch

from .checkpoint import load_weights, open_checkpoint, tokenizer_of
from .checkpoint.files import as_path
from .checkpoint.info import shortened
from .checkpoint.progress import Progress
from .distributed.devices import choose_device, log, rank_threads, world_size
from .distributed.parallel import Parallel
from .distributed.world import join, leave
from .errors import ConfigError
from .kernels import linear, native
from .model import Transformer
from .printable import shown
from .sizing.args import check_size
from .sizing.budget import (
    GIB,
    CacheMemory,
    cache_bytes_per_token,
    check_cache_memory,
    parameter_count,
    plan_cache,
    weight_bytes,
)
from .tokenizer import Tokenizer
from .values import integer

__all__ = ["Built", "build", "choose_dtype"]

# Tokens or sequences; beyond any machine, and within what a float holds when it is multiplied into bytes.
_MOST = 10**12
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Built:
    """What `build` made: the parts of a `Llama`."""

    model: Transformer
    tokenizer: Tokenizer
    parallel: Parallel
    cache_tokens: int
    retained_tokens: int


@torch.inference_mode(False)  # a weight made within it would not count its edits; see watch.py
def build(
    ckpt_dir: str | os.PathLike[str],
    tokenizer_path: str | os.PathLike[str] | None,
    max_seq_len: int,
    max_batch_size: int,
    model_parallel_size: int | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    *,
    cache_memory: CacheMemory | None = None,
) -> Built:
    """See `Llama.build`. Nothing is allocated, and no group joined, before the files have been checked."""
    started = time.monotonic()
    folder = as_path(ckpt_dir, "ckpt_dir")
    max_seq_len = _count("max_seq_len", max_seq_len)
    max_batch_size = _count("max_batch_size", max_batch_size)
    check_cache_memory(cache_memory)
    target = choose_device(device)
    checkpoint = open_checkpoint(folder, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
    tokenizer = tokenizer_of(checkpoint, tokenizer_path)
    size = _size(model_parallel_size)
    check_size(checkpoint.args, size)
    chosen, why = choose_dtype(dtype, checkpoint.dtype, target)
    parallel = join(size, target)
    try:
        cache = plan_cache(checkpoint.args, parallel, chosen, target, cache_memory)
        with torch.device("meta"):
            model = Transformer(checkpoint.args, parallel=parallel)
        with rank_threads(target):
            progress = Progress(weight_bytes(checkpoint.args, size, chosen), "loading")
            load_weights(model, checkpoint, target, chosen, progress=progress)
    except BaseException as error:
        leave(parallel, error)
        raise
    missing = native.why_missing() if target.type == "cpu" else None
    if missing is not None:
        _tell_missing(missing)
    seconds = time.monotonic() - started
    size_gib = weight_bytes(checkpoint.args, size, chosen) / GIB
    replicas = f" x {parallel.replicas} replicas" if parallel.replicas > 1 else ""
    parameters = shortened(parameter_count(checkpoint.args))
    log(
        f"Loaded {folder.name} ({parameters} parameters, {chosen}{why}) on {target.type},"
        f" model-parallel {size}{replicas}, in {seconds:.1f} s: {size_gib:.2f} GiB per rank,"
        f" cache for up to {cache.tokens:,} tokens"
        f" ({cache.tokens * cache_bytes_per_token(checkpoint.args, size, chosen) / GIB:.2f} GiB),"
        f" {cache.retained:,} of them for reuse"
    )
    return Built(model.eval(), tokenizer, parallel, cache.tokens, cache.retained)


@cache  # once a process
def _tell_missing(why: str) -> None:
    log(
        f"The compiled kernels for this CPU (bfloat16, AVX512-BF16) are not there, so it is slower than it could"
        f" be: {why}. With a C compiler at hand, install the package again; `pip install -v` shows what it says"
    )


def _size(model_parallel_size: int | None) -> int:
    return world_size() if model_parallel_size is None else _count("model_parallel_size", model_parallel_size)


def _count(name: str, value: object) -> int:
    number = integer(value)
    if number is None or number < 1:
        raise ConfigError(f"{name} is {shown(value)}; it must be an integer of at least 1")
    if number > _MOST:
        raise ConfigError(f"{name} is larger than {_MOST:,}; no memory holds so many")
    return number


def choose_dtype(
    wanted: str | torch.dtype, stored: torch.dtype, device: torch.device
) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and in brackets why it is not the stored one.

    "auto" is the stored dtype, except where the device computes badly in it.

    Raises:
        ConfigError: a name or dtype other than auto, bfloat16, float16, float32.
    """
    if wanted != "auto":
        dtype = _DTYPES.get(wanted) if isinstance(wanted, str) else wanted
        if dtype is None or dtype not in _DTYPES.values():
            raise ConfigError(f"dtype is {wanted!r}; use auto, {', '.join(_DTYPES)}")
        return dtype, "" if dtype == stored else f", stored as {stored}"
    if stored not in _DTYPES.values():
        return torch.float32, f", since {stored} is not a dtype to compute in"
    if device.type == "cuda" and stored == torch.bfloat16 and not _gpu_has_bfloat16(device):
        return torch.float16, ", since this GPU has no bfloat16"
    if device.type == "cpu" and stored == torch.float16:
        return torch.float32, ", since float16 is slow on a CPU"
    if device.type == "cpu" and stored == torch.bfloat16 and not _cpu_has_bfloat16():
        return torch.float32, ", since this CPU has no bfloat16 instructions"
    return stored, ""


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """As torch.cuda.is_bf16_supported has it, which asks the current device: another may have been chosen."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bfloat16() -> bool:
    return native.available() or linear.can_pack(torch.bfloat16)
