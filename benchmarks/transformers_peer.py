"""Hugging Face transformers as a peer, with the same weights. CTranslate2 and OpenVINO are given them by it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llama.checkpoint.layouts.hugging_face import hf_name, rotary_heads
from llama.model import Transformer


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


def plain_weights(model: Transformer) -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict, one weight at a time: packed ones are copied to become plain."""
    for name, module in model.named_modules():
        if not list(module.children()):
            yield from module.state_dict(prefix=f"{name}.").items()


def make_transformers(model: Transformer, dtype: torch.dtype | None = None) -> Transformers:
    """The same weights in transformers' LlamaForCausalLM.

    Args:
        dtype: the model's own, unless it is given.
    """
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
    peer.to(dtype or model.dtype)
    peer.to_empty(device=model.device)
    # The rotary table is a buffer, which to_empty did not fill.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(model.device)
    parameters = dict(peer.named_parameters())
    for name, plain in plain_weights(model):
        value = plain
        if rotary_heads(name, args.n_heads, args.kv_heads):
            # Interleaved rotary pairs -> halves.
            value = value.view(-1, args.head_dim // 2, 2, args.dim).transpose(1, 2).reshape(value.shape)
        with torch.no_grad():
            parameters[hf_name(name)].copy_(value)
    return Transformers(peer.eval(), "transformers" if dtype is None else f"transformers, {str(dtype)[6:]}")
