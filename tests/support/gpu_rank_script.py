"""Ranks on pretended GPUs, over gloo: `gpu_rank_script.py GUARD CHECKPOINT REPORT CALL...`.

With `real` as the guard they share the machine's first GPU, which NCCL would refuse. The first rank writes a JSON of
what each call of gpu_calls.py gave. Only NCCL is replaced: it needs GPUs.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
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
    with device_of(guard) as (gpu, device):
        llama = Llama.build(checkpoint, None, 128, 4, device=device, dtype="float32")
        found: dict[str, Any] = {name: CALLS[name](llama) for name in calls}
        parallel = llama.model.parallel
        wanted = 0 if guard == "real" else parallel.rank
        assert llama.model.device.index == wanted, (
            "each rank has a device of its own, where there are several"
        )
        assert gpu.counts["off device"] == 0, gpu.told("off device")
        if parallel.rank == 0:
            Path(report).write_text(json.dumps({"ranks": parallel.size, "calls": found}))
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
