"""Prompts of the llama.cpp routes: texts mixed with ids, and a window around the cursor that fits.

/infill never fails for its length. What does not fit is left out: the oldest chunks of input_extra first, then
text far from the cursor, three parts of the room for the prefix and one for the suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ....prompts import Prompt, completion_prompt
from ....tokenizer import Tokenizer
from ..problems import Problem
from ..service import Service
from .bodies import LlamaCppCompletionBody, LlamaCppInfillBody

__all__ = ["Window", "completion_prompts", "head_that_fits", "infill_window", "tail_that_fits"]

_MARKERS = 4  # bos, PRE, SUF, MID


def completion_prompts(service: Service, body: LlamaCppCompletionBody) -> list[Prompt]:
    """The prompts of /completion. A list is one prompt if it holds an id, else a list of prompts.

    Raises:
        Problem: 400, something that is neither text nor id, or more than could fit.
    """
    given = body.prompt
    if isinstance(given, str):
        return [service.text_prompt(given)]
    if not given:
        raise Problem(400, "invalid_request", 'prompt: the list is empty; [""] asks for any text', "prompt")
    if any(_is_id(each) for each in given):
        return [_mixed(service, given, "prompt")]
    if len(given) > service.settings.max_queue:
        most = service.settings.max_queue
        message = f"prompt: {len(given):,} prompts in one request; {most:,} are the most"
        raise Problem(400, "invalid_request", message, "prompt")
    return [_one(service, each, f"prompt.{i}") for i, each in enumerate(given)]


def _one(service: Service, given: Any, where: str) -> Prompt:
    if isinstance(given, str):
        return service.text_prompt(given)
    if isinstance(given, list) and given:
        return _mixed(service, given, where)
    raise Problem(
        400, "invalid_request", f"{where}: a prompt must be a text or a list of ids and texts", where
    )


def _mixed(service: Service, parts: Sequence[Any], where: str) -> Prompt:
    """Ids as they are, and texts encoded between them; bos goes in front only if a text comes first."""
    tokenizer = service.tokenizer
    if len(parts) >= service.max_model_len:
        service.check_room(sum(map(_is_id, parts)))
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            service.check_length(part)
            if i == 0:
                tokens += completion_prompt(tokenizer, part).tokens
            else:
                tokens += tokenizer.encode_infilling(part)
        elif _is_id(part) and 0 <= part < tokenizer.n_words:
            tokens.append(int(part))
        else:
            message = f"{where}.{i}: it must be a text or an id from 0 to {tokenizer.n_words - 1}"
            raise Problem(400, "invalid_request", message, f"{where}.{i}")
    return service.ids_prompt(tokens)


def _is_id(value: Any) -> bool:
    # JavaScript and Vim may write 128 as 128.0.
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


class Window(NamedTuple):
    """The text around a cursor that becomes a prompt; truncated: some of what was sent is not in it."""

    prefix: str
    suffix: str
    truncated: bool


def infill_window(service: Service, body: LlamaCppInfillBody) -> Window:
    """The text around the cursor, and in front of it as many of the newest chunks as fit.

    An answer of n_predict tokens, or of a quarter of the context, whichever is less, has room behind it. One that
    may have any length has room for a token, and for that quarter once anything must be left out.
    """
    chunks = [each.text if each.text.endswith("\n") else each.text + "\n" for each in body.input_extra]
    before, after = body.input_prefix + body.prompt, body.input_suffix
    tokenizer, context = service.tokenizer, service.max_model_len
    quarter = max(1, context // 4)
    whole = "".join(chunks) + before
    if _fit(tokenizer, whole, after, context - _MARKERS - min(body.max_tokens or 1, quarter)):
        return Window(whole, after, False)
    room = context - _MARKERS - min(body.max_tokens or quarter, quarter)
    if _fit(tokenizer, before, after, room):
        kept = _newest(tokenizer, chunks, room - _prefix_size(tokenizer, before) - _size(tokenizer, after))
        # Pieces may span a chunk's end, so the sum of sizes is not quite the size of the sum.
        while kept and not _fit(tokenizer, "".join(kept) + before, after, room):
            del kept[0]
        return Window("".join(kept) + before, after, len(kept) < len(chunks))
    before = tail_that_fits(tokenizer, before, room)
    after = head_that_fits(tokenizer, after, max(room // 4, room - _prefix_size(tokenizer, before)))
    before = tail_that_fits(tokenizer, before, room - _size(tokenizer, after))
    return Window(before, after, True)


def _newest(tokenizer: Tokenizer, chunks: Sequence[str], room: int) -> list[str]:
    """The last chunks that have at most `room` ids together."""
    kept: list[str] = []
    for chunk in reversed(chunks):
        if tokenizer.fewest_ids(len(chunk)) > room:
            break
        room -= _size(tokenizer, chunk)
        if room < 0:
            break
        kept.insert(0, chunk)
    return kept


def _fit(tokenizer: Tokenizer, before: str, after: str, room: int) -> bool:
    # Texts that are far too long are not encoded.
    if tokenizer.fewest_ids(len(before)) + tokenizer.fewest_ids(len(after)) > room:
        return False
    return _prefix_size(tokenizer, before) + _size(tokenizer, after) <= room


def _prefix_size(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, bos=False, eos=False))


def _size(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode_infilling(text))


def tail_that_fits(tokenizer: Tokenizer, text: str, most: int) -> str:
    """The end of a prefix, of at most so many ids, and nearly that many if the text has more."""
    if most <= 0:
        return ""
    text = text[-_characters(tokenizer, len(text), most) :]
    while len(ids := tokenizer.encode(text, bos=False, eos=False)) > most:
        # Cut what the surplus ids say. Encoded again, the rest may still have an id or two too many.
        text = text[max(1, len(tokenizer.decode(ids[: len(ids) - most]))) :]
    return text


def head_that_fits(tokenizer: Tokenizer, text: str, most: int) -> str:
    """The beginning of a suffix, of at most so many ids, and nearly that many if the text has more."""
    if most <= 0:
        return ""
    text = text[: _characters(tokenizer, len(text), most)]
    while len(ids := tokenizer.encode_infilling(text)) > most:
        text = text[: min(len(text) - 1, len(tokenizer.decode_infilling(ids[:most])))]
    return text


def _characters(tokenizer: Tokenizer, length: int, most: int) -> int:
    """Of `length` characters, as many as `most` ids can have at best, so that no more are encoded."""
    fewest = tokenizer.fewest_ids(length)
    return length if fewest <= most else length * most // fewest + 1
