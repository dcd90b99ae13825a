"""What the benchmarks share: shapes, the peers with one set of random weights, taking turns, medians.

Machines are noisy, so a figure alone says little. Every figure is measured in turn with its peer's, in one
run, and the result is the median of the rounds' ratios. Peers: Hugging Face transformers, and llama.cpp
(llama_cpp_peer.py).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llama.checkpoint import load_weights, open_checkpoint
from llama.checkpoint.layouts.hf_config import params_of
from llama.checkpoint.layouts.hugging_face import hf_name, rotary_heads
from llama.generation import Llama
from llama.model import ModelArgs, Transformer
from llama.sizing.shapes import expected_shapes
from llama.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parent.parent / "CodeLlama-tiny" / "tokenizer.model"
VOCAB = 32016
_COMMON = {"vocab_size": VOCAB, "rope_theta": 1e6, "max_seq_len": 4096, "max_batch_size": 8}
SHAPES = {
    "110m": ModelArgs(dim=768, n_layers=12, n_heads=12, **_COMMON),
    "1.1b": ModelArgs(dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, **_COMMON),
    "7b": ModelArgs(dim=4096, n_layers=32, n_heads=32, **_COMMON),
}


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


@dataclass
class Transformers:
    """transformers' `generate`, left-padded where prompts differ in length."""

    model: Any
    name: str = "transformers"

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        width = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        out = self.model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0
        )
        return [row[width:].tolist() for row in out]


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


def make_transformers(model: Transformer) -> Transformers:
    """The same weights in transformers' LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    args = model.params
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.dim,
        intermediate_size=args.ffn_dim,
        num_hidden_layers=args.n_layers,
        num_attention_heads=args.n_heads,
        num_key_value_heads=args.kv_heads,
        rms_norm_eps=args.norm_eps,
        rope_theta=args.rope_theta,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    with torch.device("meta"):
        peer = LlamaForCausalLM(config)
    peer.to_empty(device=model.device)
    peer.to(model.dtype)
    # The rotary table is a buffer, which to_empty did not fill.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(model.device)
    ours = model.state_dict()
    state = {}
    for name, plain in ours.items():
        value = plain
        if rotary_heads(name, args.n_heads, args.kv_heads):
            # Interleaved rotary pairs -> halves.
            value = value.view(-1, args.head_dim // 2, 2, args.dim).transpose(1, 2).reshape(value.shape)
        state[hf_name(name)] = value
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(state[name])
    return Transformers(peer.eval())


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


def in_turns(peers: Sequence[Peer], measure: Callable[[Peer], float], rounds: int) -> dict[str, list[float]]:
    """measure(peer) for each peer, `rounds` times. A first round is dropped, and the order alternates."""
    taken: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for i in range(rounds + 1):
        for peer in peers if i % 2 else list(reversed(peers)):
            value = measure(peer)
            if i:
                taken[peer.name].append(value)
    return taken


def spread(ratios: Sequence[float], digits: int = 2) -> str:
    """Median and range: `1.05 x (0.98 to 1.10)`."""
    low, high = min(ratios), max(ratios)
    return f"{statistics.median(ratios):.{digits}f} x ({low:.{digits}f} to {high:.{digits}f})"


def report(label: str, unit: str, taken: dict[str, list[float]]) -> None:
    """Print a row: medians, and the ratios of the first peer to each of the others."""
    (_, ours), *others = taken.items()
    cells = [label, f"{statistics.median(ours):.1f}"]
    cells += [f"{statistics.median(theirs):.1f}" for _, theirs in others]
    cells.append(unit)
    for _, theirs in others:
        cells.append(spread([a / b for a, b in zip(ours, theirs, strict=True)]))
    print("| " + " | ".join(cells) + " |", flush=True)


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
    """This runtime and the peers named, with the same weights.

    Args:
        names: of transformers, llama.cpp.
        context, sequences: tokens of a sequence, and sequences, that llama.cpp reserves memory for.
    """
    peers: list[Peer] = [ours]
    if "transformers" in names:
        peers.append(make_transformers(ours.llama.model))
    if "llama.cpp" in names:
        from llama_cpp_peer import LlamaCpp

        peers.append(LlamaCpp(ours.llama.model, threads=threads, context=context, sequences=sequences))
    return peers
