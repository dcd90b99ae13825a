"""Batches beside transformers: eight prompts of one length, and of mixed lengths, with the same weights.

python benchmarks/batch.py
python benchmarks/batch.py --shapes 110m --dtypes bfloat16 --rounds 5
python benchmarks/batch.py --device cuda --shapes 7b --dtypes bfloat16
"""

from __future__ import annotations

import fire
import torch
from peers import (
    SHAPES,
    Peer,
    header,
    in_turns,
    make_ours,
    make_peers,
    parts,
    random_prompts,
    report,
    seconds,
)

_NEW = 64
_RAGGED = (16, 64, 96, 160, 224, 320, 416, 512)


def _decode(peer: Peer, new: int) -> float:
    prompts = random_prompts([32] * 8)
    first = seconds(lambda: peer.run(prompts, 1))
    return 8 * new / (seconds(lambda: peer.run(prompts, 1 + new)) - first)


def _ragged(peer: Peer) -> float:
    prompts = random_prompts(_RAGGED)
    return 8 * _NEW / seconds(lambda: peer.run(prompts, _NEW))


def main(
    shapes: str = "110m,1.1b",
    dtypes: str = "bfloat16,float32",
    rounds: int = 3,
    device: str = "cpu",
    threads: int = 2,
    peers: str = "transformers",
) -> None:
    """Print a table for each shape and dtype.

    Args:
        shapes: of 110m, 1.1b, 7b, with commas.
        dtypes: of bfloat16, float16, float32, with commas.
        rounds: measured rounds, after one that is dropped.
        device: cpu or cuda.
        threads: CPU threads.
        peers: of transformers, llama.cpp (CPU only), with commas.
    """
    torch.set_num_threads(threads)
    for name in parts(shapes):
        for dtype in parts(dtypes):
            ours = make_ours(SHAPES[name], getattr(torch, dtype), torch.device(device))
            beside = make_peers(parts(peers), ours, threads=threads)
            header(f"{name}, {dtype}, {device}", [peer.name for peer in beside])
            taken = in_turns(beside, lambda peer: _decode(peer, 16), rounds)
            report("batch 8, decode 16 tokens each", "tokens/s", taken)
            report(
                f"ragged batch of 8, prompts of {_RAGGED[0]} to {_RAGGED[-1]}, {_NEW} tokens each",
                "tokens/s",
                in_turns(beside, _ragged, rounds),
            )


if __name__ == "__main__":
    fire.Fire(main)
