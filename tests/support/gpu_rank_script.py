"""Ranks on pretended GPUs, over gloo: `gpu_rank_script.py GUARD CHECKPOINT REPORT [flash:WHO] CALL...`.

With `real` as the guard they share the machine's first GPU, which NCCL would refuse. The first rank writes a JSON of
what each call of gpu_calls.py gave. Only NCCL is replaced: it needs GPUs.

With `flash:nobody` torch's flash attention computes in float32, too; with `flash:the second` that of the second rank
takes no tables of blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
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
from llama.distributed import world


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
    with contextlib.ExitStack() as entered:
        gpu, device = entered.enter_context(device_of(guard))
        length = 128
        if calls[0].startswith("flash:"):
            lacks, calls, length = calls[0] == "flash:the second", calls[1:], 256
            way = "runs" if lacks and os.environ["RANK"] == "1" else "tables"
            entered.enter_context(flash_way(way, single=True))
        llama = Llama.build(checkpoint, None, length, 4, device=device, dtype="float32")
        found: dict[str, Any] = {name: CALLS[name](llama) for name in calls}
        parallel = llama.model.parallel
        wanted = 0 if guard == "real" else parallel.rank
        assert llama.model.device.index == wanted, (
            "each rank has a device of its own, where there are several"
        )
        assert gpu.counts["off device"] == 0, gpu.told("off device")
        if parallel.rank == 0:
            pool = llama.engine.memory.pool
            told = {"ranks": parallel.size, "block": pool.size, "attention": pool.attention}
            Path(report).write_text(json.dumps({**told, "calls": found}))
        llama.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
