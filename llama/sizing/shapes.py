"""The model's tensors under Meta's names: their shapes, and the axis along which each is split over ranks.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from .args import ModelArgs

__all__ = ["AXES", "axis_of", "expected_shapes", "is_product", "tensor_names", "wanted_range"]

# The axis along which a weight is split over ranks, by the last part of its name; None: it is not split.
AXES: dict[str, int | None] = {
    "tok_embeddings": 1,
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w2": 1,
    "w3": 0,
    "attention_norm": None,
    "ffn_norm": None,
    "norm": None,
    "output": 0,
}
_LAYER = (
    *(f"attention.{part}" for part in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.{part}" for part in ("w1", "w2", "w3")),
    "attention_norm",
    "ffn_norm",
)


def axis_of(name: str) -> int | None:
    """The split axis of a tensor, e.g. 0 for "layers.3.attention.wq.weight"."""
    return AXES[_part(name)]


def is_product(name: str) -> bool:
    """Whether a tensor is a matrix of a product: not a norm, nor the embedding, whose rows are looked up."""
    return axis_of(name) is not None and _part(name) != "tok_embeddings"


def tensor_names(n_layers: int) -> Iterator[str]:
    """All tensors of a model, in the order in which a forward pass uses them."""
    yield "tok_embeddings.weight"
    for layer in range(n_layers):
        for part in _LAYER:
            yield f"layers.{layer}.{part}.weight"
    yield "norm.weight"
    yield "output.weight"


def expected_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor before it is split."""
    kv = args.kv_heads * args.head_dim
    by_part: dict[str, tuple[int, ...]] = {
        "tok_embeddings": (args.vocab_size, args.dim),
        "output": (args.vocab_size, args.dim),
        "wq": (args.dim, args.dim),
        "wk": (kv, args.dim),
        "wv": (kv, args.dim),
        "wo": (args.dim, args.dim),
        "w1": (args.ffn_dim, args.dim),
        "w2": (args.dim, args.ffn_dim),
        "w3": (args.ffn_dim, args.dim),
        "attention_norm": (args.dim,),
        "ffn_norm": (args.dim,),
        "norm": (args.dim,),
    }
    return {name: by_part[_part(name)] for name in tensor_names(args.n_layers)}


def wanted_range(name: str, total: int, args: ModelArgs, rank: int, size: int) -> tuple[int, int]:
    """Rank `rank` of `size` holds [start, stop) of the split axis, whose length is `total`.

    If there are more ranks than key/value heads, neighbouring ranks hold the same head.
    """
    pieces = min(size, args.kv_heads) if _part(name) in ("wk", "wv") else size
    piece = rank * pieces // size
    return piece * total // pieces, (piece + 1) * total // pieces


def _part(name: str) -> str:
    """The last part of a tensor's name: "layers.3.attention.wq.weight" -> "wq"."""
    return name.split(".")[-2]
