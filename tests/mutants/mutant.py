"""A mutation: one change that makes the package wrong, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands exactly once in `file`, becomes `new`; then one of `tests` must fail.

    Args:
        name: unique, says what is broken.
        file: below the project's root.
        tests: as pytest takes them, from the root: a file, or file::test.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
