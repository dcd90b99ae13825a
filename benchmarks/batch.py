"""Batches beside the peers: eight prompts of one length, and of mixed lengths, with the same weights.

python benchmarks/batch.py
python benchmarks/batch.py --shapes 110m --dtypes bfloat16 --rounds 5
python benchmarks/batch.py --peers llama.cpp,openvino --level x86-64-v3
python benchmarks/batch.py --device cuda --shapes 7b --dtypes bfloat16
"""

from __future__ import annotations

import fire
import torch
from latency import decode
from machine import at_level, describe
from peers import (
    Peer,
    close,
    header,
    in_turns,
    make_ours,
    make_peers,
    parts,
    random_prompts,
    report,
    seconds,
    shape,
)

_LENGTHS = (16, 64, 96, 160, 224, 320, 416, 512)
RAGGED = f"ragged batch of 8, prompts of {_LENGTHS[0]} to {_LENGTHS[-1]}, 64 tokens each"


def ragged(peer: Peer) -> float:
    """New tokens/s of eight prompts of mixed lengths, from start to end."""
    prompts = random_prompts(_LENGTHS)
    return 8 * 64 / seconds(lambda: peer.run(prompts, 64))


def main(
    shapes: str = "110m,1.1b",
    dtypes: str = "bfloat16,float32",
    rounds: int = 3,
    device: str = "cpu",
    threads: int = 2,
    peers: str = "transformers",
    level: str = "",
    layers: int = 0,
) -> None:
    """Measure batches of eight beside the peers; print a table for each shape and dtype.

    Args:
        shapes: of 110m, 1.1b, 7b, with commas.
        dtypes: of bfloat16, float16, float32, with commas.
        rounds: measured rounds, after one that is dropped.
        device: cpu or cuda.
        threads: CPU threads.
        peers: of llama.cpp, ctranslate2, openvino (these on a CPU only), transformers, transformers-float32, with
            commas.
        level: of our kernels, as LLAMA_KERNELS; x86-64-v3 holds the peers to AVX2 too.
        layers: instead of the shape's own number, for a quick try.
    """
    at_level(level)
    torch.set_num_threads(threads)
    describe(threads)
    for name in parts(shapes):
        for dtype in parts(dtypes):
            ours = make_ours(shape(name, layers), getattr(torch, dtype), torch.device(device))
            beside = make_peers(parts(peers), ours, threads=threads)
            header(f"{name}, {dtype}, {device}", [peer.name for peer in beside])
            taken = in_turns(beside, lambda peer: decode(peer, 16, batch=8), rounds)
            report("batch 8, decode 16 tokens each", "tokens/s", taken)
            report(RAGGED, "tokens/s", in_turns(beside, ragged, rounds))
            close(beside)


if __name__ == "__main__":
    fire.Fire(main)
