"""Ranks on pretended GPUs, over gloo: `gpu_rank_script.py GUARD CHECKPOINT REPORT CALL...`.

The first rank writes a JSON of what each call of gpu_calls.py gave. Only NCCL is replaced: it needs GPUs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_calls import CALLS
from pretended_gpu import load_guard, pretended

from llama import Llama
from llama.distributed import world


def over_gloo() -> None:
    """Let groups for CUDA be gloo's, which knows nothing of devices."""
    start = dist.init_process_group
    world._BACKENDS["cuda"] = "gloo"
    dist.init_process_group = lambda *args, device_id=None, **more: start(*args, **more)


def main(guard: str, checkpoint: str, report: str, *calls: str) -> None:
    torch.set_num_threads(1)
    load_guard(Path(guard))
    over_gloo()
    with pretended(devices=2) as gpu:
        llama = Llama.build(checkpoint, None, 128, 4, device="cuda", dtype="float32")
        found: dict[str, Any] = {name: CALLS[name](llama) for name in calls}
        parallel, device = llama.model.parallel, llama.model.device
        assert device.index == parallel.rank, "each rank has a device of its own"
        assert gpu.counts["off device"] == 0, gpu.told("off device")
        if parallel.rank == 0:
            Path(report).write_text(json.dumps({"ranks": parallel.size, "calls": found}))
        llama.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
