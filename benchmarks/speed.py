"""Decode, batches and prefill beside every peer: each is made once, and all take turns. Of a CPU.

    python benchmarks/speed.py                         110M shape, float32 and bfloat16
    python benchmarks/speed.py --level x86-64-v3       the same with AVX2 only
    python benchmarks/speed.py --shapes 1.1b --works ragged --peers llama.cpp --rounds 1 --warm 0

What latency.py and batch.py measure, in less time: making a peer of a billion weights takes longer than many a
measurement. All peers of a table are in memory at once: of 1.1b in float32 each takes 4.4 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import fire
import torch
from batch import RAGGED, ragged
from latency import NEW, decode, prefill
from machine import at_level, describe
from peers import Peer, close, header, in_turns, make_ours, make_peers, parts, report, shape

WORKS = "decode,batch,ragged,prefill"


def works_of(name: str) -> dict[str, tuple[str, Callable[[Peer], float]]]:
    """Each work's label, and what measures it."""
    new = NEW[name]
    return {
        "decode": (f"decode, {new} tokens", lambda peer: decode(peer, new)),
        "batch": ("batch 8, decode 16 tokens each", lambda peer: decode(peer, 16, batch=8)),
        "ragged": (RAGGED, ragged),
        "prefill": ("prefill 512", lambda peer: prefill(peer, 512)),
    }


def _named(peer: Peer, names: list[str]) -> bool:
    """Whether a peer is among those; its own name may say its precision besides."""
    return peer.name.partition(",")[0] in names


def main(
    shapes: str = "110m",
    dtypes: str = "float32,bfloat16",
    peers: str = "llama.cpp,ctranslate2,openvino,transformers",
    works: str = WORKS,
    ragged_peers: str = "llama.cpp",
    rounds: int = 3,
    warm: int = 1,
    threads: int = 2,
    level: str = "",
    layers: int = 0,
) -> None:
    """Measure decode, batches and prefill beside the peers on a CPU; print a table for each shape and dtype.

    Args:
        shapes: of 110m, 1.1b, 7b, with commas.
        dtypes: of bfloat16, float16, float32, with commas.
        peers: of llama.cpp, ctranslate2, openvino, transformers, transformers-float32, with commas.
        works: of decode, batch, ragged, prefill.
        ragged_peers: those of them that run the ragged batch. OpenVINO and transformers pad such prompts, and
            ctranslate2 takes them token by token, so that they need several times as long.
        rounds: measured rounds.
        warm: rounds before them, which are dropped.
        threads: CPU threads.
        level: of our kernels, as LLAMA_KERNELS; x86-64-v3 holds the peers to AVX2 too.
        layers: instead of the shape's own number, for a quick try.
    """
    at_level(level)
    if unknown := sorted(set(parts(works)) - set(parts(WORKS))):
        raise SystemExit(f"--works {','.join(unknown)} is unknown; known are {WORKS}")
    torch.set_num_threads(threads)
    describe(threads)
    for name in parts(shapes):
        for dtype in parts(dtypes):
            ours = make_ours(shape(name, layers), getattr(torch, dtype), torch.device("cpu"))
            beside = make_peers(parts(peers), ours, threads=threads)
            columns = [peer.name for peer in beside]
            header(f"{name}, {dtype}", columns)
            for work in parts(works):
                label, measure = works_of(name)[work]
                chosen = [
                    peer
                    for peer in beside
                    if work != "ragged" or _named(peer, ["ours", *parts(ragged_peers)])
                ]
                report(label, "tokens/s", in_turns(chosen, measure, rounds, warm), columns)
            close(beside)
            del ours, beside, chosen


if __name__ == "__main__":
    fire.Fire(main)
