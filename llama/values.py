"""What callers pass, as Python's own numbers and lists.

Research code computes its arguments: a length is numpy's integer, a temperature an element of a linspace, ids are
a tensor, prompts come from a generator. Any of these is taken, as what it is; what is none gives None, and the
caller, who knows the parameter's name, says so. Imports neither torch nor numpy.
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

# Entries of a list that is not in memory yet, as a range or a generator: some 150 MB of Python's numbers.
_MOST = 1 << 22

_TEXT = (str, bytes, bytearray, memoryview)


def flag(value: object) -> bool | None:
    """A bool, Python's or numpy's."""
    return bool(value) if _is_scalar(value) and _is_bool(value) else None


def integer(value: object) -> int | None:
    """Any integer type, arrays and tensors without an axis included; no bool, and no 4.0."""
    if type(value) is int:
        return value
    if not _is_scalar(value) or _is_bool(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


def real(value: object) -> float | None:
    """Any number that is no bool and not complex; an infinity where it is too large for a float."""
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
    """What can be walked in an order of its own: no text, no set (whose order differs between ranks), no mapping.

    Raises:
        RequestError: it has more entries than any call takes; no more of them are looked at.
    """
    if isinstance(values, list | tuple):
        return list(values)
    if isinstance(values, (*_TEXT, set, frozenset, Mapping)) or getattr(values, "ndim", 1) == 0:
        return None
    if isinstance(values, Sized) and len(values) > _MOST:
        raise RequestError(f"a list of {len(values):,} entries was given; {_MOST:,} are the most")
    if callable(getattr(values, "tolist", None)):  # at once, where a walk would ask a GPU for each element
        values = values.tolist()  # type: ignore[attr-defined]
    try:
        found = list(itertools.islice(values, _MOST + 1))  # type: ignore[call-overload]
    except TypeError:
        if hasattr(values, "__iter__"):
            raise  # its own
        return None
    if len(found) > _MOST:
        raise RequestError(f"a list of more than {_MOST:,} entries was given; that is the most")
    return found


def _is_scalar(value: object) -> bool:
    return getattr(value, "ndim", 0) == 0


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
