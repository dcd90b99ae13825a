"""The code blocks of a chat answer: between ``` lines, or between [PYTHON] tags as Code Llama was also trained."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection

__all__ = ["fenced_blocks"]

# A block begins at the start of a line, and ends at the start or at the end of one; the last need not end.
_FENCED = (
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*+)[^`\n]*+\n"
    r"(?P<code>.*?)"
    r"(?:^[ \t]*(?P=fence)|(?P=fence)[ \t]*$|\Z)"
)
_TAGGED = r"\[PYTHON\](?P<tagged>.*?)(?:\[/PYTHON\]|\Z)"
_FENCE = re.compile(_FENCED, re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(f"{_FENCED}|{_TAGGED}", re.MULTILINE | re.DOTALL)


def fenced_blocks(message: str, languages: Collection[str]) -> list[str]:
    """The blocks of a message, in its order; none if it has neither fence nor tag. Fences between tags count alone.

    Args:
        languages: the names after a fence to take, in lower case. Blocks of other languages (a shell's, output) are
            left out, unless there is no other.

    Each is moved to the left edge, and ends with a newline.
    """
    message = message.replace("\r\n", "\n")
    found: list[tuple[str, str]] = []
    for block in _BLOCK.finditer(message):
        tagged = block["tagged"]
        if tagged is not None and _FENCE.search(tagged) is None:
            found.append(("python", tagged))
            continue
        fences = [block] if tagged is None else _FENCE.finditer(tagged)
        found += [(fence["language"].lower(), fence["code"]) for fence in fences]
    wanted = [code for language, code in found if not language or language in languages]
    return [_at_left_edge(code) for code in wanted or [code for _, code in found]]


def _at_left_edge(code: str) -> str:
    return textwrap.dedent(code).strip("\n") + "\n"
