"""Memory: what weights and KV cache take, how much is free, and how many tokens of cache that allows."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..distributed.devices import ranks_on
from ..distributed.environment import local_ranks
from ..distributed.parallel import Parallel
from ..errors import ConfigError, OutOfMemoryError
from ..kernels.cached import BLOCK, INT8, CacheFormat, row_bytes
from ..printable import shown
from ..values import integer, real
from .args import ModelArgs
from .shapes import axis_of, expected_shapes, wanted_range

__all__ = [
    "CACHE_DTYPES",
    "GIB",
    "SPARE",
    "CacheMemory",
    "CachePlan",
    "amount",
    "cache_bytes_per_token",
    "cache_format",
    "check_cache_dtype",
    "check_cache_memory",
    "free_memory",
    "leaving_room",
    "parameter_count",
    "plan_cache",
    "weight_bytes",
]

# Bytes, a share in (0, 1] of the free memory, or a string like "4GiB" or "50%".
CacheMemory = int | float | str

# What keys and values may be stored in: as the activations, or int8.
CACHE_DTYPES = ("auto", INT8)
GIB = 1 << 30
_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
# More bytes than any machine has. Larger numbers are a mistake.
_MOST = 1 << 62
# By default, retained prefixes get at most 1 / this of the cache that fits.
_RETAINED_DIVISOR = 4
# The share of what is free on a GPU, behind the largest step, that its cache may take: memory is handed out in pieces.
_WHOLE = 0.97
# What makes steps and cache smaller.
_LESS = "lower max_seq_len or max_batch_size, or use more ranks"
# The share of the free memory for weights and cache. Activations, logits and the allocator need the rest.
SPARE = 0.9


def amount(nbytes: float) -> str:
    """A size in GiB, or in MiB if it is small."""
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB / 10 else f"{nbytes / (1 << 20):.1f} MiB"


def weight_bytes(args: ModelArgs, size: int, dtype: torch.dtype) -> int:
    """Bytes of the weights on each of `size` ranks."""
    total = 0
    for name, shape in expected_shapes(args).items():
        axis = axis_of(name)
        count = 1
        for dimension, extent in enumerate(shape):
            if dimension == axis:
                start, stop = wanted_range(name, extent, args, 0, size)
                extent = stop - start
            count *= extent
        total += count
    return total * dtype.itemsize


def parameter_count(args: ModelArgs) -> int:
    """The number of parameters of the whole model."""
    return weight_bytes(args, 1, torch.int8)


def check_cache_dtype(wanted: str, head_dim: int) -> str:
    """`cache_dtype`, if it is one that heads of this size can have.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(wanted, str) or wanted not in CACHE_DTYPES:
        raise ConfigError(f"cache_dtype is {shown(wanted)}; use {' or '.join(CACHE_DTYPES)}")
    if wanted == INT8 and head_dim % BLOCK:
        raise ConfigError(
            f"cache_dtype is {INT8}, which stores blocks of {BLOCK} numbers, but this model's heads have {head_dim};"
            " use auto"
        )
    return wanted


def cache_format(cache_dtype: str, dtype: torch.dtype) -> CacheFormat:
    """The format of keys and values, where activations have this dtype."""
    return dtype if cache_dtype == "auto" else cache_dtype


def cache_bytes_per_token(args: ModelArgs, size: int, form: CacheFormat) -> int:
    """Bytes of the keys and values of one token on each of `size` ranks, in a format of `cache_format`."""
    return 2 * args.n_layers * max(1, args.kv_heads // size) * row_bytes(form, args.head_dim)


def free_memory(device: torch.device, ranks: int = 1) -> int | None:
    """Bytes that are free for this rank on its device; None if the system does not say.

    On a CPU, the ranks of a machine get equal shares of its free memory, within the limit of their cgroup.

    Args:
        ranks: that share this CUDA device, in equal parts; see `ranks_on`.
    """
    if device.type == "cuda":
        # Memory that torch's allocator holds unused is free for us too, e.g. after `del` of another model.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] // ranks + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    available = _available_ram()
    return None if available is None else available // local_ranks()


def _free_for_each(parallel: Parallel, device: torch.device) -> int | None:
    """What is free for every rank. None takes more before all have looked."""
    ranks = ranks_on(device, parallel) if device.type == "cuda" else 1
    return parallel.smallest(free_memory(device, ranks), device)


def _available_ram() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        # `used` includes the page cache, which the kernel frees on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit.isdigit():
            free = min(free, int(limit) - used + int(stat.get("file", 0)))
    except (OSError, ValueError):
        pass
    return max(free, 0)


@dataclass(frozen=True)
class CachePlan:
    """How many tokens all caches may hold together, how many of them may be prefixes kept for reuse, and the format in
    which they are stored."""

    tokens: int
    retained: int
    form: CacheFormat


def check_cache_memory(wanted: CacheMemory | None) -> int | float | None:
    """`cache_memory` as bytes (an int) or as a share of the free memory (a float).

    Raises:
        ConfigError: neither of the two, or a string that does not say one of them.
    """
    if isinstance(wanted, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[KMGT]?i?B?)\s*", wanted)
        if found and found[2] == "%":
            value: int | float | None = float(found[1]) / 100
        elif found and found[2] in _UNITS:
            size = float(found[1]) * _UNITS[found[2]]
            value = int(size) if math.isfinite(size) else math.nan
        else:
            value = math.nan
    else:
        number = integer(wanted)
        value = None if wanted is None else real(wanted) if number is None else number
        value = math.nan if value is None and wanted is not None else value
    good = value is None or (isinstance(value, int) and 0 < value < _MOST)
    if not good and not (isinstance(value, float) and 0 < value <= 1):
        raise ConfigError(
            f"cache_memory is {shown(wanted)}; give bytes as a positive integer or as '4GiB', or a share"
            " of the free memory as a float in (0, 1] or as '50%'"
        )
    return value


def plan_cache(
    args: ModelArgs,
    parallel: Parallel,
    dtype: torch.dtype,
    device: torch.device,
    cache_memory: CacheMemory | None = None,
    *,
    weights: int | None = None,
    cache_dtype: str = "auto",
) -> CachePlan:
    """How many tokens of cache fit beside the weights; the same plan on every rank.

    Keys and values have `dtype`, or `cache_dtype` if that is not auto.

    By default there are max_batch_size x max_seq_len tokens, and as many again for retained prefixes, though
    these get at most a quarter of what fits. `cache_memory` sets the size instead: bytes per rank, or a share
    of what fits. Retained prefixes may then fill all of it.

    Args:
        weights: bytes of this rank's weights; None where all are of that dtype.

    Raises:
        ConfigError: `cache_memory` is invalid, or too small for one sequence of max_seq_len.
        OutOfMemoryError: the weights and one sequence of max_seq_len do not fit, or `cache_memory` does not.
            Raised on all ranks.
    """
    wanted = check_cache_memory(cache_memory)
    limit = args.max_batch_size * args.max_seq_len
    free = _free_for_each(parallel, device)
    form = cache_format(cache_dtype, dtype)
    per_token = cache_bytes_per_token(args, parallel.size, form)
    if weights is None:
        weights = weight_bytes(args, parallel.size, dtype)
    largest = parallel.smallest(-weights, device)
    assert largest is not None
    capacity = None if free is None else _capacity(args, per_token, device, free, -largest)
    if wanted is None:
        retained = min(limit, args.max_seq_len if capacity is None else capacity // _RETAINED_DIVISOR)
        tokens = limit + retained if capacity is None else min(capacity, limit + retained)
        return CachePlan(tokens, retained, form)
    if isinstance(wanted, float):
        if capacity is None:
            raise ConfigError(
                f"cache_memory is {cache_memory!r}, but the system does not say how much is free; give bytes"
            )
        tokens = int(capacity * wanted)
    else:
        tokens = wanted // per_token
    if tokens < args.max_seq_len:
        raise ConfigError(
            f"cache_memory {cache_memory!r} holds {tokens} tokens of {per_token} bytes, less than one"
            f" sequence of max_seq_len {args.max_seq_len}; give more, or lower max_seq_len"
        )
    if capacity is not None and tokens > capacity:
        raise OutOfMemoryError(
            f"cache_memory {cache_memory!r} is {tokens * per_token / GIB:.2f} GiB, but beside the weights"
            f" only {capacity * per_token / GIB:.2f} GiB are free for each rank on {device}"
        )
    return CachePlan(tokens, tokens, form)


def _capacity(args: ModelArgs, per_token: int, device: torch.device, free: int, weights: int) -> int:
    """How many tokens of cache fit beside the weights; OutOfMemoryError if fewer than max_seq_len."""
    tokens = int(free * SPARE - weights) // per_token
    if tokens < args.max_seq_len:
        if tokens > 0:
            fix = f"lower max_seq_len to {tokens}, or use more ranks"
        else:
            fix = "use more ranks, a 16-bit dtype, quantized weights or a smaller model"
        raise OutOfMemoryError(
            f"weights of {weights / GIB:.2f} GiB and a cache of {args.max_seq_len * per_token / GIB:.2f} GiB"
            f" for one sequence of max_seq_len {args.max_seq_len} do not fit into the {free / GIB:.2f} GiB"
            f" free for each rank on {device}; {fix}"
        )
    return tokens


def leaving_room(
    plan: CachePlan,
    args: ModelArgs,
    parallel: Parallel,
    device: torch.device,
    largest_step: Callable[[], object],
    cache_memory: CacheMemory | None = None,
) -> CachePlan:
    """A plan whose cache leaves room for the largest step, on a GPU: there the cache is taken whole, before any step.

    Elsewhere the plan as it is: memory is taken as tokens come. The same plan on every rank.

    Args:
        largest_step: runs it once, with the weights in place, in a cache of its own of max_seq_len positions.
        cache_memory: what the plan was made from. Bytes are what somebody counts on, so they are not lowered.

    Raises:
        OutOfMemoryError: it does not fit, or beside it no sequence of max_seq_len, or not so many bytes. Raised on all
            ranks, but where the step does not fit on one of several that hold a model: the others are in the middle of
            it, and this one has to leave.
    """
    if device.type != "cuda":
        return plan
    per_token = cache_bytes_per_token(args, parallel.size, plan.form)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        largest_step()
        torch.cuda.synchronize(device)
        # Its own cache is not what it needs beside the cache.
        needs = torch.cuda.max_memory_allocated(device) - before - args.max_seq_len * per_token
    except (torch.OutOfMemoryError, OutOfMemoryError) as error:
        if parallel.size > 1:
            raise OutOfMemoryError(
                f"the largest step does not fit beside the weights on {device} of rank {parallel.rank}; {_LESS}"
            ) from error
        needs = _MOST
    torch.cuda.empty_cache()  # the pieces of that step's cache would be in the way of the real one
    most = parallel.smallest(-max(needs, 0), device)
    # All ranks have run the step and given back its memory: they have met in `smallest`.
    free = _free_for_each(parallel, device)
    assert most is not None
    assert free is not None
    tokens = int(free * _WHOLE + most) // per_token
    step = "does not fit" if -most == _MOST else f"takes {-most / GIB:.2f} GiB"
    there = (
        f"beside the weights {free / GIB:.2f} GiB are free for each rank on {device}; the largest step {step}"
    )
    if tokens < args.max_seq_len:
        raise OutOfMemoryError(
            f"{there}, and a cache for one sequence of max_seq_len {args.max_seq_len} takes"
            f" {args.max_seq_len * per_token / GIB:.2f} GiB; {_LESS}"
        )
    if tokens < plan.tokens and isinstance(check_cache_memory(cache_memory), int):
        raise OutOfMemoryError(
            f"cache_memory {cache_memory!r} is {plan.tokens * per_token / GIB:.2f} GiB, but {there}, which leaves"
            f" {tokens * per_token / GIB:.2f} GiB; give that, or a share such as '90%'"
        )
    return replace(plan, tokens=min(plan.tokens, tokens), retained=min(plan.retained, tokens))
