"""Checks of what a caller passes: each returns plain Python values, or an error that names the argument."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..errors import LlamaError, PromptError, PromptTooLongError, SamplingError
from ..printable import shown
from ..tokenizer import Tokenizer
from ..values import integer, rows

__all__ = [
    "MAX_INT64",
    "check_integer",
    "check_length",
    "check_list",
    "check_seed",
    "for_each_prompt",
    "id_lists",
    "naming_prompt",
    "text_list",
]

MAX_INT64 = 2**63 - 1  # the largest count or id
_MAX_SEED = 2**256 - 1  # a seed may be a hash or a UUID
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def check_integer(name: str, value: object, least: int, most: int = MAX_INT64) -> int:
    """An integer of any type (numpy's, a tensor's) as Python's own.

    Raises:
        SamplingError: `value` is not an integer, or not in [least, most].
    """
    number = integer(value)
    if number is None or number < least:
        raise SamplingError(f"{name} is {shown(value)}; it must be an integer of at least {least}")
    if number > most:
        raise SamplingError(f"{name} is {shown(value)}; it must be an integer below 2**{most.bit_length()}")
    return number


def check_seed(value: object) -> int:
    """A seed, in [0, 2**256), as Python's own integer. Raises as `check_integer`."""
    return check_integer("seed", value, 0, _MAX_SEED)


def check_list(name: str, items: object, of: str) -> list[Any]:
    """Any ordered iterable (a list, an array, a generator) as a list.

    Args:
        of: what the items are, in the plural; for the error message.

    Raises:
        PromptError: a single string, a set, a mapping, or something that is not iterable.
    """
    found = rows(items)
    if found is None:
        hint = ""
        if isinstance(items, str) and "strings" in of:
            hint = "; put it in brackets"
        elif isinstance(items, set | frozenset):
            hint = "; a set has no order: make a list of it"
        raise PromptError(f"{name} must be a list of {of}, not {type(items).__name__}{hint}")
    return found


def text_list(name: str, texts: Iterable[str]) -> list[str]:
    """Texts as a list of Python's own strings.

    Raises:
        PromptError: not a list, or an entry that is not a string; the message gives its index.
    """
    found = check_list(name, texts, "strings")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise PromptError(f"{name}[{i}] is {type(text).__name__}, not a string")
    return [str(text) for text in found]


def id_lists(name: str, lists: object) -> list[tuple[int, ...]]:
    """Lists of ids, of any integer type, as tuples of Python's own integers.

    Raises:
        PromptError: not a list of lists, or an entry that is not an integer; the message gives the list.
    """
    made = []
    for i, ids in enumerate(check_list(name, lists, "lists of ids")):
        found = rows(ids)
        if found is None:
            raise PromptError(f"{name}[{i}] is {type(ids).__name__}, not a list of ids")
        for at, token in enumerate(found):
            if type(token) is not int:
                found[at] = integer(token)
                if found[at] is None:
                    raise PromptError(f"{name}[{i}] holds {shown(token)}, which is not a token id")
        made.append(tuple(found))
    return made


def check_length(tokenizer: Tokenizer, max_seq_len: int, *texts: object) -> None:
    """Refuse texts that are too long by their number of characters alone: encoding a long text takes long.

    Raises:
        PromptTooLongError: even the fewest ids that they can have exceed max_seq_len.
    """
    characters = sum(len(text) for text in texts if isinstance(text, str))
    least = tokenizer.fewest_ids(characters)
    if least > max_seq_len:
        raise PromptTooLongError(
            f"the text has {characters:,} characters, which make at least {least:,} tokens, but max_seq_len is"
            f" {max_seq_len:,} for prompt and generation together; shorten it, or build with a larger max_seq_len"
        )


def for_each_prompt(make: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """[make(item) for item in items]; an error gets the item's index in front: "prompt 3: ..."."""
    made = []
    for row, item in enumerate(items):
        with naming_prompt(row):
            made.append(make(item))
    return made


@contextlib.contextmanager
def naming_prompt(row: int) -> Iterator[None]:
    """Put the prompt's index in the call in front of the message of an error raised within."""
    try:
        yield
    except LlamaError as error:
        raise type(error)(f"prompt {row}: {error}") from error
