"""From a checkpoint folder to a model on its device: check everything, join the ranks, load the weights."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from .checkpoint import Checkpoint, GgufCheckpoint, load_weights, open_checkpoint, tokenizer_of
from .checkpoint.base import dtype_name
from .checkpoint.files import as_path
from .checkpoint.info import shortened
from .checkpoint.lora import adapter_of
from .checkpoint.memory import WeightMemory, weight_memory
from .checkpoint.progress import Progress
from .distributed.devices import choose_device, current_device, rank_threads
from .distributed.environment import log, world_size
from .distributed.parallel import Parallel
from .distributed.world import join, leave
from .errors import CheckpointMismatchError, ConfigError
from .kernels.operators import computes_well
from .kernels.report import why_missing
from .kv_cache import KVPool
from .model import Transformer
from .printable import shown
from .sizing.address_space import reservable
from .sizing.args import ModelArgs, check_size
from .sizing.budget import (
    CACHE_DTYPES,
    CacheMemory,
    CachePlan,
    amount,
    cache_bytes_per_token,
    check_cache_dtype,
    check_cache_memory,
    leaving_room,
    parameter_count,
    plan_cache,
)
from .tokenizer import Tokenizer
from .values import integer

__all__ = [
    "Built",
    "build",
    "check_same_adapter",
    "check_same_cache",
    "check_same_dtype",
    "check_same_formats",
    "choose_dtype",
]

# Tokens or sequences: more than any machine holds, and small enough to be multiplied into bytes as a float.
_MOST = 10**12
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Origin:
    """Where a model's weights came from.

    Args:
        file_format: "gguf", "safetensors" or "pytorch", which is pickled files.
        quantization: `Checkpoint.quantization`, e.g. "Q4_K_M"; None if the matrices are plain.
        adapter: 62 bits of a hash of the adapter that is merged into the weights; None without one.
    """

    file_format: str
    quantization: str | None
    adapter: int | None


@dataclass(frozen=True)
class Built:
    """What `build` made: the parts of a `Llama`."""

    model: Transformer
    tokenizer: Tokenizer
    cache_tokens: int
    retained_tokens: int
    origin: Origin


@contextlib.contextmanager
def _made_on_the_host() -> Iterator[None]:
    """What names no device is made on the CPU, whatever `torch.set_default_device` of the host program says: kernels
    in C are given addresses, and pinned memory is the host's.
    """
    with torch.device("cpu"):
        yield


@torch.inference_mode(False)  # weights made in inference mode do not count their edits
@_made_on_the_host()
def build(
    ckpt_dir: str | os.PathLike[str],
    tokenizer_path: str | os.PathLike[str] | None,
    max_seq_len: int,
    max_batch_size: int,
    model_parallel_size: int | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    cache_memory: CacheMemory | None = None,
    cache_dtype: str = "auto",
    *,
    adapter: str | os.PathLike[str] | None = None,
    quantize: str | None = None,
    largest_step: Callable[[Transformer], object] | None = None,
) -> Built:
    """See `Llama.build`. The files are checked before a process group is joined or memory is taken.

    Args:
        largest_step: see `leaving_room`. Without it the cache of a GPU leaves no room for steps.
    """
    started = time.monotonic()
    folder = as_path(ckpt_dir, "ckpt_dir")
    max_seq_len = _count("max_seq_len", max_seq_len)
    max_batch_size = _count("max_batch_size", max_batch_size)
    check_cache_memory(cache_memory)
    target = choose_device(device)
    checkpoint = open_checkpoint(
        folder, max_seq_len=max_seq_len, max_batch_size=max_batch_size, adapter=adapter, quantize=quantize
    )
    tokenizer = tokenizer_of(checkpoint, tokenizer_path)
    size = _model_parallel_size(model_parallel_size)
    check_size(checkpoint.args, size)
    check_cache_dtype(cache_dtype, checkpoint.args.head_dim)
    chosen, why = choose_dtype(dtype, checkpoint.dtype, target)
    if checkpoint.quantization is not None and dtype != "auto":
        why = ""  # its dtype is the one to compute in, not one that the weights are stored in
    parallel = join(size, target)
    try:
        with current_device(target):
            check_same_dtype(parallel, chosen, target)
            check_same_adapter(parallel, checkpoint, target)
            check_same_cache(parallel, cache_dtype, target)
            memory = weight_memory(checkpoint, parallel.rank, parallel.size, target, chosen)
            check_same_formats(parallel, memory)
            plan = plan_cache(
                *(checkpoint.args, parallel, chosen, target, cache_memory),
                weights=memory.nbytes,
                cache_dtype=cache_dtype,
            )
            model = _load(checkpoint, parallel, memory, cache_dtype)
            if target.type == "cuda":
                model.agree_on_blocks()
            if largest_step is not None:
                step = partial(largest_step, model)
                plan = leaving_room(plan, checkpoint.args, parallel, target, step, cache_memory)
            plan = _reservable_plan(plan, model, cache_memory)
    except BaseException as error:
        leave(parallel, error)
        raise
    missing = why_missing() if target.type == "cpu" else None
    if missing is not None:
        _log_missing_kernels(missing)
    merged = "" if adapter is None else f" with adapter {as_path(adapter, 'adapter').name}"
    for line in (*checkpoint.notes, *memory.made_plain()):
        log(line)
    log(
        f"Loaded {folder.name}{merged} ({shortened(parameter_count(checkpoint.args))} parameters,"
        f" {memory.describe(checkpoint.quantization)}{why}) on {target.type},"
        f" {_sizes(checkpoint.args, parallel, memory, plan, time.monotonic() - started)}"
    )
    return Built(model, tokenizer, plan.tokens, plan.retained, _origin(checkpoint))


def _origin(checkpoint: Checkpoint) -> Origin:
    """Reads an adapter's file whole, and no other weight."""
    file_format = "gguf" if checkpoint.layout == GgufCheckpoint.layout else "pytorch"
    if checkpoint.files[0].suffix == ".safetensors":
        file_format = "safetensors"
    adapter = adapter_of(checkpoint)
    return Origin(file_format, checkpoint.quantization, None if adapter is None else adapter.digest)


def _model_parallel_size(given: int | None) -> int:
    return world_size() if given is None else _count("model_parallel_size", given)


def _count(name: str, value: object) -> int:
    number = integer(value)
    if number is None or number < 1:
        raise ConfigError(f"{name} is {shown(value)}; it must be an integer of at least 1")
    if number > _MOST:
        raise ConfigError(f"{name} is larger than {_MOST:,}; no memory holds so many")
    return number


def _load(checkpoint: Checkpoint, parallel: Parallel, memory: WeightMemory, cache_dtype: str) -> Transformer:
    """Make the model without memory, then give it this rank's weights."""
    with torch.device("meta"):
        model = Transformer(checkpoint.args, parallel=parallel, cache_dtype=cache_dtype)
    with rank_threads(memory.device):
        progress = Progress(memory.nbytes, "loading")
        load_weights(model, checkpoint, memory.device, memory.dtype, memory=memory, progress=progress)
    return model.eval()


def _reservable_plan(plan: CachePlan, model: Transformer, cache_memory: CacheMemory | None) -> CachePlan:
    """A plan whose cache the system lets the process reserve. Bytes are what somebody counts on: they are not lowered,
    and an error if they are not to be had."""
    if isinstance(check_cache_memory(cache_memory), int):
        return plan
    args, parallel = model.params, model.parallel
    per_token = cache_bytes_per_token(args, parallel.size, plan.form)

    def reserve(tokens: int) -> KVPool:
        return model.new_pool(1 + -(-tokens // model.block))

    tokens = reservable(plan.tokens, args.max_seq_len, per_token, reserve, parallel, model.device)
    if tokens == plan.tokens:
        return plan
    log(
        f"The cache is lowered from {plan.tokens:,} to {tokens:,} tokens, {amount(tokens * per_token)}: the system lets"
        " this process reserve no more address space (ulimit -v, or vm.overcommit_memory=2)"
    )
    return replace(plan, tokens=tokens, retained=min(plan.retained, tokens))


@cache  # once per process
def _log_missing_kernels(why: str) -> None:
    log(
        "The best compiled kernels for this CPU are missing, so generation is slower than"
        f" it could be: {why}. Install the package again with a C compiler; `pip install -v` shows its output"
    )


def _sizes(args: ModelArgs, parallel: Parallel, memory: WeightMemory, plan: CachePlan, seconds: float) -> str:
    """The numbers of the line that says what was loaded."""
    replicas = f" x {parallel.replicas} replicas" if parallel.replicas > 1 else ""
    cache_size = plan.tokens * cache_bytes_per_token(args, parallel.size, plan.form)
    stored = "" if plan.form == memory.dtype else f" in {plan.form}"
    return (
        f"model-parallel {parallel.size}{replicas}, in {seconds:.1f} s: {amount(memory.nbytes)} per rank,"
        f" cache for up to {plan.tokens:,} tokens{stored} ({amount(cache_size)}), {plan.retained:,} of them for reuse"
    )


def choose_dtype(
    wanted: str | torch.dtype, stored: torch.dtype, device: torch.device
) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and a remark for the log if it is not the stored one.

    "auto" takes the stored dtype unless the device is slow in it or lacks it: a CPU without a kernel for it.

    Raises:
        ConfigError: a name or dtype other than auto, bfloat16, float16, float32.
    """
    if wanted != "auto":
        dtype = _DTYPES.get(wanted) if isinstance(wanted, str) else wanted
        if dtype is None or dtype not in _DTYPES.values():
            raise ConfigError(f"dtype is {wanted!r}; use auto, {', '.join(_DTYPES)}")
        return dtype, "" if dtype == stored else f", stored as {dtype_name(stored)}"
    if stored not in _DTYPES.values():
        return torch.float32, f", since {stored} cannot be computed in"
    if device.type == "cuda" and stored == torch.bfloat16 and not _gpu_has_bfloat16(device):
        return torch.float16, ", since this GPU has no bfloat16"
    if device.type == "cpu" and stored != torch.float32 and not computes_well(stored, device):
        return torch.float32, f", since {stored} is slow on a CPU without kernels for it"
    return stored, ""


def check_same_dtype(parallel: Parallel, dtype: torch.dtype, device: torch.device) -> None:
    """All ranks compute in one dtype, though "auto" asks each rank's own device.

    Raises:
        ConfigError: they do not. Raised on all ranks.
    """
    numbers = list(_DTYPES.values())
    ends = _differing(parallel, numbers.index(dtype), device)
    if ends is None:
        return
    raise ConfigError(
        f"one rank computes in {numbers[ends[0]]} and another in {numbers[ends[1]]}, since their devices or their"
        " compiled kernels differ; give all the same dtype"
    )


def check_same_cache(parallel: Parallel, cache_dtype: str, device: torch.device) -> None:
    """All ranks store keys and values alike: their caches are planned, and filled, together.

    Raises:
        ConfigError: they do not. Raised on all ranks.
    """
    ends = _differing(parallel, CACHE_DTYPES.index(cache_dtype), device)
    if ends is None:
        return
    one, other = (CACHE_DTYPES[end] for end in ends)
    raise ConfigError(f"one rank has cache_dtype {one} and another {other}; give all the same")


def check_same_adapter(parallel: Parallel, checkpoint: Checkpoint, device: torch.device) -> None:
    """All ranks merge the same adapter, though each reads the folder on its own machine.

    Raises:
        CheckpointMismatchError: they do not, or only some have one. Raised on all ranks.
    """
    if parallel.group is None and parallel.replica_group is None:
        return  # without a digest of the adapter's files
    adapter = adapter_of(checkpoint)
    if _differing(parallel, -1 if adapter is None else adapter.digest, device) is None:
        return
    has = "none" if adapter is None else f"the one in {adapter.folder}"
    raise CheckpointMismatchError(
        f"the ranks have different adapters; this one has {has}. Each reads the folder on its own machine: pass the"
        " same to all, and copy the same files to each machine"
    )


def check_same_formats(parallel: Parallel, memory: WeightMemory) -> None:
    """All ranks store a weight in the same format.

    A group's size may differ: a slice can begin within one.

    Raises:
        ConfigError: they do not. Raised on all ranks.
    """
    kinds = [window.kind or "" for window in memory.windows.values()]
    if _differing(parallel, zlib.crc32(" ".join(kinds).encode()), memory.device) is None:
        return
    raise ConfigError(
        f"this rank stores the weights as {memory.describe()}, and another rank otherwise, since their devices or"
        " their compiled kernels differ; use machines and installations that are alike"
    )


def _differing(parallel: Parallel, number: int, device: torch.device) -> tuple[int, int] | None:
    """The lowest and the highest of all ranks' numbers; None if all ranks have the same."""
    lowest, negated = parallel.smallest(number, device), parallel.smallest(-number, device)
    assert lowest is not None
    assert negated is not None
    return None if lowest == -negated else (lowest, -negated)


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """Like torch.cuda.is_bf16_supported, but for the given device instead of the current one."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
