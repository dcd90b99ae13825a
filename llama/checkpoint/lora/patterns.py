"""The keys of rank_pattern and alpha_pattern: regular expressions that somebody else wrote.

Python's engine goes back and tries again, so a pattern of 30 characters can take years. Only patterns of few choices
are run: literals, ".", classes, and together at most three repetitions and groups of alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...errors import ConfigError
from ...printable import shown

__all__ = ["Patterns"]

_LONGEST, _MOST_CHOICES, _MOST_WITH_CHOICES = 256, 3, 64
_ONE = r"[\w.\-]|\\[\w.\-]|\[\^?[\w.\-\\]+\]"
_REPEAT = r"[*+?]\??|\{\d{1,3}(?:,\d{0,3})?\}"
_GROUP = rf"\((?:\?:)?(?:{_ONE}|\|)+\)"
_BRANCH = rf"\^?(?:(?:{_ONE})(?:{_REPEAT})?|{_GROUP}\??)+\$?"
_ALLOWED = re.compile(rf"{_BRANCH}(?:\|{_BRANCH})*")
# A backslash before a digit would refer to a group; of two hyphens in a class Python warns.
_NEVER = re.compile(r"\\\d|--")
_CHOICE = re.compile(rf"(?:{_ONE})(?P<repeat>{_REPEAT})|(?P<group>{_GROUP})")


class Patterns:
    """Patterns by which PEFT finds the value of a module: the first that matches the end of its name.

    Args:
        patterns: in their order.
        where: the file and key, for messages.

    Raises:
        ConfigError: a pattern is not a regular expression, or one with more choices than are tried here.
    """

    def __init__(self, patterns: Iterable[str], where: str) -> None:
        self._compiled = {}
        with_choices = 0
        for pattern in patterns:
            choices = _choices(pattern)
            with_choices += choices is not None and choices > 0
            if choices is None or choices > _MOST_CHOICES or with_choices > _MOST_WITH_CHOICES:
                raise ConfigError(
                    f"{where} has the pattern {shown(pattern)}; this runtime matches names of modules, with at most"
                    f" {_MOST_CHOICES} repetitions or groups in a pattern and {_MOST_WITH_CHOICES} such patterns."
                    " Write the names out, or merge the adapter in PEFT"
                )
            try:
                # As PEFT's get_pattern_key has it.
                self._compiled[pattern] = re.compile(rf"(.*\.)?({pattern})$")
            except re.error as error:
                raise ConfigError(
                    f"{where} has {shown(pattern)}, which is not a regular expression: {error}"
                ) from error

    def first(self, module: str) -> str | None:
        """The first pattern that matches a module's name, such as model.layers.0.mlp.up_proj; None if none does."""
        return next((key for key, compiled in self._compiled.items() if compiled.match(module)), None)


def _choices(pattern: str) -> int | None:
    """Repetitions and groups of a pattern; None if it has more than the syntax above."""
    if len(pattern) > _LONGEST or _NEVER.search(pattern) or not _ALLOWED.fullmatch(pattern):
        return None
    return sum(1 for _ in _CHOICE.finditer(pattern))
