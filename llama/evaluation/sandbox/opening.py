"""Chooses a sandbox, and tries it before it is used."""

from __future__ import annotations

from ...errors import EvaluationError
from .job import Command, Ended, Job, Sandbox
from .levels import Bubblewrap
from .view import interpreter

__all__ = ["LEVELS", "open_sandbox"]

LEVELS = ("bubblewrap",)


def open_sandbox(name: str = "auto") -> Sandbox:
    """The sandbox of that level. "auto": the best that works here, and never limits, which must be asked for.

    Raises:
        EvaluationError: it does not work on this machine; the message says what is missing.
    """
    if name not in ("auto", *LEVELS):
        raise EvaluationError(f"no sandbox is called {name!r}: there are auto, {', '.join(LEVELS)}")
    sandbox = Bubblewrap()
    _try(sandbox)
    return sandbox


def _try(sandbox: Sandbox) -> None:
    source = "import os; os.write(3, b'here')"
    outcome = sandbox.run(Job({}, [Command((str(interpreter()), "-I", "-S", "-B", "-c", source))]))
    if outcome.ended is not Ended.EXITED or outcome.exit_code != 0 or outcome.token != b"here":
        raise EvaluationError(f"the sandbox {sandbox.level} fails at a trivial program: {outcome}")
