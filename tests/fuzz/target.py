"""What a fuzz target gives the runner (run.py): sound files, a damaged one, and what becomes of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

__all__ = ["Target"]


class Target(Protocol):
    """A reader of files of strangers. Each `fuzz_<name>.py` of this folder has one, as its `TARGET`."""

    name: str

    def prepare(self, folder: Path) -> None:
        """Write the sound files, once for each process that reads."""

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        """Write one damaged input, decided by `rng` alone -> what `read` gets.

        It lies in `folder`, where `prepare` wrote; what an earlier call wrote there may be overwritten.
        """

    def read(self, path: Path) -> str:
        """Read it as the package does -> a word for the counts: "accepted" or "refused".

        A LlamaError counts as "refused".

        Raises:
            AssertionError: what was read is not what the oracle says. A failure.
            Exception: any other is a traceback where a named error is promised. A failure.
        """
