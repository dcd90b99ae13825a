"""What the benchmarks share: shapes, the peers with one set of random weights, taking turns, medians.

Machines are noisy, so a figure alone says little. Every figure is measured in turn with its peer's, in one
run, and the result is the median of the rounds' ratios. The peers are in files of their own: transformers_peer.py,
llama_cpp_peer.py, ctranslate2_peer.py, openvino_peer.py.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from llama.checkpoint import load_weights, open_checkpoint
from llama.checkpoint.layouts.hf_config import params_of
from llama.generation import Llama
from llama.model import ModelArgs, Transformer
from llama.sizing.shapes import expected_shapes
from llama.tokenizer import Tokenizer

PEERS = ("llama.cpp", "ctranslate2", "openvino", "transformers", "transformers-float32")
# A pause before each measurement: after their work, threads of OpenMP spin for a while (GCC's some milliseconds,
# Intel's 0.2 s), and would take a core from the next peer.
_SPIN = 0.25
TOKENIZER = Path(__file__).parent.parent / "CodeLlama-tiny" / "tokenizer.model"
VOCAB = 32016
_COMMON = {"vocab_size": VOCAB, "rope_theta": 1e6, "max_seq_len": 4096, "max_batch_size": 8}
SHAPES = {
    "110m": ModelArgs(dim=768, n_layers=12, n_heads=12, **_COMMON),
    "1.1b": ModelArgs(dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, **_COMMON),
    "7b": ModelArgs(dim=4096, n_layers=32, n_heads=32, **_COMMON),
}


def shape(name: str, layers: int = 0) -> ModelArgs:
    """A shape of SHAPES, with another number of layers where it is given."""
    if name not in SHAPES:
        raise SystemExit(f"--shapes {name} is unknown; known are {', '.join(SHAPES)}")
    return replace(SHAPES[name], n_layers=layers or SHAPES[name].n_layers)


class WideTokenizer(Tokenizer):
    """CodeLlama-tiny's pieces, repeated to the size of the family's vocabulary."""

    def token_bytes(self, t: int) -> str | bytes | None:
        """The piece of `t` modulo the small vocabulary."""
        return super().token_bytes(t % self.n_words)


class Peer(Protocol):
    """Continues prompts of random ids greedily, by exactly `new` tokens each."""

    name: str

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]: ...


@dataclass
class Ours:
    """This runtime, through `Llama.generate`."""

    llama: Llama
    name: str = "ours"

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        # The stop token is outside the vocabulary, so that no run ends early. No drafts: the output of random
        # weights repeats itself, so drafts would be right more often than for any real text.
        tokens, _ = self.llama.generate(prompts, new, temperature=0.0, stop_token=VOCAB, speculate=False)
        return tokens


def make_ours(args: ModelArgs, dtype: torch.dtype, device: torch.device) -> Ours:
    """A model with random weights: on a CPU loaded from a checkpoint as any other, on a GPU made in place."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        model = Transformer(args)
    weights = {}
    for name, shape in expected_shapes(args).items():
        weight = torch.empty(shape, dtype=dtype, device=device)
        weights[name] = weight.fill_(1) if len(shape) == 1 else weight.normal_(0, 0.02, generator=generator)
    if device.type == "cpu":
        _load(model, weights, dtype)
    else:
        for name, weight in weights.items():
            module: Any = model.get_submodule(name.rpartition(".")[0])
            module.assign(weight)
    return Ours(Llama(model.eval(), WideTokenizer(TOKENIZER), prefix_reuse=False))


def _load(model: Transformer, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Load through a file as users do, so that the weights lie in memory as theirs do."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        torch.save(weights, Path(folder) / "consolidated.00.pth")
        (Path(folder) / "params.json").write_text(json.dumps(params_of(model.params)))
        weights.clear()
        load_weights(model, open_checkpoint(folder), torch.device("cpu"), dtype)
    settle()


def settle() -> None:
    """Wait until the loaded weights have been moved into huge pages."""
    for thread in threading.enumerate():
        if thread.name == "llama-huge-pages":
            thread.join()


def random_prompts(lengths: Sequence[int], seed: int = 0, high: int = 32000) -> list[list[int]]:
    """Prompts of random ids from 3 to `high` - 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, high, (length,), generator=generator).tolist() for length in lengths]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(
    peers: Sequence[Peer], measure: Callable[[Peer], float], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """measure(peer) for each peer, `rounds` times, in alternating order. The first `warm` rounds are dropped."""
    taken: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for i in range(warm + rounds):
        for peer in peers if i % 2 else list(reversed(peers)):
            time.sleep(_SPIN)
            value = measure(peer)
            if i >= warm:
                taken[peer.name].append(value)
    return taken


def spread(ratios: Sequence[float], digits: int = 2) -> str:
    """Median and range: `1.05 x (0.98 to 1.10)`."""
    low, high = min(ratios), max(ratios)
    return f"{statistics.median(ratios):.{digits}f} x ({low:.{digits}f} to {high:.{digits}f})"


def report(label: str, unit: str, taken: dict[str, list[float]], peers: Sequence[str] = ()) -> None:
    """Print a row: medians, and the ratios of the first peer to each of the others.

    Args:
        taken: of each peer the figure of each round.
        peers: all columns of the table, where some peers were left out of this row.
    """
    (first, ours), *_ = taken.items()
    columns = list(peers or taken)
    medians = [f"{statistics.median(taken[name]):.1f}" if name in taken else "" for name in columns]
    ratios = [
        spread([a / b for a, b in zip(ours, taken[name], strict=True)]) if name in taken else ""
        for name in columns
        if name != first
    ]
    print("| " + " | ".join([label, *medians, unit, *ratios]) + " |", flush=True)


def header(title: str, peers: Sequence[str] = ("ours", "transformers")) -> None:
    """Print the head of a table of `report` rows."""
    ratios = [f"of {name}: median (range)" for name in peers[1:]]
    cells = ["", *peers, "", *ratios]
    print(f"\n### {title}\n\n| " + " | ".join(cells) + " |\n|" + "---|" * len(cells), flush=True)


def parts(value: str | Sequence[str]) -> list[str]:
    """The list that a flag with commas holds; Fire may have split it already."""
    return value.split(",") if isinstance(value, str) else list(value)


def make_peers(
    names: Sequence[str], ours: Ours, *, threads: int, context: int = 2304, sequences: int = 8
) -> list[Peer]:
    """This runtime and the peers named, with the same weights; in float32 held to the same tokens.

    Args:
        names: of PEERS; all but transformers run on a CPU only. transformers-float32 is the faster one where the
            CPU has no products in 16 bits.
        context, sequences: tokens of a sequence, and sequences, that llama.cpp reserves memory for.
    """
    if unknown := sorted(set(names) - {*PEERS, ""}):
        raise SystemExit(f"--peers {','.join(unknown)} is unknown; known are {','.join(PEERS)}")
    model = ours.llama.model
    peers: list[Peer] = [ours]
    if "openvino" in names:  # first: while it converts, it holds the weights several times
        from openvino_peer import OpenVino

        peers.append(OpenVino(model, threads=threads))
    if "llama.cpp" in names:
        from llama_cpp_peer import LlamaCpp

        peers.append(LlamaCpp.of_model(model, threads=threads, context=context, sequences=sequences))
    if "ctranslate2" in names:
        from ctranslate2_peer import CTranslate2

        peers.append(CTranslate2(model, threads=threads))
    if "transformers" in names:
        from transformers_peer import make_transformers

        peers.append(make_transformers(model))
    if "transformers-float32" in names:
        from transformers_peer import make_transformers

        peers.append(make_transformers(model, torch.float32))
    warm(peers, same=model.dtype == torch.float32)
    return peers


def warm(peers: Sequence[Peer], same: bool) -> None:
    """Run each once. `same`: they must all say the same, so that what is measured is the same work.

    In 16 bits the best of 32,000 ids is often a near-tie, which each peer rounds in its own way.
    """
    prompts = random_prompts([24, 24], seed=1)
    said = [peer.run(prompts, 6) for peer in peers]
    for peer, tokens in zip(peers, said, strict=True):
        if [len(each) for each in tokens] != [6, 6] or (same and tokens != said[0]):
            raise SystemExit(
                f"{peer.name} continues {prompts} with {tokens}, and {peers[0].name} with {said[0]}"
            )


def close(peers: Sequence[Peer]) -> None:
    """Give back the memory, the files and the processes of peers that hold any outside Python."""
    for peer in peers:
        end: Callable[[], None] = getattr(peer, "close", lambda: None)
        end()
