"""Law: whatever path is taken, attention is softmax(q k^T / sqrt(D)) v, as a float64 loop writes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama.kernels import attention
from llama.kernels.attention import causal_attention

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def make(T, S, K, G, D, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        # Queries twice as large: peaked weights, so that one key too many or too few shows.
        return (2 * torch.randn(*shape, generator=generator)).to(dtype)

    return draw(T, K * G, D), draw(K, S, D), draw(K, S, D)


def oracle(q_THD, k_KSD, v_KSD):
    """Every query by itself, in float64: it sees the keys up to its own position, and no other."""
    T, H, D = q_THD.shape
    K, S, _ = k_KSD.shape
    q, k, v = q_THD.double(), k_KSD.double(), v_KSD.double()
    out = torch.empty(T, H, D, dtype=torch.float64)
    for t in range(T):
        seen = S - T + t + 1
        for h in range(H):
            keys, values = k[h // (H // K), :seen], v[h // (H // K), :seen]
            out[t, h] = torch.softmax(keys @ q[t, h] / D**0.5, dim=0) @ values
    return out


def close(got, q, k, v):
    assert got.shape == q.shape
    assert got.dtype == q.dtype
    error = (got.double() - oracle(q, k, v)).abs().max().item()
    assert error < TOLERANCE[q.dtype] * v.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("K", "G"), [(4, 1), (2, 4), (1, 3)])
@settings(deadline=None, derandomize=True, max_examples=25)
@given(T=st.integers(1, 9), past=st.integers(0, 12), D=st.sampled_from([4, 8, 16]))
def test_attention_is_the_float64_oracle(dtype, K, G, T, past, D):
    q, k, v = make(T, T + past, K, G, D, dtype)
    close(causal_attention(q, k, v), q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "S"), [(1, 400), (40, 300), (150, 150), (2, 129), (65, 66)])
def test_longer_runs_than_a_kernel_block(T, S, dtype):
    q, k, v = make(T, S, 2, 2, 16, dtype)
    close(causal_attention(q, k, v), q, k, v)


@pytest.mark.parametrize("S", [1, 63, 64, 65, 200])
def test_decode_in_blocks_of_keys(monkeypatch, S):
    """The 16-bit decode path cuts the keys into blocks; 64 keys are the smallest block."""
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 1)
    q, k, v = make(1, S, 2, 4, 8, torch.bfloat16)
    close(causal_attention(q, k, v), q, k, v)


@pytest.mark.parametrize("tile", [1, 3, 128])
@settings(deadline=None, derandomize=True, max_examples=25)
@given(T=st.integers(1, 9), past=st.integers(0, 12), G=st.sampled_from([1, 4]))
def test_tiles_are_the_float64_oracle(tile, T, past, G):
    """The path of devices without an offset in their kernels, called directly: no such device is here."""
    q, k, v = make(T, T + past, 2, G, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_TILE", tile)
        out = attention._tiles(q.transpose(0, 1)[None], k[None], v[None], G > 1)
    close(out[0].transpose(0, 1), q, k, v)


@pytest.mark.parametrize("past", [1, 5, 70])
@pytest.mark.parametrize("T", [2, 7, 40])
def test_without_the_cpu_kernel_tiles_take_over(monkeypatch, T, past):
    monkeypatch.setattr(attention, "_FLASH_CPU", None)
    q, k, v = make(T, T + past, 2, 4, 8)
    close(causal_attention(q, k, v), q, k, v)


@pytest.mark.skipif(attention._FLASH_CPU is None, reason="this torch has no flash kernel for the CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "past"), [(2, 1), (3, 40), (40, 3), (33, 33)])
def test_past_and_present_is_the_float64_oracle(T, past, dtype):
    q, k, v = make(T, T + past, 2, 4, 16, dtype)
    pairs = [*(x[:, past:] for x in (k, v)), *([x[:, :past]] for x in (k, v))]
    out = attention._past_and_present(q.transpose(0, 1)[None], *pairs)
    close(out[0].transpose(0, 1), q, k, v)


def test_a_past_that_dominates_or_vanishes():
    """The two parts are weighed by log-sum-exps that lie hundreds apart: no overflow, no NaN."""
    for past_scale, present_scale in ((30.0, 0.01), (0.01, 30.0)):
        q, k, v = make(4, 12, 2, 2, 8)
        k = torch.cat([k[:, :8] * past_scale, k[:, 8:] * present_scale], dim=1)
        close(causal_attention(q, k, v), q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "S"), [(1, 7), (4, 4), (3, 7)])
def test_keys_may_be_a_part_of_a_larger_store(T, S, dtype):
    """As the cache hands them out: a slice of an allocation, whose rest must not be read."""
    q, k, v = make(T, S, 2, 4, 8, dtype)
    stores = [torch.full((2, 64, 8), torch.nan, dtype=dtype) for _ in range(2)]
    for store, x in zip(stores, (k, v), strict=True):
        store[:, :S] = x
    close(causal_attention(q, stores[0][:, :S], stores[1][:, :S]), q, k, v)


class Largest(TorchDispatchMode):
    """Elements of the largest storage that any operator's result lies in."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # to skip it, torch would import its compiler: two seconds

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.mark.parametrize("path", ["chosen", "tiles"])
@pytest.mark.parametrize(("T", "S"), [(1, 8192), (512, 8192), (2048, 2048), (1000, 1024)])
def test_no_tensor_is_as_large_as_the_score_matrix(monkeypatch, path, T, S):
    """Keys, values, queries and their like only: nothing grows with T x S, heads are not repeated."""
    if path == "tiles":
        monkeypatch.setattr(attention, "_FLASH_CPU", None)
    K, G, D = 1, 8, 8
    q, k, v = make(T, S, K, G, D)
    with Largest() as largest:
        causal_attention(q, k, v)
    linear = max(q.numel(), k.numel(), K * G * S if T == 1 else 0)
    tile = attention._TILE * S if path == "tiles" else 0
    assert 0 < largest.numel <= max(linear, tile)
    assert T == 1 or largest.numel < T * S
