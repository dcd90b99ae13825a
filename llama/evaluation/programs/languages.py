"""The table of languages, and what of their tools is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cpp import CPP
from .csharp import CSHARP
from .java import JAVA
from .language import Language, Need
from .node import JAVASCRIPT, TYPESCRIPT
from .php import PHP
from .python import PYTHON
from .shell import SHELL

__all__ = ["LANGUAGES", "find", "missing"]

LANGUAGES: dict[str, Language] = {
    "python": PYTHON,
    "cpp": CPP,
    "java": JAVA,
    "php": PHP,
    "ts": TYPESCRIPT,
    "cs": CSHARP,
    "sh": SHELL,
    "js": JAVASCRIPT,
}


def find(name: str, *, javatuples: Path | None = None) -> tuple[dict[str, Path], str]:
    """Where a language's needs are, by name; and what `missing` says of the others."""
    found: dict[str, Path] = {}
    lacking: list[Need] = []
    for need in LANGUAGES[name].needs:
        place = javatuples if need.option and javatuples is not None else need.find()
        if place is None or not place.is_file():
            lacking.append(need)
        else:
            found[need.name] = place
    return found, _clause(lacking)


def _clause(lacking: Sequence[Need]) -> str:
    if not lacking:
        return ""
    *others, last = map(str, lacking)
    return f"{', '.join(others)} and {last} are missing" if others else f"{last} is missing"


def missing(name: str, *, javatuples: Path | None = None) -> str:
    """What this machine lacks to run programs of a language, as a clause: "php (Debian's package php-cli) is missing".

    "" if nothing.

    Args:
        name: a key of `LANGUAGES`.
        javatuples: the jar of Java's programs; None for Debian's place.
    """
    return find(name, javatuples=javatuples)[1]
