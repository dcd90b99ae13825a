"""llama.cpp's `response_fields`: the parts of an answer that a client wants to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["pick"]


def pick(value: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """The named parts of an answer, each under its whole path (`timings/prompt_n`); none for [""].

    Without names, or with an empty list, all of it. What is not there is left out.
    """
    if not fields:
        return dict(value)
    found: dict[str, Any] = {}
    for path in fields:
        here: Any = value
        for name in path.split("/"):
            if not isinstance(here, Mapping) or name not in here:
                break
            here = here[name]
        else:
            found[path] = here
    return found
