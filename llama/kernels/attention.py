"""Causal attention of a step's tokens over the cached keys and values of their sequences, in PyTorch.

The last row of the table: for every device and dtype that csrc/attention.c and flash.py do not take. On a CPU
sequences go one by one, with a kernel for each run of neighbouring blocks. Elsewhere, where kernels have to be
launched, single tokens of all sequences go together.

Shapes: T new tokens, S cached positions (the T new ones are the last of them), H query heads, K key/value
heads (H = K * G), D head dimension. Key heads are never repeated in memory and no T x S score matrix outlives
a kernel, so memory is linear in S.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from . import cached
from .steps import Step

__all__ = [
    "GATHERED",
    "Batch",
    "attend",
    "attend_launched",
    "batches",
    "causal_attention",
    "gather",
    "once",
    "read",
    "runs",
    "store",
]

# Bytes of one float32 block of keys in the CPU's 16-bit decode path: small enough for its caches.
_BLOCK_BYTES = 1 << 20
# Queries of one tile where an explicit mask is needed.
_TILE = 128
# A sequence in more runs than this is gathered: each run is a kernel.
_MOST_RUNS = 8
# Bytes of keys and values in 16 bits that are gathered at once for several sequences.
GATHERED = 1 << 30
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
    if q_THD.device != keys.device:
        raise RuntimeError(f"tokens on {q_THD.device}, but the keys and values are on {keys.device}")
    if not keys.is_cpu:
        return attend_launched(q_THD, k_TKD, v_TKD, keys, values, step)
    k_TKD, v_TKD = store(k_TKD, v_TKD, keys, values, step.tensors.slots, q_THD.dtype)
    out_THD = torch.empty_like(q_THD)
    for part, (first, end) in enumerate(itertools.pairwise(step.firsts)):
        q, k, v = q_THD[first:end], k_TKD[first:end].transpose(0, 1), v_TKD[first:end].transpose(0, 1)
        seen = [_pieces(x, step, part, q.dtype) for x in (keys, values)]
        out_THD[first:end] = _with_nan(_over_pieces(q, k, v, *seen), q, k)
    return out_THD


def attend_launched(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
) -> torch.Tensor:
    """`attend` where kernels are launched and nothing waits for them: how many there are depends on the chunks in the
    step, and not on the number of single tokens."""
    store(k_TKD, v_TKD, keys, values, step.tensors.slots, q_THD.dtype)
    out_THD = torch.empty_like(q_THD)
    for batch in once(step, batches):
        q = q_THD[batch.rows]
        if batch.slots is None or batch.seen is None:
            k, v = (_whole(x, step, batch.part, q.dtype) for x in (keys, values))
            out_THD[batch.rows] = causal_attention(q, k, v)
        else:
            k, v = (read(x.flatten(1, 2)[:, batch.slots], q.dtype).transpose(0, 1) for x in (keys, values))
            q_NKGD = q.view(len(q), len(keys), -1, q.shape[2])
            out = F.scaled_dot_product_attention(q_NKGD, k, v, attn_mask=batch.seen[:, None, None])
            out_THD[batch.rows] = out.flatten(1, 2)
    return out_THD


class Batch(NamedTuple):
    """Rows of a step that are attended at once where each kernel has to be launched: a chunk of the sequence `part`, or
    single tokens of several sequences, of which all positions are gathered.

    slots (N, S): where each sequence's positions are, up to the longest's; behind its end, that of its first, so that
    nothing is read which may hold a NaN. seen (N, S): whether there is such a position.
    """

    rows: slice
    part: int
    slots: torch.Tensor | None = None
    seen: torch.Tensor | None = None


def batches(step: Step) -> list[Batch]:
    """How a step is attended where kernels are launched. What it makes is on the device, from numbers of the device."""
    found: list[Batch] = []
    size, most = step.pool.size, GATHERED // (4 * step.pool.n_kv_heads * step.pool.head_dim)
    counts = [end - first for first, end in itertools.pairwise(step.firsts)]
    first = 0
    while first < len(step):
        if counts[first] > 1:
            found.append(Batch(slice(step.firsts[first], step.firsts[first + 1]), first))
            first += 1
            continue
        end, longest = first, 0
        while end < len(step) and counts[end] == 1:
            longest = max(longest, step.lengths[end])
            if end > first and longest * (end + 1 - first) > most:
                break
            end += 1
        tables = step.tensors.tables[first:end]
        if end - first < len(step):
            tables = tables[:, : -(-max(step.lengths[first:end]) // size)]
        position = torch.arange(tables.shape[1] * size, device=tables.device)
        seen = position < step.tensors.lengths[first:end, None]
        slots = (tables[:, :, None] * size + position[:size]).flatten(1)
        slots = torch.where(seen, slots, slots[:, :1])
        found.append(Batch(slice(step.firsts[first], step.firsts[end]), first, slots, seen))
        first = end
    return found


def _with_nan(out_THD: torch.Tensor, q_THD: torch.Tensor, k_KTD: torch.Tensor) -> torch.Tensor:
    """Make NaN what a head gives for a query that has a NaN, or that sees one in a key of this step.

    torch's CPU kernels (2.13) lose it where all scores of a query are NaN: the text would be wrong without a word.
    """
    by_key_KT = k_KTD.isnan().any(2).cummax(1).values
    bad_TH = q_THD.isnan().any(2) | by_key_KT.T.repeat_interleave(q_THD.shape[1] // len(k_KTD), 1)
    return out_THD.masked_fill(bad_TH[..., None], torch.nan)


def store(
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots_T: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Store T tokens in slots of a layer's blocks (K, blocks, B, row) -> what a query of that dtype reads there."""
    found = []
    for x_TKD, blocks in ((k_TKD, keys), (v_TKD, values)):
        rows = cached.quantize(x_TKD) if cached.format_of(blocks) == cached.INT8 else x_TKD.to(blocks.dtype)
        blocks.flatten(1, 2)[:, slots_T] = rows.transpose(0, 1)
        found.append(read(rows, dtype))
    return found[0], found[1]


def read(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a cache (..., row) as a query of that dtype reads them, (..., D)."""
    return cached.dequantize(rows, dtype) if cached.format_of(rows) == cached.INT8 else rows


def runs(step: Step) -> list[list[slice]]:
    """Where each sequence's positions are among those of all blocks, one slice for neighbouring blocks: all that a
    single token sees, or what is before a chunk."""
    pairs = zip(step.tables, step.starts, step.lengths, strict=True)
    return [_runs(table, end if end == start + 1 else start, step.pool.size) for table, start, end in pairs]


def _runs(table: array[int], length: int, size: int) -> list[slice]:
    found: list[slice] = []
    for first, block in zip(range(0, length, size), table, strict=False):
        begin = found.pop().start if found and found[-1].stop == block * size else block * size
        found.append(slice(begin, block * size + min(size, length - first)))
    return found


def once(step: Step, make: Callable[[Step], Any]) -> Any:
    """What `make` makes of a step, made in its first layer."""
    if make.__name__ not in step.made:
        step.made[make.__name__] = make(step)
    return step.made[make.__name__]


def _pieces(blocks: torch.Tensor, step: Step, part: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The positions of a sequence in `runs`, (K, some of them, D) each: one for each run; of many runs, one of all."""
    mine = once(step, runs)[part]
    if len(mine) > (_MOST_RUNS if _FLASH_CPU is not None else 1):
        length = sum(run.stop - run.start for run in mine)
        return [gather(blocks, step.tensors.tables[part], length, dtype)]
    return [read(blocks.flatten(1, 2)[:, run], dtype) for run in mine]


def _whole(blocks: torch.Tensor, step: Step, part: int, dtype: torch.dtype) -> torch.Tensor:
    """All positions of a sequence, (K, S, D): in place if they lie in one run."""
    length, size = step.lengths[part], step.pool.size
    run, *more = _runs(step.tables[part], length, size)
    if more:
        return gather(blocks, step.tensors.tables[part], length, dtype)
    return read(blocks.flatten(1, 2)[:, run], dtype)


def gather(blocks: torch.Tensor, table: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """The first `length` positions of a sequence, in memory of their own -> (K, length, D)."""
    used = table[: -(-length // blocks.shape[2])]
    return read(blocks[:, used].flatten(1, 2)[:, :length], dtype)


def causal_attention(q_THD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> torch.Tensor:
    """PyTorch's kernels: softmax(q k^T / sqrt(D)) v for queries at the last T of S positions -> (T, H, D)."""
    T, H, D = q_THD.shape
    K, S, _ = k_KSD.shape
    if T == 1:
        return _decode(q_THD.view(K, H // K, D), [k_KSD], [v_KSD]).reshape(1, H, D)
    q_1HTD = q_THD.transpose(0, 1)[None]
    gqa = K != H
    if T == S:
        out = F.scaled_dot_product_attention(q_1HTD, k_KSD[None], v_KSD[None], is_causal=True, enable_gqa=gqa)
    elif q_THD.is_cpu and _FLASH_CPU is not None:
        past = S - T
        out = _past_and_present(
            q_1HTD, k_KSD[:, past:], v_KSD[:, past:], [k_KSD[:, :past]], [v_KSD[:, :past]]
        )
    else:
        out = _tiles(q_1HTD, k_KSD[None], v_KSD[None], gqa)
    return out[0].transpose(0, 1)


def _over_pieces(
    q_THD: torch.Tensor,
    k_KTD: torch.Tensor,
    v_KTD: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
) -> torch.Tensor:
    """`causal_attention` where positions lie in pieces (K, some, D): all that a single query sees, or what is before a
    chunk, whose own keys and values come with it."""
    T, H, D = q_THD.shape
    if T == 1:
        return _decode(q_THD.view(len(k_KTD), -1, D), keys, values).reshape(1, H, D)
    if not keys:
        return causal_attention(q_THD, k_KTD, v_KTD)
    if _FLASH_CPU is None:
        return causal_attention(q_THD, torch.cat([*keys, k_KTD], 1), torch.cat([*values, v_KTD], 1))
    return _past_and_present(q_THD.transpose(0, 1)[None], k_KTD, v_KTD, keys, values)[0].transpose(0, 1)


def _decode(q_KGD: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """One query sees every position of all pieces (K, some, D), so the G query heads of a key head are the rows of one
    product."""
    if q_KGD.device.type != "cpu" or q_KGD.dtype == torch.float32:
        if len(keys) == 1:
            return F.scaled_dot_product_attention(q_KGD[None], keys[0][None], values[0][None])[0]
        assert _FLASH_CPU is not None
        parts = [_FLASH_CPU(q_KGD[None], k[None], v[None]) for k, v in zip(keys, values, strict=True)]
        return _joined(parts)[0]
    # On the CPU, 16-bit attention over few rows is several times slower than float32 (docs/log.md).
    # Keys go block by block, so that the float32 copies stay in the CPU's caches.
    K, _, D = q_KGD.shape
    block = max(64, _BLOCK_BYTES // (4 * K * D))
    q = q_KGD.float() * D**-0.5
    scores = [torch.bmm(q, k.float().transpose(1, 2)) for piece in keys for k in torch.split(piece, block, 1)]
    weights = torch.softmax(scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1), dim=-1)
    shares = torch.split(weights, [score.shape[-1] for score in scores], -1)
    out = torch.zeros_like(q)
    for share, v in zip(shares, (v for piece in values for v in torch.split(piece, block, 1)), strict=True):
        out.baddbmm_(share, v.float())
    return out.to(q_KGD.dtype)


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention to all positions, from that to some of them and its log-sum-exp (Milakov and Gimelshein 2018)."""
    shares = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    out = parts[0][0].float() * shares[0]
    for (more, _), share in zip(parts[1:], shares[1:], strict=True):
        out.addcmul_(more.float(), share)
    return out.to(parts[0][0].dtype)


def _grouped(q_1HTD: torch.Tensor, k_KSD: torch.Tensor) -> torch.Tensor:
    """Queries as (K, G, T, D): a batch entry for each key head, whose G query heads are the entry's heads."""
    _, H, T, D = q_1HTD.shape
    return q_1HTD.view(k_KSD.shape[0], H // k_KSD.shape[0], T, D)


def _past_and_present(
    q_1HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    v_KTD: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
) -> torch.Tensor:
    """Full attention to pieces of the past (K, some, D) and causal attention within the chunk, joined by their
    log-sum-exps."""
    assert _FLASH_CPU is not None
    q_KGTD = _grouped(q_1HTD, k_KTD)
    shape = (-1, q_KGTD.shape[1], -1, -1)
    pairs = zip([*keys, k_KTD], [*values, v_KTD], strict=True)
    parts = [
        _FLASH_CPU(q_KGTD, k[:, None].expand(shape), v[:, None].expand(shape), 0.0, k is k_KTD)
        for k, v in pairs
    ]
    return _joined(parts).view(q_1HTD.shape)


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
