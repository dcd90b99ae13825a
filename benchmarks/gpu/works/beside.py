"""Ours and transformers, in turn, with the same weights."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from peers import Ours, Peer, in_turns, random_prompts
from transformers_peer import make_transformers

from llama import Llama
from llama.model import Transformer

from ..figures import Figure
from ..models import make_model, shape, tokenizer
from ..workplace import Workplace
from .engine_runs import cache_tokens, fitting, lengths

__all__ = ["run"]


def _taken(peer: Peer, prompts: Sequence[Sequence[int]], new: int) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    found = peer.run(prompts, new)
    torch.cuda.synchronize()
    if [len(each) for each in found] != [new] * len(prompts):
        raise RuntimeError(f"{peer.name} gave {[len(each) for each in found]} tokens, and not {new} for each")
    return time.perf_counter() - started


def _compare(place: Workplace, name: str, unit: str, taken: dict[str, list[float]]) -> None:
    (_, ours), (_, theirs) = sorted(taken.items(), key=lambda each: each[0] != "ours")
    ratios = [a / b if unit == "tokens/s" else b / a for a, b in zip(ours, theirs, strict=True)]
    place.emit(Figure(f"{name}, ours", unit, ours))
    place.emit(Figure(f"{name}, transformers", unit, theirs))
    place.emit(Figure(f"{name}, ours of transformers", "x", ratios, note="more is better"))


def _decode(place: Workplace, model: Transformer, beside: Peer, batch: int, new: int) -> None:
    """The tokens after the first."""
    positions = fitting(place, model, batch, new, copies=2)
    if positions is None:
        place.lacks(f"batch {batch} beside transformers: {place.free() / 2**30:.0f} GiB are free for caches")
        return
    length, _ = lengths(batch, positions, new)
    prompts = random_prompts([length] * batch, high=model.vocab_size)
    room = cache_tokens(model, batch, positions, new)
    ours = Ours(Llama(model, tokenizer(), prefix_reuse=False, cache_tokens=room))

    def rate(peer: Peer) -> float:
        first = _taken(peer, prompts, 1)
        return batch * new / (_taken(peer, prompts, 1 + new) - first)

    taken = in_turns([ours, beside], rate, place.rounds(3))
    _compare(place, f"7B, batch {batch} at {positions} positions", "tokens/s", taken)


def _prefill(place: Workplace, model: Transformer, beside: Peer, length: int) -> None:
    prompts = random_prompts([length], high=model.vocab_size)
    ours = Ours(Llama(model, tokenizer(), prefix_reuse=False, cache_tokens=length + 2 * model.block))
    taken = in_turns([ours, beside], lambda peer: 1000 * _taken(peer, prompts, 1), place.rounds(5))
    _compare(place, f"7B, prompt of {length:,} tokens", "ms", taken)


def run(place: Workplace) -> None:
    """Decoding at batch 1 and 64, and a prompt of 2,048 tokens."""
    model = make_model(shape("7B", place.tiny), place.device)
    beside = make_transformers(model)
    for batch, new in ((1, 4), (3, 4)) if place.tiny else ((1, 64), (64, 64)):
        _decode(place, model, beside, batch, new)
    _prefill(place, model, beside, 16 if place.tiny else 2048)
