"""Runs a function in a process of its own that need not import torch again.

A new interpreter takes seconds of CPU time to import torch; a fork of a server that has imported it takes
milliseconds. The server has one thread, so forking it is safe; the tests' own process may have several.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["HANGS", "SERVER", "Forked"]

# Seconds after which a process counts as hanging. A guard only: far above what one takes on a busy machine.
HANGS = 300.0

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "llama.cli",
        "llama.loading",
        "llama.checkpoint",
        "llama.checkpoint.convert",
        "llama.evaluation.harness",
        "llama.serving.http.server",
        "torch.distributed.run",
    ]
)


def _run(output: str, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.exit(function(*arguments))


class Forked:
    """A process that calls `function(*arguments)` and exits with what it returns.

    Args:
        output: its stdout and stderr go into files with this path, ending in .out and .err.
        function: of a module, so that the process can import it.
    """

    def __init__(self, output: Path, function: Callable[..., int], *arguments: Any) -> None:
        self._output = output
        self.process = SERVER.Process(target=_run, args=(str(output), function, arguments), daemon=True)
        self.process.start()

    @property
    def stdout(self) -> str:
        return Path(f"{self._output}.out").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self._output}.err").read_text()

    def wait(self) -> int:
        """Its exit code; minus the signal that killed it."""
        self.process.join(HANGS)  # a guard against a hang
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it still runs."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)
