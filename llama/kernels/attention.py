"""Causal attention of the newest tokens of one sequence over its cached keys and values, in PyTorch.

The last row of the table: for every device and dtype that csrc/attention.c does not take.

Shapes: T new tokens, S cached positions (the T new ones are the last of them), H query heads, K key/value
heads (H = K * G), D head dimension. Key heads are never repeated in memory and no T x S score matrix outlives
a kernel, so memory is linear in S.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from . import cached

if TYPE_CHECKING:
    from ..kv_cache import Step

__all__ = ["attend", "causal_attention", "gather", "store"]

# Bytes of one float32 block of keys in the CPU's 16-bit decode path: small enough for its caches.
_BLOCK_BYTES = 1 << 20
# Queries of one tile where an explicit mask is needed.
_TILE = 128
_FLASH_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
) -> torch.Tensor:
    """Store a step's T tokens in a layer's blocks; each attends to its sequence up to itself -> (T, H, D).

    Args:
        keys, values: (K, blocks, B, D), contiguous, of the whole pool. Rows of int8 caches are as in cached.py.
    """
    store(k_TKD, v_TKD, keys, values, step.tensors.slots)
    out_THD = torch.empty_like(q_THD)
    for i in range(len(step)):
        rows = slice(int(step.firsts[i]), int(step.firsts[i + 1]))
        length = int(step.lengths[i])
        k_KSD, v_KSD = (gather(x, step.tensors.tables[i], length, q_THD.dtype) for x in (keys, values))
        out = causal_attention(q_THD[rows], k_KSD, v_KSD)
        start = int(step.starts[i])
        out_THD[rows] = _with_nan(out, q_THD[rows], k_KSD[:, start:]) if q_THD.is_cpu else out
    return out_THD


def _with_nan(out_THD: torch.Tensor, q_THD: torch.Tensor, k_KTD: torch.Tensor) -> torch.Tensor:
    """Make NaN what a head gives for a query that has a NaN, or that sees one in a key of this step.

    torch's CPU kernels (2.13) lose it where all scores of a query are NaN: the text would be wrong without a word.
    """
    by_key_KT = k_KTD.isnan().any(2).cummax(1).values
    bad_TH = q_THD.isnan().any(2) | by_key_KT.T.repeat_interleave(q_THD.shape[1] // len(k_KTD), 1)
    return out_THD.masked_fill(bad_TH[..., None], torch.nan)


def store(
    k_TKD: torch.Tensor, v_TKD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots_T: torch.Tensor
) -> None:
    """Store T tokens in slots of a layer's blocks (K, blocks, B, row)."""
    for x_TKD, blocks in ((k_TKD, keys), (v_TKD, values)):
        rows = x_TKD if cached.format_of(blocks) != cached.INT8 else cached.quantize(x_TKD)
        blocks.flatten(1, 2)[:, slots_T] = rows.transpose(0, 1)


def gather(blocks: torch.Tensor, table: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """The first `length` positions of a sequence, in memory of their own -> (K, length, D)."""
    used = table[: -(-length // blocks.shape[2])]
    rows = blocks[:, used].flatten(1, 2)[:, :length]
    return rows if cached.format_of(blocks) != cached.INT8 else cached.dequantize(rows, dtype)


def causal_attention(q_THD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
    """PyTorch's kernels: softmax(q k^T / sqrt(D)) v for queries at the last T of S positions -> (T, H, D)."""
    T, H, D = q_THD.shape
    K, S, _ = k_KSD.shape
    if T == 1:
        return _decode(q_THD.view(K, H // K, D), k_KSD, v_KSD).reshape(1, H, D)
    q_1HTD = q_THD.transpose(0, 1)[None]
    gqa = K != H
    if T == S:
        out = F.scaled_dot_product_attention(q_1HTD, k_KSD[None], v_KSD[None], is_causal=True, enable_gqa=gqa)
    elif q_THD.device.type == "cpu" and _FLASH_CPU is not None:
        out = _past_and_present(q_1HTD, k_KSD, v_KSD)
    else:
        out = _tiles(q_1HTD, k_KSD[None], v_KSD[None], gqa)
    return out[0].transpose(0, 1)


def _decode(q_KGD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
    """One query sees every position, so the G query heads of a key head are the rows of one product."""
    if q_KGD.device.type != "cpu" or q_KGD.dtype == torch.float32:
        return F.scaled_dot_product_attention(q_KGD[None], k_KSD[None], v_KSD[None])[0]
    # On the CPU, 16-bit attention over few rows is several times slower than float32 (docs/log.md).
    # Keys go block by block, so that the float32 copies stay in the CPU's caches.
    K, S, D = k_KSD.shape
    block = max(64, _BLOCK_BYTES // (4 * K * D))
    q = q_KGD.float() * D**-0.5
    bounds = [(a, min(a + block, S)) for a in range(0, S, block)]
    scores = [torch.bmm(q, k_KSD[:, a:b].float().transpose(1, 2)) for a, b in bounds]
    weights = torch.softmax(scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1), dim=-1)
    a, b = bounds[0]
    out = torch.bmm(weights[..., a:b], v_KSD[:, a:b].float())
    for a, b in bounds[1:]:
        out.baddbmm_(weights[..., a:b], v_KSD[:, a:b].float())
    return out.to(q_KGD.dtype)


def _grouped(q_1HTD: torch.Tensor, k_KSD: torch.Tensor) -> torch.Tensor:
    """Queries as (K, G, T, D): a batch entry for each key head, whose G query heads are the entry's heads."""
    _, H, T, D = q_1HTD.shape
    return q_1HTD.view(k_KSD.shape[0], H // k_KSD.shape[0], T, D)


def _past_and_present(q_1HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
    """Full attention to the past and causal attention within the chunk, joined by their log-sum-exps."""
    assert _FLASH_CPU is not None
    q_KGTD = _grouped(q_1HTD, k_KSD)
    K, G, T, D = q_KGTD.shape
    past = k_KSD.shape[1] - T

    def shared(x_KSD: torch.Tensor) -> torch.Tensor:
        return x_KSD[:, None].expand(-1, G, -1, -1)

    before, lse_before = _FLASH_CPU(q_KGTD, shared(k_KSD[:, :past]), shared(v_KSD[:, :past]), 0.0, False)
    within, lse_within = _FLASH_CPU(q_KGTD, shared(k_KSD[:, past:]), shared(v_KSD[:, past:]), 0.0, True)
    share = torch.sigmoid(lse_before - lse_within)[..., None].to(before.dtype)
    return torch.lerp(within, before, share).view(1, K * G, T, D)


def _tiles(q_1HTD: torch.Tensor, k_1KSD: torch.Tensor, v_1KSD: torch.Tensor, gqa: bool) -> torch.Tensor:
    """For devices whose kernels know no causal offset: tiles of queries, each with its own small mask."""
    T, S = q_1HTD.shape[2], k_1KSD.shape[2]
    key = torch.arange(S, device=q_1HTD.device)
    out = torch.empty_like(q_1HTD)
    for a in range(0, T, _TILE):
        b = min(a + _TILE, T)
        seen = S - T + b
        query = torch.arange(S - T + a, seen, device=q_1HTD.device)
        out[:, :, a:b] = F.scaled_dot_product_attention(
            q_1HTD[:, :, a:b],
            k_1KSD[:, :, :seen],
            v_1KSD[:, :, :seen],
            attn_mask=key[:seen] <= query[:, None],
            enable_gqa=gqa,
        )
    return out
