"""The members of the family, by their shapes: a guess to inform people, never a switch for behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from .args import ModelArgs

__all__ = ["MEMBERS", "Member", "context_of", "member_of"]


@dataclass(frozen=True)
class Member:
    """One size of Code Llama: its name, shape, feed-forward dimension, shards in Meta's layout, and
    rows of the embedding of its base model."""

    name: str
    dim: int
    n_layers: int
    n_heads: int
    kv_heads: int
    ffn_dim: int
    shards: int
    vocab_size: int


MEMBERS = (
    Member("7B", 4096, 32, 32, 32, 11008, 1, 32016),
    Member("13B", 5120, 40, 40, 40, 13824, 2, 32016),
    Member("34B", 8192, 48, 64, 8, 22016, 4, 32000),
    Member("70B", 8192, 80, 64, 8, 28672, 8, 32016),
)


def member_of(args: ModelArgs) -> Member | None:
    """The member with these shapes; Llama 2 has the same for 7B, 13B and 70B."""
    shape = (args.dim, args.n_layers, args.n_heads, args.kv_heads, args.ffn_dim)
    for member in MEMBERS:
        if shape == (member.dim, member.n_layers, member.n_heads, member.kv_heads, member.ffn_dim):
            return member
    return None


def context_of(args: ModelArgs) -> int | None:
    """Tokens of a sequence in a member's training, where shapes and rope_theta are those of one; else None.

    By Meta's model cards. rope_theta alone tells nothing: any model may have any.
    """
    member = member_of(args)
    if member is None:
        return None
    if args.rope_theta == 1e6:
        return 16384
    # Of the 70B that is Instruct, or Llama 2, whose training had the same.
    return 4096 if args.rope_theta == 1e4 and member.name == "70B" else None


def args_of(member: Member) -> ModelArgs:
    """ModelArgs with a member's shapes, as its params.json has them."""
    multiple_of, multiplier = (4096, 1.3) if member.name == "70B" else (256, 1.0)
    return ModelArgs(
        dim=member.dim,
        n_layers=member.n_layers,
        n_heads=member.n_heads,
        n_kv_heads=member.kv_heads,
        vocab_size=member.vocab_size,
        multiple_of=multiple_of,
        ffn_dim_multiplier=multiplier,
        rope_theta=1e6,
    )
