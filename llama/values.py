"""Converts what callers pass into Python's own numbers and lists.

Research code computes its arguments: a length is a numpy integer, a temperature an element of a linspace, ids
are a tensor, prompts come from a generator. All of these are accepted. Anything else gives None, and the
calling function, which knows the parameter's name, raises the error. Imports neither torch nor numpy.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Mapping, Sized
from typing import Any

from .errors import RequestError

__all__ = ["flag", "integer", "real", "rows"]

# Most entries of a list that is not in memory yet, such as a range or a generator: about 150 MB of numbers.
_MAX_ENTRIES = 1 << 22

_TEXT = (str, bytes, bytearray, memoryview)


def flag(value: object) -> bool | None:
    """A bool, Python's or numpy's; else None."""
    return bool(value) if _is_scalar(value) and _is_bool(value) else None


def integer(value: object) -> int | None:
    """An integer of any type, also an array or tensor without axes; None for a bool and for 4.0."""
    if type(value) is int:
        return value
    if not _is_scalar(value) or _is_bool(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


def real(value: object) -> float | None:
    """A real number of any type, infinite if too large for a float; None for a bool and a complex number."""
    if type(value) is float:
        return value
    if not _is_scalar(value) or _is_bool(value) or isinstance(value, _TEXT):
        return None
    if isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError, RuntimeError):
        return None


def rows(values: object) -> list[Any] | None:
    """An ordered iterable as a list; None for text, a set (whose order differs between ranks) and a mapping.

    Raises:
        RequestError: more entries than any call takes; the rest is not read.
    """
    if isinstance(values, list | tuple):
        return list(values)
    if isinstance(values, (*_TEXT, set, frozenset, Mapping)) or getattr(values, "ndim", 1) == 0:
        return None
    if isinstance(values, Sized) and len(values) > _MAX_ENTRIES:
        raise RequestError(f"a list has {len(values):,} entries; at most {_MAX_ENTRIES:,} are accepted")
    if callable(getattr(values, "tolist", None)):  # at once: an iterator would ask a GPU for each element
        values = values.tolist()  # type: ignore[attr-defined]
    try:
        found = list(itertools.islice(values, _MAX_ENTRIES + 1))  # type: ignore[call-overload]
    except TypeError:
        if hasattr(values, "__iter__"):
            raise  # an error of the iterable itself
        return None
    if len(found) > _MAX_ENTRIES:
        raise RequestError(f"a list has more than the {_MAX_ENTRIES:,} entries that are accepted")
    return found


def _is_scalar(value: object) -> bool:
    return getattr(value, "ndim", 0) == 0


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
