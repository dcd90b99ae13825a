"""Sampled tokens become tokens, scores and text of a sequence. Never imports torch.

One append to `SequenceState.journal` makes a step count; `SequenceState.restore` cuts off whatever an
interrupt left before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .request import FinishReason
from .sequence import JournalEntry, SequenceState

if TYPE_CHECKING:
    from .rows import SampledToken

__all__ = ["extend", "finish"]


def extend(sequence: SequenceState, sampled: Sequence[SampledToken], draft: Sequence[int], now: float) -> int:
    """Append sampled tokens up to the first that differs from the draft, or to the end of the sequence.

    Returns: how many tokens of the draft were right.

    Args:
        sampled: one for each drafted token and one more; none if no new token was asked for.
    """
    text, accepted = "", 0
    kept, reason = len(sequence.tokens), None if sampled else FinishReason.LENGTH
    for i, each in enumerate(sampled):
        piece, kept, reason = _append(sequence, each)
        text += piece
        if reason is not None or i == len(draft) or each.token != draft[i]:
            break
        accepted += 1
    if sampled and sequence.times.first_token is None:
        sequence.times.first_token = now
    if draft:
        sequence.computed -= len(draft) - accepted
        sequence.drafted += len(draft)
        sequence.accepted += accepted
        if sequence.drafter is not None:
            sequence.drafter.judge(len(draft), accepted)
    if reason is not None:
        finish(sequence, text, kept, reason, now)
    else:
        settled = len(sequence.request.prompt) + sequence.detokenizer.kept_tokens
        sequence.journal.append(JournalEntry(text, kept, settled))
    return accepted


def finish(sequence: SequenceState, text: str, kept: int, reason: FinishReason, now: float) -> None:
    """End a sequence with its last text; the first `kept` of its tokens, prompt included, count."""
    sequence.times.ended = now
    scores = kept - len(sequence.request.prompt)
    dropped = zip(sequence.tokens[kept:], sequence.scores[scores:], strict=True)
    sequence.journal.append(JournalEntry(text, kept, kept, reason, tuple(dropped)))
    # Only after the append: until then a restore may need the tokens of earlier steps.
    del sequence.tokens[kept:], sequence.scores[scores:]
    sequence.finish_reason = reason
    sequence.drafter = None  # its index is larger than the record


def _append(sequence: SequenceState, sampled: SampledToken) -> tuple[str, int, FinishReason | None]:
    """Append a token -> text that is safe to show, tokens that count, and why it was the last, or None."""
    request, detokenizer, tokens = sequence.request, sequence.detokenizer, sequence.tokens
    token, score = sampled
    text = ""
    reason: FinishReason | None = None
    tokens.append(token)
    sequence.scores.append(score)
    if token in request.stop_ids:
        reason = FinishReason.STOP
    else:
        text = detokenizer.push(token)
        if len(tokens) == len(request.prompt) + request.max_new_tokens:
            reason = FinishReason.LENGTH
    if reason is not None and detokenizer.stopped is None:
        text += detokenizer.finish()
    if detokenizer.stopped is not None:
        return text, len(request.prompt) + detokenizer.kept_tokens, FinishReason.STOP_SEQUENCE
    return text, len(tokens) - (reason is FinishReason.STOP), reason
