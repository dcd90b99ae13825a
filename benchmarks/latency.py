"""One stream: prefill and decode speed beside transformers, with the same weights, in one run.

    python benchmarks/latency.py                       110M and 1.1B shapes, bfloat16 and float32
    python benchmarks/latency.py --shapes 110m --dtypes bfloat16 --rounds 5
    python benchmarks/latency.py --device cuda --shapes 7b --dtypes bfloat16

Prefill is the time to the first token; decode is the time of the further ones.
"""

from __future__ import annotations

import subprocess
import sys

import fire
import torch
from peers import (
    SHAPES,
    Peer,
    header,
    in_turns,
    make_ours,
    make_peers,
    make_transformers,
    parts,
    random_prompts,
    report,
    seconds,
)

_DECODE = {"110m": 64, "1.1b": 24, "7b": 64}


def _prefill(peer: Peer, length: int) -> float:
    prompt = random_prompts([length])
    return length / seconds(lambda: peer.run(prompt, 1))


def _decode(peer: Peer, new: int) -> float:
    prompt = random_prompts([32])
    first = seconds(lambda: peer.run(prompt, 1))
    return new / (seconds(lambda: peer.run(prompt, 1 + new)) - first)


def peak(shape: str, dtype: str, device: str, which: str) -> None:
    """Print the peak memory of one peer alone, in MiB: a prompt of 2,048 tokens, and 8 more."""
    args, target = SHAPES[shape], torch.device(device)
    ours = make_ours(args, getattr(torch, dtype), target)
    peer: Peer = ours
    if which == "transformers":
        peer = make_transformers(ours.llama.model)
        del ours
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:  # resets VmHWM
            file.write("5")
    peer.run(random_prompts([2048]), 8)
    if target.type == "cuda":
        print(torch.cuda.max_memory_allocated() >> 20)
    else:
        with open("/proc/self/status") as file:
            print(next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM")))


def main(
    shapes: str = "110m,1.1b",
    dtypes: str = "bfloat16,float32",
    rounds: int = 5,
    device: str = "cpu",
    threads: int = 2,
    peers: str = "transformers",
    peak_of: str | None = None,
) -> None:
    """Print a table for each shape and dtype.

    Args:
        shapes: of 110m, 1.1b, 7b, with commas.
        dtypes: of bfloat16, float16, float32, with commas.
        rounds: measured rounds, after one that is dropped.
        device: cpu or cuda.
        threads: CPU threads.
        peers: of transformers, llama.cpp (CPU only), with commas.
        peak_of: internal: print only the peak memory of "ours" or "transformers".
    """
    torch.set_num_threads(threads)
    names = parts(shapes)
    kinds = parts(dtypes)
    if peak_of is not None:
        peak(names[0], kinds[0], device, peak_of)
        return
    for name in names:
        for dtype in kinds:
            ours = make_ours(SHAPES[name], getattr(torch, dtype), torch.device(device))
            beside = make_peers(parts(peers), ours, threads=threads)
            header(f"{name}, {dtype}, {device}", [peer.name for peer in beside])
            new = _DECODE[name]
            report(
                f"decode, {new} tokens",
                "tokens/s",
                in_turns(beside, lambda peer, new=new: _decode(peer, new), rounds),
            )
            for length in (512, 2048):
                taken = in_turns(beside, lambda peer, length=length: _prefill(peer, length), rounds)
                report(f"prefill {length}", "tokens/s", taken)
            del ours, beside
            used = {
                which: [_peak_alone(name, dtype, device, threads, which)]
                for which in ("ours", *(["transformers"] if "transformers" in parts(peers) else []))
            }
            if len(used) > 1:
                report("peak memory, prompt of 2048", "MiB", used)


def _peak_alone(shape: str, dtype: str, device: str, threads: int, which: str) -> float:
    flags = [f"--shapes={shape}", f"--dtypes={dtype}", f"--device={device}", f"--threads={threads}"]
    command = [sys.executable, __file__, *flags, f"--peak_of={which}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    fire.Fire(main)
