"""The sizes of Code Llama, recognized by their shapes. This informs people and never switches behaviour.

Never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .args import ModelArgs

__all__ = ["MEMBERS", "Member", "args_of", "context_of", "member_of", "variants_of"]


@dataclass(frozen=True)
class Member:
    """One size of Code Llama.

    `shards`: files in Meta's layout. `vocab_size`: rows of the base model's embedding.
    """

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
    """The member with these shapes. The 7B, 13B and 70B of Llama 2 have the same."""
    shape = (args.dim, args.n_layers, args.n_heads, args.kv_heads, args.ffn_dim)
    for member in MEMBERS:
        if shape == (member.dim, member.n_layers, member.n_heads, member.kv_heads, member.ffn_dim):
            return member
    return None


def context_of(args: ModelArgs) -> int | None:
    """Tokens per sequence in a member's training, by Meta's model cards; None for other models.

    Needs the shapes of a member as well as its rope_theta, which any model may have.
    """
    member = member_of(args)
    if member is None:
        return None
    if args.rope_theta == 1e6:
        return 16384
    # The 70B Instruct; Llama 2 was trained with the same length.
    return 4096 if args.rope_theta == 1e4 and member.name == "70B" else None


def variants_of(args: ModelArgs, has_step: bool) -> tuple[str, ...]:
    """Which of base, instruct and python a member may be, as far as shapes, vocabulary and rope_theta tell.

    None where it is no Code Llama, such as a Llama 2 of the same shapes.

    Args:
        has_step: whether the vocabulary has the piece <step> of the 70B Instruct.
    """
    member = member_of(args)
    if member is None:
        return ()
    if member.name == "70B":
        return ("base", "python") if args.rope_theta == 1e6 else ("instruct",) if has_step else ()
    if args.rope_theta != 1e6:
        return ()
    if member.name == "34B":
        return ("base", "instruct", "python")
    return ("python",) if args.vocab_size == 32000 else ("base", "instruct")


def args_of(member: Member) -> ModelArgs:
    """A member's params.json."""
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
