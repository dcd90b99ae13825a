"""Whether a model can run a request. Sizes are checked first, so nothing huge is walked item by item."""

from __future__ import annotations

from collections.abc import Sized

from ..errors import PromptError, PromptTooLongError, RequestError
from ..printable import shown
from ..sampling import SamplingParams
from .request import Request

__all__ = ["check_request"]


def check_request(request: Request, max_seq_len: int, vocab: int) -> None:
    """Raise what `Engine.check` says, for a model of `vocab` ids and sequences of `max_seq_len` tokens."""
    if not isinstance(request, Request):
        raise RequestError(
            f"{shown(request)} is not a Request; `Llama.requests` makes a list of them, one for each prompt"
        )
    _check_sizes(request, max_seq_len, vocab)
    request.check()
    if not isinstance(request.sampling, SamplingParams):
        raise RequestError(f"sampling is {request.sampling!r}; it must be SamplingParams")
    length = len(request.prompt)
    if length == 0:
        raise PromptError("the prompt has no tokens; begin it with bos, as the prompt functions do")
    for name, ids in (("prompt", request.prompt), ("prediction", request.prediction)):
        if ids and not 0 <= min(ids) <= max(ids) < vocab:
            outside = next(token for token in ids if not 0 <= token < vocab)
            raise PromptError(f"the {name} holds id {outside}, but the vocabulary has ids 0 to {vocab - 1}")
    if request.min_new_tokens and len(request.stop_ids) >= vocab and request.stop_ids >= set(range(vocab)):
        raise RequestError(
            f"min_new_tokens is {request.min_new_tokens}, but all {vocab} ids of the vocabulary are stop ids,"
            " so nothing is left to draw; leave some out"
        )
    bias = request.sampling.logit_bias
    if bias and bias[-1][0] >= vocab:  # the last is the greatest
        raise RequestError(
            f"logit_bias has id {bias[-1][0]}, but the vocabulary has ids 0 to {vocab - 1}; leave it out"
        )
    if request.top > vocab:
        raise RequestError(f"{request.top} alternatives were asked for, but the vocabulary has {vocab} ids")
    if length + request.max_new_tokens > max_seq_len:
        raise PromptTooLongError(
            f"the prompt has {length} tokens and {request.max_new_tokens} more were asked for, but"
            f" max_seq_len is {max_seq_len}; shorten it, or build with a larger max_seq_len"
        )


def _check_sizes(request: Request, max_seq_len: int, vocab: int) -> None:
    """Refuse lists that are too long to walk, here or on other ranks."""
    if isinstance(request.prompt, Sized) and len(request.prompt) > max_seq_len:
        raise PromptTooLongError(
            f"the prompt has {len(request.prompt):,} tokens, but max_seq_len is {max_seq_len:,};"
            " shorten it, or build with a larger max_seq_len"
        )
    if isinstance(request.prediction, Sized) and len(request.prediction) > max_seq_len:
        raise RequestError(
            f"the prediction has {len(request.prediction):,} tokens, but max_seq_len is {max_seq_len:,};"
            " give the part that the output is likely to repeat"
        )
    if isinstance(request.stop_ids, Sized) and len(request.stop_ids) > vocab:
        raise RequestError(f"{len(request.stop_ids):,} stop ids, but the vocabulary has {vocab:,} ids")
