"""The steps that take most memory, for a GPU: there the cache is taken whole, and must leave room for them."""

from __future__ import annotations

from array import array

import torch

from ..distributed.devices import current_device
from ..kernels.steps import Part
from ..model import Transformer
from .block_pool import BlockPool
from .cache_memory import CacheMemory
from .limits import Limits
from .rows import SCORED_ROWS
from .runner import Inputs, Runner

__all__ = ["run_largest"]

# Alternatives to each token. More of them, up to the vocabulary's size, may be asked for, and take more memory.
_ALTERNATIVES = 128


@torch.inference_mode()
def run_largest(model: Transformer) -> None:
    """Run the steps that take most memory, for what they take, in a cache of its own of max_seq_len positions.

    These are as many tokens as a step may have, in chunks at the end of max_seq_len positions, of as many sequences as
    that takes; one token of max_batch_size sequences there; and both: chunks beside one token of all other sequences,
    where attention that gathers positions does so beside the activations of a whole step. In the first all tokens are
    scored. In each, as many next tokens are drawn as a step can decide, each of them with every logit changed and with
    alternatives. All share the blocks of one sequence, which are no neighbours, as attention that gathers them takes
    most: what comes out means nothing.
    """
    limits = Limits.for_model(model, None, None)
    seq, batch = model.params.max_seq_len, limits.max_batch_size
    tokens = min(limits.step_tokens, batch * seq)
    blocks = BlockPool(seq, model.block)
    table = array("i", range(blocks.total, 0, -1))
    runner = Runner(model, CacheMemory(model, blocks))
    beside = _chunks(tokens, seq, least=min(batch, tokens))
    # A step decides a token for each sequence and sample, and for what its decodes have drafted.
    decided = batch + limits.draft_tokens
    with current_device(model.device):
        for lengths, scored in ((_chunks(tokens, seq), tokens), ([1] * batch, 0), (beside, 0)):
            parts = [Part(table, seq - length, length) for length in lengths]
            counts = [min(SCORED_ROWS, scored - at) for at in range(0, scored, SCORED_ROWS)]
            inputs = _inputs(model, sum(lengths), scored, decided)
            top = min(model.vocab_size, _ALTERNATIVES)
            runner.compute(runner.memory.pool.step(parts), inputs, [*counts, decided], top)


def _chunks(tokens: int, most: int, least: int = 1) -> list[int]:
    """Lengths of chunks that have so many tokens together, the first ones the most that a sequence has; at least so
    many chunks."""
    found: list[int] = []
    while tokens:
        behind = max(0, least - len(found) - 1)  # have one token each
        found.append(min(most, tokens - behind))
        tokens -= found[-1]
    return found


def _inputs(model: Transformer, tokens: int, scored: int, decided: int) -> Inputs:
    """Numbers of a step, as large as they come; what they are does not matter."""
    changes = 1 << (decided * model.vocab_size - 1).bit_length()
    # All travel in one buffer, which grows to the next power of two.
    buffer = torch.zeros(4 * changes, dtype=torch.int64, device=model.device)
    ids = torch.zeros(tokens + scored, dtype=torch.int64, device=model.device)
    return Inputs(
        tokens=ids[:tokens],
        copies=buffer[:0].view(2, 0),
        wanted=torch.arange(scored + decided, device=model.device) % tokens,
        known=ids[tokens:],
        draws=torch.full((decided, 5), 0.5, dtype=torch.float64, device=model.device),
        changed=buffer[:changes],
        changes=buffer[changes:].view(torch.float32)[: 3 * changes].view(3, changes),
    )
