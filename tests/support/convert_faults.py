"""The command line while something breaks a conversion; each function needs its own process (forked.py)."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from llama.checkpoint.convert import conversion
from llama.cli import main

__all__ = ["CANNOT_MOUNT", "killed_at", "on_a_full_disk", "slowly", "with_a_quota"]

CANNOT_MOUNT = 77
_CLONE_NEWNS = 0x20000  # of unshare(2): a mount namespace of its own


def slowly(arguments: list[str]) -> int:
    """A minute for each tensor, a tenth of a second at once."""
    chunks = conversion.chunks

    def slow_chunks(*a: Any) -> Iterator[Any]:
        for chunk in chunks(*a):
            for _ in range(600):
                time.sleep(0.1)
                yield chunk[:0]
            yield chunk

    conversion.chunks = slow_chunks
    return main(arguments)


def killed_at(function: str, arguments: list[str]) -> int:
    """The process is killed when it calls this function of conversion.py."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(conversion, function, die)
    return main(arguments)


def with_a_quota(nbytes: int, arguments: list[str]) -> int:
    """No file may become larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    return main(arguments)


def on_a_full_disk(source: str, place: str, misreported: bool) -> int:
    """Convert onto a real disk of 1 MB that only this process sees; print what is left there.

    Args:
        misreported: the system says that the disk has 10 GB free.
    """
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return CANNOT_MOUNT
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=1m", "none", place]):
        if subprocess.run(["mount", *command], check=False, stderr=subprocess.DEVNULL).returncode:
            return CANNOT_MOUNT
    if misreported:
        shutil.disk_usage = lambda path: SimpleNamespace(free=10**10)  # type: ignore[assignment,return-value]
    code = main(["convert", source, place + "/target", "--to", "hf"])
    print(os.listdir(place), flush=True)
    return code
