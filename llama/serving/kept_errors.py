"""Errors that an object keeps, to raise them later and more than once. Never imports torch.

An error's traceback holds the variables of every function that it went through, so an object that keeps an error which
went through its own methods holds itself, and what it has, until the garbage collector comes: of a service an engine
with all its cache.
"""

from __future__ import annotations

import copy
import traceback
from typing import TypeVar

__all__ = ["again", "without_variables"]

E = TypeVar("E", bound=BaseException)


def without_variables(error: E) -> E:
    """The same error, from the function on that the caller called: its traceback still has the lines, and that of
    its causes too, but no variables."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    known: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in known:
            known.add(id(each))
            left += (each.__cause__, each.__context__)
            traceback.clear_frames(each.__traceback__)
    return error


def again(error: E) -> E:
    """An error that says the same, to be raised, so that the one that is kept does not gain this way through the
    program. The same one if its class cannot be copied."""
    try:
        made = copy.copy(error)
    except Exception:
        return error  # its constructor takes something else
    if type(made) is not type(error) or str(made) != str(error):
        return error
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made.with_traceback(error.__traceback__)
