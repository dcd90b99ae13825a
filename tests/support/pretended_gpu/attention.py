"""Attention kernels that torch has for CUDA alone, as their documentation says what they compute.

Each rounds once, from float32. `causal` stands at the lower right: the last query sees the last key.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["KERNELS", "chosen"]

_16_BIT = (torch.float16, torch.bfloat16)
aten = torch.ops.aten


def chosen(original: Any) -> Any:
    """`scaled_dot_product_attention` as it is on CUDA. The choice is made in C++, which without CUDA has but one."""

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: Any = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        sizes = query.dim() == 4 and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
        shifted = (
            is_causal and query.shape[-2] != key.shape[-2]
        )  # at the upper left, which the kernels do not have
        if query.device.type == "cuda" and sizes and not shifted:
            if attn_mask is None and query.dtype in _16_BIT:
                flash = aten._scaled_dot_product_flash_attention
                return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
            if query.shape[1] == key.shape[1]:
                efficient = aten._scaled_dot_product_efficient_attention
                return efficient(query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]
        found: torch.Tensor = original(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return found

    return attention


def _attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: Any) -> tuple[Any, Any]:
    """Of (batch, heads, length, head_dim), with fewer key heads if need be -> output, log-sum-exp (float32)."""
    queries, keys, group = q.shape[-2], k.shape[-2], q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = (q.float() @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # The kernels give memory in the order (batch, length, heads, head_dim).
    out = (scores.softmax(-1) @ v).to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    return out, scores.logsumexp(-1)


def _flash(
    q: Any,
    k: Any,
    v: Any,
    dropout: float = 0.0,
    causal: bool = False,
    debug: bool = False,
    *,
    scale: Any = None,
) -> Any:
    if q.dtype not in _16_BIT:
        raise RuntimeError(f"FlashAttention only support fp16 and bf16 data type, not {q.dtype}")
    out, lse = _attention(q, k, v, None, causal, scale)
    nothing = torch.zeros((), dtype=torch.long)
    return out, lse, None, None, q.shape[-2], k.shape[-2], nothing, nothing, torch.empty(0)


def _efficient(
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    with_lse: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: Any = None,
) -> Any:
    if q.shape[1] != k.shape[1]:
        raise RuntimeError("efficient attention needs as many key heads as query heads")
    out, lse = _attention(q, k, v, bias, causal, scale)
    nothing = torch.zeros((), dtype=torch.long)
    return out, lse if with_lse else lse[..., :0], nothing, nothing


KERNELS = {
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
}
