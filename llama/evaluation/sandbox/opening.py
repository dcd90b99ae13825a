"""Chooses a sandbox, and tries it before it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ...errors import EvaluationError
from .job import Command, Ended, Job, Sandbox
from .levels import Bubblewrap, LimitsOnly, SandboxExec, Unshare
from .view import interpreter

__all__ = ["LEVELS", "open_sandbox"]

_MAKERS: dict[str, Callable[[], Sandbox]] = {
    "bubblewrap": Bubblewrap,
    "unshare": Unshare,
    "sandbox-exec": SandboxExec,
    "limits": LimitsOnly,
}
LEVELS = tuple(_MAKERS)


def open_sandbox(name: str = "auto") -> Sandbox:
    """The sandbox of that level, one of `LEVELS`. "auto": the best that works here.

    limits is none, and must be asked for: programs run as this user, who has a home, a network and keys.

    Raises:
        EvaluationError: it does not work on this machine; the message says what is missing.
    """
    if name not in ("auto", *LEVELS):
        raise EvaluationError(f"no sandbox is called {name!r}: there are auto, {', '.join(LEVELS)}")
    names: tuple[str, ...] = (name,)
    if name == "auto":
        names = ("bubblewrap", "unshare") if sys.platform == "linux" else ("sandbox-exec",)
    reasons = []
    for level in names:
        sandbox = _MAKERS[level]()
        try:
            _try(sandbox)
        except EvaluationError as error:
            reasons.append(f"{level}: {error}")
        else:
            return sandbox
    raise EvaluationError(
        f"no sandbox works here ({'; '.join(reasons)}). Install bubblewrap 0.7 or newer, and allow user namespaces:"
        " in a container docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined, on Ubuntu"
        " sysctl kernel.apparmor_restrict_unprivileged_userns=0. Or run the programs unprotected, in a machine that"
        " holds nothing else: --sandbox limits"
    )


def _try(sandbox: Sandbox) -> None:
    """Run a trivial program: a container may forbid what the sandbox is made of."""
    source = "import os; os.write(3, b'here')"
    outcome = sandbox.run(Job({}, [Command((str(interpreter()), "-I", "-S", "-B", "-c", source))]))
    if outcome.ended is not Ended.EXITED or outcome.exit_code != 0 or outcome.token != b"here":
        said = outcome.stderr.decode(errors="replace").strip()
        raise EvaluationError(
            f"a trivial program ended with {outcome.exit_code} ({outcome.ended.value}): {said}"
        )
