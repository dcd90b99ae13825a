"""Ranks on pretended GPUs, over gloo: `gpu_rank_script.py GUARD CHECKPOINT REPORT [flash:WHO] CALL...`.

With `real` as the guard they share the machine's first GPU, which NCCL would refuse. The first rank writes a JSON of
what each call of gpu_calls.py gave. Only NCCL is replaced: it needs GPUs. In place of calls, `fails` lets the last rank
fail in the middle of a step.

With `flash:nobody` torch's flash attention computes in float32, too; with `flash:the second` that of the second rank
takes no tables of blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from flash_ways import flash_way
from gpu_calls import CALLS
from pretended_gpu import Gpu, load_guard, pretended
from real_gpu import real

from llama import Llama
from llama.distributed import environment, world
from llama.sizing.budget import cache_bytes_per_token


def over_gloo() -> None:
    """Let groups for CUDA be gloo's, which knows nothing of devices."""
    start = dist.init_process_group
    world._BACKENDS["cuda"] = "gloo"
    dist.init_process_group = lambda *args, device_id=None, **more: start(*args, **more)


def ending_as_nccl() -> None:
    """Let a group be destroyed as NCCL's are: that waits until all ranks do it, or for ever."""
    end, called = dist.destroy_process_group, 0

    def destroy(group: Any = None) -> None:
        nonlocal called
        called += 1
        store = world._WORLD.meeting
        store.set(f"destroyed/{called}/{dist.get_rank()}", "")
        while not store.check([f"destroyed/{called}/{rank}" for rank in range(dist.get_world_size())]):
            time.sleep(0.01)
        end(group)

    dist.destroy_process_group = destroy
    dist.get_backend_config = lambda group=None: "cpu:gloo,cuda:nccl"


def fail(llama: Llama) -> None:
    """Generate; in the second layer of a step the last rank raises an error, which no other rank does."""
    parallel, layer = llama.model.parallel, llama.model.layers[1]

    def refuse(*_: Any) -> None:
        raise MemoryError("the last rank's own")

    for delta in llama.stream(["x"], temperature=0, max_gen_len=50):
        if delta and parallel.rank == parallel.size - 1:
            layer.register_forward_pre_hook(refuse)


@contextlib.contextmanager
def device_of(guard: str) -> Iterator[tuple[Gpu, str]]:
    """The device, and its name for `Llama.build`."""
    if guard == "real":
        # One for each rank, or it would refuse to share.
        with real() as gpu, mock.patch.object(torch.cuda, "device_count", return_value=2):
            yield gpu, "cuda:0"
        return
    load_guard(Path(guard))
    with pretended(devices=2) as gpu:
        yield gpu, "cuda"


def main(guard: str, checkpoint: str, report: str, *calls: str) -> None:
    torch.set_num_threads(1)
    over_gloo()
    with contextlib.ExitStack() as entered:
        gpu, device = entered.enter_context(device_of(guard))
        length = 128
        if calls[0].startswith("flash:"):
            lacks, calls, length = calls[0] == "flash:the second", calls[1:], 256
            way = "runs" if lacks and os.environ["RANK"] == "1" else "tables"
            entered.enter_context(flash_way(way, single=True))
        llama = Llama.build(checkpoint, None, length, 4, device=device, dtype="float32")
        if calls == ("fails",):
            ending_as_nccl()
            fail(llama)
        gpu.forget()
        found: dict[str, Any] = {name: CALLS[name](llama) for name in calls}
        parallel = llama.model.parallel
        wanted = 0 if guard == "real" else parallel.rank
        assert llama.model.device.index == wanted, (
            "each rank has a device of its own, where there are several"
        )
        assert gpu.counts["off device"] == 0, gpu.told("off device")
        # What ranks tell each other about their steps goes from host to host.
        assert gpu.counts["pageable"] == 0, gpu.told("pageable")
        if parallel.rank == 0:
            pool = llama.engine.memory.pool
            told = {"ranks": parallel.size, "block": pool.size, "attention": pool.attention}
            Path(report).write_text(json.dumps({**told, "calls": found}))
        llama.close()
        if guard != "real":
            share_memory(checkpoint, Path(report), gpu)


def share_memory(checkpoint: str, report: Path, gpu: Gpu) -> None:
    """Add what cache each rank plans with a device of its own, and with one for both."""
    planned = {}
    for name in ("cuda", "cuda:0"):
        # Replicas too, which share no model.
        for size in (2, 1):
            llama = Llama.build(checkpoint, None, 32, 4, size, device=name, dtype="float32", cache_memory=0.5)
            token = cache_bytes_per_token(llama.model.params, size, torch.float32)
            planned[f"{name} {size}"] = llama.engine.cache_tokens * token / gpu.memory
            first = environment.is_first_rank()
            llama.close()
    if first:
        report.write_text(json.dumps({**json.loads(report.read_text()), "planned": planned}))


if __name__ == "__main__":
    main(*sys.argv[1:])
