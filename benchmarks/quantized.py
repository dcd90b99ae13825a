"""Quantized weights beside llama.cpp on the same file, CTranslate2 and OpenVINO. Of a CPU.

    python benchmarks/quantized.py                          110M shape; files of Q8_0, Q4_0 and Q4_K_M
    python benchmarks/quantized.py --level x86-64-v3        the same with AVX2 only
    python benchmarks/quantized.py --types Q8_0 --peers ctranslate2,openvino --works decode,batch,prefill

llama.cpp quantizes random weights to a file, and this runtime loads that file. CTranslate2 and OpenVINO quantize the
same weights to 8 bits in their own way, OpenVINO also to 4 where the file has 4. All activations are what each takes
by itself: ours float16, llama.cpp's and CTranslate2's float32, OpenVINO's the best of the CPU.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import fire
import torch
from gguf_export import TYPES, export, quantize
from machine import at_level, describe
from peers import (
    TOKENIZER,
    Ours,
    Peer,
    WideTokenizer,
    close,
    header,
    in_turns,
    parts,
    report,
    settle,
    shape,
    warm,
)
from speed import WORKS, works_of

from llama.checkpoint import load_weights, open_checkpoint
from llama.generation import Llama
from llama.model import ModelArgs, Transformer
from llama.sizing.shapes import expected_shapes


def random_weights(args: ModelArgs) -> dict[str, torch.Tensor]:
    """Float32, as of peers.py."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.ones(size) if len(size) == 1 else torch.empty(size).normal_(0, 0.02, generator=generator)
        for name, size in expected_shapes(args).items()
    }


def load(file: Path, dtype: torch.dtype) -> Ours:
    """This runtime, with the weights of a file as they are."""
    checkpoint = open_checkpoint(file, max_seq_len=4096, max_batch_size=8)
    with torch.device("meta"):
        model = Transformer(checkpoint.args)
    load_weights(model, checkpoint, torch.device("cpu"), dtype)
    settle()
    return Ours(Llama(model.eval(), WideTokenizer(TOKENIZER), prefix_reuse=False))


def plain(args: ModelArgs) -> Transformer:
    """The float32 model that CTranslate2 and OpenVINO convert."""
    with torch.device("meta"):
        model = Transformer(args)
    for name, weight in random_weights(args).items():
        module = model.get_submodule(name.rpartition(".")[0])
        module.assign(weight)  # type: ignore[operator]
    return model.eval()


def make_beside(names: list[str], args: ModelArgs, file: Path, kind: str, threads: int) -> list[Peer]:
    """The peers named."""
    found: list[Peer] = []
    if "llama.cpp" in names:
        from llama_cpp_peer import LlamaCpp

        found.append(LlamaCpp(file, args.vocab_size, threads=threads, context=2304, sequences=8))
    if "ctranslate2" in names:
        from ctranslate2_peer import CTranslate2

        found.append(CTranslate2(plain(args), threads=threads, compute_type="int8"))
    if "openvino" in names:
        from openvino_peer import OpenVino

        found.append(OpenVino(plain(args), threads=threads, bits=4 if kind.startswith("Q4") else 8))
    return found


def main(
    shapes: str = "110m",
    types: str = "Q8_0,Q4_0,Q4_K_M",
    peers: str = "llama.cpp",
    works: str = WORKS,
    dtype: str = "float16",
    rounds: int = 3,
    warm_rounds: int = 1,
    threads: int = 2,
    level: str = "",
    layers: int = 0,
) -> None:
    """Measure decode, batches and prefill beside the peers; print a table for each shape and type.

    Args:
        shapes: of 110m, 1.1b, 7b, with commas.
        types: of gguf_export.TYPES, with commas.
        peers: of llama.cpp, ctranslate2, openvino, with commas.
        works: of decode, batch, ragged, prefill.
        dtype: of our activations.
        rounds: measured rounds.
        warm_rounds: rounds before them, which are dropped.
        threads: CPU threads.
        level: of our kernels, as LLAMA_KERNELS; x86-64-v3 holds the peers to AVX2 too.
        layers: instead of the shape's own number, for a quick try.
    """
    at_level(level)
    torch.set_num_threads(threads)
    describe(threads)
    for name in parts(shapes):
        args = shape(name, layers)
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            source = Path(folder) / "F32.gguf"
            export(args, random_weights(args).items(), source)
            for kind in parts(types):
                if kind not in TYPES:
                    raise SystemExit(f"--types {kind} is unknown; known are {', '.join(TYPES)}")
                file = Path(folder) / f"{kind}.gguf"
                quantize(source, file, kind, threads)
                ours = load(file, getattr(torch, dtype))
                beside = [ours, *make_beside(parts(peers), args, file, kind, threads)]
                warm(beside, same=False)
                columns = [peer.name for peer in beside]
                header(f"{name}, {kind}, {file.stat().st_size / 2**20:.0f} MiB", columns)
                for work in parts(works):
                    label, measure = works_of(name)[work]
                    report(label, "tokens/s", in_turns(beside, measure, rounds, warm_rounds), columns)
                close(beside)
                del ours, beside
                file.unlink()


if __name__ == "__main__":
    fire.Fire(main)
