"""What the benchmarks share: shapes, one set of random weights for both peers, turns, medians.

Machines are noisy and a figure alone says little, so every figure is taken in turn with its peer's, in
one run, and the result is the median of the rounds' ratios. Peer: Hugging Face transformers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llama.checkpoint.format import expected_shapes
from llama.generation import Llama
from llama.model import ModelArgs, Transformer
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
    """The small vocabulary, repeated to the family's size: the text of random ids costs what it would."""

    def token_bytes(self, t: int) -> str | bytes | None:
        """Of the small id that stands for `t`."""
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
        # An id outside the vocabulary as stop token: no run may end early.
        tokens, _ = self.llama.generate(prompts, new, temperature=0.0, stop_token=VOCAB)
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
    """A model of random weights."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        model = Transformer(args)
    for name, shape in expected_shapes(args).items():
        weight = torch.empty(shape, dtype=dtype, device=device)
        if len(shape) == 1:
            weight.fill_(1)
        else:
            weight.normal_(0, 0.02, generator=generator)
        module: Any = model.get_submodule(name.rpartition(".")[0])
        module.assign(weight)
    return Ours(Llama(model.eval(), WideTokenizer(TOKENIZER)))


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
    # The rotary table is a buffer that to_empty left blank.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(model.device)
    ours = model.state_dict()
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {
        "model.embed_tokens.weight": ours["tok_embeddings.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["output.weight"],
    }
    for layer in range(args.n_layers):
        for mine, theirs in names.items():
            value = ours[f"layers.{layer}.{mine}.weight"]
            if mine[-2:] in ("wq", "wk"):
                # Interleaved rotary pairs -> halves.
                value = value.view(-1, args.head_dim // 2, 2, args.dim).transpose(1, 2).reshape(value.shape)
            state[f"model.layers.{layer}.{theirs}.weight"] = value
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(state[name])
    return Transformers(peer.eval())


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Prompts of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 32000, (length,), generator=generator).tolist() for length in lengths]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(peers: Sequence[Peer], measure: Callable[[Peer], float], rounds: int) -> dict[str, list[float]]:
    """measure(peer) for each peer, `rounds` times, the first round thrown away and the order swapped."""
    taken: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for i in range(rounds + 1):
        for peer in peers if i % 2 else list(reversed(peers)):
            value = measure(peer)
            if i:
                taken[peer.name].append(value)
    return taken


def report(label: str, unit: str, taken: dict[str, list[float]]) -> None:
    """One row: medians, and the median of the rounds' ratios of the first peer to the second, with range."""
    (_, ours), (_, theirs) = taken.items()
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"| {label} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {unit} |"
        f" {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
        flush=True,
    )


def header(title: str) -> None:
    """The head of a table of `report` rows."""
    print(
        f"\n### {title}\n\n| | ours | transformers | | ratio, median (range) |\n|---|---|---|---|---|",
        flush=True,
    )
