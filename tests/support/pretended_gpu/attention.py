"""Attention kernels that torch has for CUDA alone, as their documentation says what they compute.

Each rounds once, from float32. `causal` stands at the lower right: the last query sees the last key. What
FlashAttention asks for is asked for here.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["KERNELS", "chosen", "flash_of_lengths", "lacking"]

_16_BIT = (torch.float16, torch.bfloat16)
# What the kernel for sequences of different lengths computes in; a test may let it compute in float32 as well.
COMPUTES = [*_16_BIT]
# Arguments that this torch's operator has, and an older one's has not.
_LACKING: set[str] = set()
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


def _attention(
    q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: Any, *, with_lse: bool = True
) -> tuple[Any, Any]:
    """Of (batch, heads, length, head_dim), with fewer key heads if need be -> output, log-sum-exp (float32)."""
    (batch, heads, queries, dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    # The queries of heads that share their keys lie one behind the other.
    together = q.float().reshape(batch, kv_heads, -1, dim)
    scores = (together @ k.float().transpose(-1, -2)).view(batch, heads, queries, keys)
    scores *= q.shape[-1] ** -0.5 if scale is None else scale
    if causal and queries > 1:
        scores.masked_fill_(torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    out = scores.softmax(-1).view(batch, kv_heads, -1, keys) @ v.float()
    # The kernels give memory in the order (batch, length, heads, head_dim).
    out = out.view(q.shape).to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    return out, scores.logsumexp(-1) if with_lse else None


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


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def _check_numbers(count: int, **given: Any) -> None:
    """Of arrays of int32 that are read by address."""
    for name, x in given.items():
        _check(x.dtype == torch.int32, f"{name} must have dtype int32")
        _check(x.is_contiguous(), f"{name} must be contiguous")
        _check(x.shape == (count,), f"{name} must have shape ({count})")


def flash_of_lengths(
    q: Any,
    k: Any,
    v: Any,
    ends_q: Any,
    firsts_k: Any,
    most_q: int,
    most_k: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: Any = None,
    window_size_left: Any = None,
    window_size_right: Any = None,
    seqused_k: Any = None,
    alibi_slopes: Any = None,
    block_table: Any = None,
    num_splits: Any = None,
) -> Any:
    """`_flash_attention_forward` of sequences one behind the other, as FlashAttention-2 has it."""
    named = {"seqused_k": seqused_k, "block_table": block_table, "num_splits": num_splits}
    if unknown := [name for name in _LACKING if named[name] is not None]:
        raise TypeError(f"aten::_flash_attention_forward() got an unexpected keyword argument '{unknown[0]}'")
    assert (dropout, debug, window_size_left, window_size_right, alibi_slopes) == (
        0.0,
        False,
        None,
        None,
        None,
    )
    _check(q.dtype in COMPUTES, "FlashAttention only support fp16 and bf16 data type")
    _check(k.dtype == q.dtype == v.dtype, "query, key and value must have the same dtype")
    _check(
        q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "Input tensor must have contiguous last dimension"
    )
    _check(ends_q is not None and firsts_k is not None, "cu_seqlens_q and cu_seqlens_k must be both set")
    (rows_q, heads, dim), count = q.shape, len(ends_q) - 1
    _check(count > 0, "batch size must be positive")
    _check(dim % 8 == 0 and dim <= 256, "head_size must be a multiple of 8, at most 256")
    # Sixteen bytes are read at once.
    whole = [
        x.data_ptr() % 16 == 0 and all(n * x.itemsize % 16 == 0 for n in x.stride()[:-1]) for x in (q, k, v)
    ]
    _check(all(whole), "misaligned address")
    _check_numbers(count + 1, cu_seqlens_q=ends_q, cu_seqlens_k=firsts_k)
    if seqused_k is not None:
        _check_numbers(count, seqused_k=seqused_k)
    kv_heads = k.shape[-2]
    _check(heads % kv_heads == 0, "Number of heads in key/value must divide number of heads in query")
    if block_table is None:
        _check(
            k.shape == v.shape == (len(k), kv_heads, dim),
            "k must have shape (total_k, num_heads_k, head_size)",
        )
    else:
        _check(k.dim() == 4 and k.shape == v.shape, "k must have shape (num_blocks, page_block_size, ...)")
        _check(k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256")
        _check(block_table.dtype == torch.int32, "block_table must have dtype torch.int32")
        _check(block_table.stride(-1) == 1, "block_table must have contiguous last dimension")
        _check(len(block_table) == count, "block_table must have shape (batch_size, max_num_blocks_per_seq)")
        _check(seqused_k is not None, "block_table requires seqused_k")
    starts, firsts = ends_q.tolist(), firsts_k.tolist()
    lengths = [b - a for a, b in itertools.pairwise(firsts)] if seqused_k is None else seqused_k.tolist()
    if most_q == 1:  # queries of a group of heads are then taken for those of one head, one for each sequence
        _check(rows_q == count, "q must have shape (batch_size, num_heads, head_size)")
    counts = [b - a for a, b in itertools.pairwise(starts)]
    for new, length in zip(counts, lengths, strict=True):
        assert new <= most_q, f"a sequence has {new} queries, and max_q is {most_q}"
        assert length <= most_k, f"a sequence has {length} keys, and max_k is {most_k}"
    # A kernel writes nothing for a row that no sequence has, nor for what lies beyond the greatest lengths.
    out = torch.full_like(q, torch.nan)
    alike: dict[tuple[int, int], list[int]] = {}
    for i, sizes in enumerate(zip(counts, lengths, strict=True)):
        alike.setdefault(sizes, []).append(i)
    for (new, length), mine in alike.items():
        rows = torch.tensor(starts)[mine, None] + torch.arange(new)
        if block_table is None:
            assert all(0 <= firsts[i] <= len(k) - length for i in mine), "keys lie beyond the end"
            places = torch.tensor(firsts)[mine, None] + torch.arange(length)
            seen = [x[places] for x in (k, v)]
        else:
            used = block_table[mine, : -(-length // k.shape[1])].long()
            assert used.shape[1] * k.shape[1] >= length, "keys lie beyond the end"
            seen = [x[used].flatten(1, 2)[:, :length] for x in (k, v)]
        found, _ = _attention(
            *(x.transpose(1, 2) for x in (q[rows], *seen)), None, causal, scale, with_lse=False
        )
        out[rows] = found.transpose(1, 2)
    # Nobody here asks for log-sum-exps.
    sums = torch.full((heads, rows_q), torch.nan)
    nothing = torch.zeros((), dtype=torch.long)
    return out, sums, nothing, nothing, torch.empty(0)


@contextlib.contextmanager
def lacking(*arguments: str) -> Iterator[None]:
    """Within it, the operator takes no such arguments. Who asks its schema is not told."""
    _LACKING.update(arguments)
    try:
        yield
    finally:
        _LACKING.difference_update(arguments)


KERNELS = {
    aten._flash_attention_forward.default: flash_of_lengths,
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
}
