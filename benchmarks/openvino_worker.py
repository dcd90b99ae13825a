"""OpenVINO in an environment of its own: converts a model in Hugging Face's layout and answers runs over pipes.

openvino_peer.py starts it, with the Python of that environment. It imports nothing of this project.

    python benchmarks/openvino_worker.py FOLDER PRECISION THREADS BITS

A line of JSON comes back when the model is ready, then one for each line that is asked: {"prompts", "new"} ->
{"tokens"}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def load(folder: str, precision: str, threads: int, bits: int) -> Any:
    """The model of a folder, computed in `precision` (f32, bf16, f16), or in f32 if this CPU lacks that.

    `bits`: 8 or 4 for weights quantized by optimum-intel's defaults; 0 for plain ones.
    """
    from openvino import Core
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    if precision.upper() not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precision = "f32"
    return OVModelForCausalLM.from_pretrained(
        folder,
        export=True,
        load_in_8bit=False,  # its default for a billion weights and more
        quantization_config=OVWeightQuantizationConfig(bits=bits) if bits else None,
        ov_config={
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,  # 8 bits by default
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )


def generate(model: Any, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """Continue prompts greedily by `new` tokens each, left-padded where they differ in length."""
    import torch

    width = max(map(len, prompts))
    out = model.generate(
        torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        do_sample=False,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
    )
    return [row[width:].tolist() for row in out]


def main(folder: str, precision: str, threads: int, bits: int) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    model = load(folder, precision, threads, bits)
    taken = model.request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    print(json.dumps({"precision": taken.to_string()}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"tokens": generate(model, asked["prompts"], asked["new"])}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
