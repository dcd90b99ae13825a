"""What a step decided becomes tokens, scores and text of a sequence. Never imports torch.

One append to `SequenceState.entered` makes it count; what an interrupt before it leaves is cut off by `restore`.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

from .request import Entry, FinishReason, SequenceState

if TYPE_CHECKING:
    from .runner import SampledToken

__all__ = ["end", "enter"]


def enter(sequence: SequenceState, drawn: Rows[SampledToken], now: float) -> bool:
    """Append what was decided, up to the first token that is not as drafted, or to the end -> whether that."""
    draft, sequence.draft = sequence.draft, []
    text, accepted = "", 0
    kept, reason = len(sequence.tokens), None if drawn else FinishReason.LENGTH
    for i, each in enumerate(drawn):
        piece, kept, reason = _append(sequence, each)
        text += piece
        if reason is not None or i == len(draft) or each.token != draft[i]:
            break
        accepted += 1
    if drawn and sequence.times.first_token is None:
        sequence.times.first_token = now
    if accepted < len(draft):
        sequence.computed -= len(draft) - accepted
        sequence.cache.truncate(sequence.computed)
    if sequence.drafter is not None:
        sequence.drafter.judge(len(draft), accepted)
    if reason is not None:
        end(sequence, text, kept, reason, now)
        return True
    sequence.entered.append(Entry(text, kept))
    return False


def end(sequence: SequenceState, text: str, kept: int, reason: FinishReason, now: float) -> None:
    """Enter its last text; `kept` of its tokens, prompt included, count."""
    sequence.times.ended = now
    sequence.entered.append(Entry(text, kept, reason))
    # Cut only now: what was entered before this step may have to be found again.
    del sequence.tokens[kept:], sequence.scores[kept - len(sequence.request.prompt) :]
    sequence.finish_reason = reason
    sequence.drafter = None  # its index is larger than the record


def _append(sequence: SequenceState, drawn: SampledToken) -> tuple[str, int, FinishReason | None]:
    """Append a token -> the text it makes safe to show, the tokens that count, and why it was the last, if it was."""
    request, detokenizer = sequence.request, sequence.detokenizer
    text = ""
    reason: FinishReason | None = None
    if drawn.token in request.stop_ids:
        reason = FinishReason.STOP
    else:
        sequence.tokens.append(drawn.token)
        sequence.scores.append(drawn.score.best(request.top))
        text = detokenizer.push(drawn.token)
        if sequence.generated == request.max_new_tokens:
            reason = FinishReason.LENGTH
    if reason is not None and detokenizer.stopped is None:
        text += detokenizer.finish()
    if detokenizer.stopped is not None:
        return text, len(request.prompt) + detokenizer.kept_tokens, FinishReason.STOP_SEQUENCE
    return text, len(sequence.tokens), reason
