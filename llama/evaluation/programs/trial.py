"""Tries a language before a run: with an incomplete toolchain, or a hidden one, every answer would fail."""

from __future__ import annotations

from pathlib import Path

from ...errors import EvaluationError
from ..problem import Program, Status
from ..sandbox import Sandbox, open_sandbox
from .languages import LANGUAGES
from .verdict import judge

__all__ = ["sandbox_for", "try_language"]


def sandbox_for(language: str, sandbox: str | Sandbox, *, javatuples: Path | None = None) -> Sandbox:
    """The sandbox in which programs of a language are to be judged, tried if it is given by name.

    Args:
        language: a key of `LANGUAGES`.
        sandbox: as in `open_sandbox`; or one that is open, which is given back.
        javatuples: as in `judge`.

    Raises:
        EvaluationError: it does not work on this machine, or the language does not work in it.
    """
    if not isinstance(sandbox, str):
        return sandbox
    opened = open_sandbox(sandbox)
    try_language(opened, language, javatuples=javatuples)
    return opened


def try_language(sandbox: Sandbox, language: str, *, javatuples: Path | None = None) -> None:
    """Run a short program that has to pass. If the language's tools are missing, nothing is run: see `missing`.

    Raises:
        EvaluationError: it does not pass.
    """
    tried = LANGUAGES[language]
    verdict = judge(sandbox, Program(language, tried.trial), javatuples=javatuples)
    if verdict.status not in (Status.PASSED, Status.NOT_RUN):
        raise EvaluationError(
            f"a trivial {tried.title} program does not pass in the sandbox {sandbox.level}: {verdict.detail}. "
            f"Mend what it needs: {', '.join(map(str, tried.needs)) or 'Python'}"
        )
