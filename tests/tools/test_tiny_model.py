"""Laws of the trainable model: it is the runtime's model, and its faster parts are the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import ROOT
from tiny_eval import load_folder, token_nats
from tiny_model import TinyConfig, TinyLlama, blocked_attention, weighted_loss
from torch.nn import functional as F

from llama import Llama


def test_it_scores_as_the_runtime_does() -> None:
    """Two implementations that share no code, on the checkpoint of the project."""
    folder = ROOT / "CodeLlama-tiny"
    model, tokenizer = load_folder(folder)
    ids = tokenizer.document(tokenizer.sp("def add(a, b):\n    return a + b\n"))
    with Llama.build(folder, max_seq_len=64, device="cpu", dtype="float32") as llama:
        _, scores = llama.generate([ids], 1, temperature=0, logprobs=True, echo=True)
    assert scores is not None
    assert token_nats(model, ids) == pytest.approx(-sum(scores[0][: len(ids)]), rel=1e-5)


@pytest.mark.parametrize("length", [5, 256, 300, 600])
def test_blocked_attention_is_causal_attention(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8) for _ in range(3))
    torch.testing.assert_close(
        blocked_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        rtol=1e-4,
        atol=1e-5,
    )


def test_weighted_loss_and_its_gradients_are_those_of_cross_entropy() -> None:
    """More rows than are held at once, a weight of zero among them; a row may leave an id out."""
    torch.manual_seed(0)
    x = torch.randn(2500, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (2500,))
    counts = torch.randint(0, 3, (2500,)).float()
    without = torch.where((torch.arange(2500) % 3 == 0) & (targets != 7), 7, -1)
    loss = weighted_loss(x, weight, targets, counts, without, torch.float32)
    left_out = F.one_hot(without.clamp(min=0), 50).bool() & (without >= 0)[:, None]
    logits = (x @ weight.t()).masked_fill(left_out, -math.inf)
    each = F.cross_entropy(logits, targets, reduction="none")
    plain = (each * counts).sum() / counts.sum()
    torch.testing.assert_close(loss, plain)
    for got, expected in zip(
        torch.autograd.grad(3 * loss, (x, weight)), torch.autograd.grad(3 * plain, (x, weight)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_text_longer_than_the_context_is_scored_once_token_by_token() -> None:
    """Against one forward over all, by a model whose context is long enough for it."""
    torch.manual_seed(0)
    config = TinyConfig(dim=32, n_layers=1)
    long = TinyLlama(config, 64, context=64).eval()
    long.init_weights()
    short = TinyLlama(config, 64, context=16).eval()
    short.load_state_dict(long.state_dict())
    with torch.no_grad():
        long.layers[0].attention.wo.weight.zero_()  # without attention what came before does not matter
        short.layers[0].attention.wo.weight.zero_()
    for length in (2, 16, 17, 18, 33, 50):
        ids = torch.randint(0, 64, (length,)).tolist()
        assert token_nats(short, ids) == pytest.approx(token_nats(long, ids), rel=1e-5), length


def test_too_long_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="17 positions exceed the context of 16"):
        TinyLlama(TinyConfig(dim=32, n_layers=1), 64, context=16)(torch.zeros(1, 17, dtype=torch.int64))
