"""What quantization costs in quality: CodeLlama-tiny on texts that it was not trained on, beside llama.cpp.

    python benchmarks/quality.py
    python benchmarks/quality.py --types Q4_K_M --dtype bfloat16

llama.cpp quantizes the weights to a file, and both compute its logits. Rows below have our own quantization while
loading, which no file is needed for. Yardstick is this runtime in float32 with the plain weights. KL is the divergence
of a distribution of the next token from the yardstick's, over all positions of windows of 512 tokens: its mean, and
the value that 1 % of the positions exceed. Same: positions with the yardstick's first choice.
"""

from __future__ import annotations

import importlib.util
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fire
import numpy as np
import torch
from gguf_export import export, quantize
from llama_cpp_peer import LlamaCpp
from peers import parts

from llama import Llama
from llama.kv_cache import BLOCK, Part

TINY = Path(__file__).parent.parent / "CodeLlama-tiny"
# As its MODEL_CARD.md lists them.
HELD_OUT = (
    *("bisect", "calendar", "colorsys", "fnmatch", "fractions", "graphlib", "heapq", "queue", "reprlib"),
    *("shlex", "statistics", "textwrap"),
)
_WINDOW = 512
Logits = Callable[[list[int]], np.ndarray]


def texts() -> Iterator[str]:
    """The source of each held-out module."""
    for name in HELD_OUT:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        yield Path(found.origin).read_text(encoding="utf-8")


def ours(llama: Llama) -> Logits:
    """The logits behind each id of a window, (ids, vocabulary)."""

    pool = llama.model.new_pool(1 + -(-_WINDOW // BLOCK))

    @torch.inference_mode()
    def logits(ids: list[int]) -> np.ndarray:
        table = array("i", range(1, 1 + -(-len(ids) // pool.size)))
        hidden = llama.model.hidden(torch.tensor(ids), pool.step([Part(table, 0, len(ids))]))
        return llama.model.logits(hidden).float().numpy()

    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    return torch.log_softmax(torch.from_numpy(logits).double(), 1).numpy()


class Measured:
    """Sums over the positions of all windows."""

    def __init__(self) -> None:
        self.kl: list[np.ndarray] = []
        self.same = self.positions = 0
        self.nats = 0.0

    def add(self, base: np.ndarray, found: np.ndarray, following: Sequence[int]) -> None:
        """A window: log-probabilities of both, and the ids that come next."""
        self.kl.append((np.exp(base) * (base - found)).sum(1))
        self.same += int((base.argmax(1) == found.argmax(1)).sum())
        self.positions += len(base)
        self.nats -= found[np.arange(len(following)), list(following)].sum()

    def row(self, label: str, nbytes: int) -> str:
        """A row of the table."""
        kl = np.concatenate(self.kl)
        return (
            f"| {label} | {kl.mean():.3g} | {np.quantile(kl, 0.99):.3g} | {self.nats / np.log(2) / nbytes:.4f} |"
            f" {100 * self.same / self.positions:.2f} % |"
        )


def main(
    types: str = "F32,Q8_0,Q4_0,Q4_K_M,Q5_K_M,Q6_K",
    own: str = "int8,int4",
    dtype: str = "float32",
    cache_dtype: str = "auto",
    windows: int = 64,
) -> None:
    """Print a table.

    Args:
        types: files that llama.cpp quantizes.
        own: our quantizations while loading.
        dtype: of our activations and cache.
        cache_dtype: of our keys and values, as of `Llama.build`.
        windows: about so many, evenly spaced; 0 for all.
    """
    plain = Llama.build(TINY, device="cpu", dtype="float32")
    tokenizer = plain.tokenizer
    cut = []
    for text in texts():
        ids = tokenizer.encode(text, bos=True, eos=False)
        for first in range(0, len(ids) - 1, _WINDOW):
            cut.append(ids[first : first + _WINDOW])
    cut = cut[:: max(1, len(cut) // windows)] if windows else cut
    nbytes = sum(len(tokenizer.decode(each[1:]).encode()) for each in cut)
    base = ours(plain)
    expected = [log_softmax(base(each)) for each in cut]
    print(f"{len(cut)} windows, {sum(map(len, cut)):,} positions, {nbytes:,} bytes\n")
    print("| | mean KL | 99 % | bits per byte | same |\n|---|---|---|---|---|")

    def measure(label: str, logits: Logits) -> None:
        found = Measured()
        for ids, each in zip(cut, expected, strict=True):
            found.add(each, log_softmax(logits(ids)), ids[1:])
        print(found.row(label, nbytes), flush=True)

    vocab = plain.model.params.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "F32.gguf"
        export(plain.model.params, plain.model.state_dict().items(), source)
        for kind in parts(types):
            file = Path(folder) / f"{kind}.gguf"
            if kind != "F32":
                quantize(source, file, kind)
            peer = LlamaCpp(file, vocab, threads=2, context=_WINDOW, sequences=1)
            measure(f"{kind}, llama.cpp", peer.logits)
            peer.close()
            made = Llama.build(
                file, TINY / "tokenizer.model", device="cpu", dtype=dtype, cache_dtype=cache_dtype
            )
            measure(f"{kind}, ours", ours(made))
        for kind in parts(own):
            made = Llama.build(TINY, device="cpu", dtype=dtype, cache_dtype=cache_dtype, quantize=kind)
            measure(f"{kind}, ours, quantized while loading", ours(made))
        if cache_dtype != "auto":
            made = Llama.build(TINY, device="cpu", dtype=dtype, cache_dtype=cache_dtype)
            measure(f"plain weights, cache in {cache_dtype}", ours(made))


if __name__ == "__main__":
    fire.Fire(main)
