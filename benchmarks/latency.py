"""One stream: prefill and decode speed beside the peers, with the same weights, in one run.

    python benchmarks/latency.py                       110M and 1.1B shapes, bfloat16 and float32
    python benchmarks/latency.py --shapes 110m --dtypes bfloat16 --rounds 5
    python benchmarks/latency.py --peers llama.cpp,ctranslate2,openvino,transformers --level x86-64-v3
    python benchmarks/latency.py --device cuda --shapes 7b --dtypes bfloat16

Prefill is the time to the first token; decode is the time of the further ones.
"""

from __future__ import annotations

import subprocess
import sys

import fire
import torch
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

NEW = {"110m": 64, "1.1b": 24, "7b": 64}


def prefill(peer: Peer, length: int) -> float:
    """Tokens/s of a prompt, to its first new token."""
    prompt = random_prompts([length])
    return length / seconds(lambda: peer.run(prompt, 1))


def decode(peer: Peer, new: int, batch: int = 1) -> float:
    """Tokens/s of the tokens after the first, of a batch of short prompts."""
    prompts = random_prompts([32] * batch)
    first = seconds(lambda: peer.run(prompts, 1))
    return batch * new / (seconds(lambda: peer.run(prompts, 1 + new)) - first)


def peak(name: str, layers: int, dtype: str, device: str, which: str) -> None:
    """Print the peak memory of one peer alone, in MiB: a prompt of 2,048 tokens, and 8 more."""
    target = torch.device(device)
    ours = make_ours(shape(name, layers), getattr(torch, dtype), target)
    peer: Peer = ours
    if which == "transformers":
        from transformers_peer import make_transformers

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
    level: str = "",
    layers: int = 0,
    peak_of: str | None = None,
) -> None:
    """Measure decode and prefill of one stream beside the peers; print a table for each shape and dtype.

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
        peak_of: internal: print only the peak memory of "ours" or "transformers".
    """
    at_level(level)
    torch.set_num_threads(threads)
    names = parts(shapes)
    kinds = parts(dtypes)
    if peak_of is not None:
        peak(names[0], layers, kinds[0], device, peak_of)
        return
    describe(threads)
    for name in names:
        for dtype in kinds:
            ours = make_ours(shape(name, layers), getattr(torch, dtype), torch.device(device))
            beside = make_peers(parts(peers), ours, threads=threads)
            header(f"{name}, {dtype}, {device}", [peer.name for peer in beside])
            new = NEW[name]
            taken = in_turns(beside, lambda peer, new=new: decode(peer, new), rounds)
            report(f"decode, {new} tokens", "tokens/s", taken)
            for length in (512, 2048):
                taken = in_turns(beside, lambda peer, length=length: prefill(peer, length), rounds)
                report(f"prefill {length}", "tokens/s", taken)
            close(beside)
            del ours, beside
            if "transformers" in parts(peers):
                _report_peaks(
                    name, layers, dtype, device, threads, [peer for peer in taken if peer != "ours"]
                )


def _report_peaks(name: str, layers: int, dtype: str, device: str, threads: int, others: list[str]) -> None:
    flags = {"shapes": name, "layers": layers, "dtypes": dtype, "device": device, "threads": threads}
    used = {}
    for which in ("ours", "transformers"):
        command = [sys.executable, __file__, *(f"--{flag}={value}" for flag, value in flags.items())]
        done = subprocess.run([*command, f"--peak_of={which}"], check=True, capture_output=True, text=True)
        used[which] = [float(done.stdout.split()[-1])]
    report("peak memory, prompt of 2048", "MiB", used, ["ours", *others])


if __name__ == "__main__":
    fire.Fire(main)
