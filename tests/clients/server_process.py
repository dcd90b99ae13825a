"""`codellama serve` as a process of its own, from start to SIGTERM."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asked import DTYPE, MODEL, ROOM, ROOT, quiet_environment

# Seconds. Guards against hanging, far above what a busy machine needs.
LIMIT = 120.0


@dataclass(frozen=True)
class Server:
    """A server that answers: its address, and the file of what it printed."""

    url: str
    log: Path


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[Server]:
    """Serve the bundled checkpoint on a free port until the block ends; then it must end well, and in peace.

    Args:
        folder: an empty one for its log.
        flags: more of `codellama serve`.
    """
    log = folder / "server.log"
    program = ROOT / ".venv" / "bin" / "codellama"
    command = [
        program,
        "serve",
        ROOT / MODEL,
        "--port",
        "0",
        "--max-seq-len",
        str(ROOM),
        "--dtype",
        DTYPE,
        *flags,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(each) for each in command],
            cwd=ROOT,
            env=quiet_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(_address(process, log), log)
        assert process.poll() is None, f"the server ended while clients used it:\n{log.read_text()}"
        process.send_signal(signal.SIGTERM)
        code = process.wait(LIMIT)
        text = log.read_text()
        assert code == 0, f"exit code {code}:\n{text}"
        assert "Traceback" not in text, text
    finally:
        process.kill()
        process.wait(LIMIT)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server is ready -> its address, which it prints."""
    ends = time.monotonic() + LIMIT
    while time.monotonic() < ends and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace"))
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found and urllib.request.urlopen(found[0] + "/health", timeout=LIMIT).status == 200:
                return found[0]
        time.sleep(0.05)
    raise AssertionError(f"the server did not become ready:\n{log.read_text(errors='replace')}")
