"""The slice of a tensor that a rank must hold, written out without the package under test."""

from __future__ import annotations

from typing import Any

import torch


def mine(name: str, whole: torch.Tensor, params: dict[str, Any], rank: int, size: int) -> torch.Tensor:
    """What rank `rank` of `size` must hold, by head and by neuron, written a second time."""
    part = name.split(".")[-2]
    if part in ("attention_norm", "ffn_norm", "norm"):
        return whole
    if part in ("wk", "wv"):
        heads = list(whole.reshape(params["n_kv_heads"] or params["n_heads"], -1, whole.shape[1]))
        # The query heads of this rank, and the key/value heads that those attend with.
        queries = params["n_heads"] // size
        group = params["n_heads"] // len(heads)
        wanted = sorted({q // group for q in range(rank * queries, (rank + 1) * queries)})
        return torch.cat([heads[head] for head in wanted])
    if part in ("wo", "w2", "tok_embeddings"):
        each = whole.shape[1] // size
        return whole[:, rank * each : (rank + 1) * each]
    each = whole.shape[0] // size
    return whole[rank * each : (rank + 1) * each]
