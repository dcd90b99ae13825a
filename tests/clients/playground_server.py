"""Servers for the playground's browser: one whose answers a test writes, and `codellama playground` as a program."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

from asked import ROOT, quiet_environment
from server_process import LIMIT

_PYTHON = ROOT / ".venv" / "bin" / "python"


class Scripted:
    """tests/support/scripted_server.py as a process, which can be killed and started again at the same address."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Serve; at the address of before, if there was one."""
        port = self.url.rpartition(":")[2] or "0"
        program = ROOT / "tests" / "support" / "scripted_server.py"
        self._process = subprocess.Popen(
            [str(_PYTHON), str(program), port],
            cwd=ROOT,
            env=quiet_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the scripted server did not start"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def script(self, **fields: Any) -> None:
        """What it answers from now on; what is not named is as at first, and nothing has been asked."""
        self._control("PUT", fields)

    def change(self, **fields: Any) -> None:
        """Fields of the running script; `go_on` releases an answer that waits."""
        self._control("POST", fields)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies that it was sent."""
        return [body for _, _, body in self._control("GET")["requests"]]

    @property
    def keys(self) -> list[str]:
        """The API key of each request."""
        sent = [headers.get("authorization", "") for _, headers, _ in self._control("GET")["requests"]]
        return [each.removeprefix("Bearer ") for each in sent]

    @property
    def left(self) -> bool:
        """Whether a caller closed a stream before its end."""
        return bool(self._control("GET")["left"])

    def _control(self, method: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/script", data, method=method)
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            told: dict[str, Any] = json.load(answer)
            return told


@contextlib.contextmanager
def playground_program(url: str) -> Iterator[str]:
    """`codellama playground URL` on a free port until the block ends -> the page's address."""
    program = ROOT / ".venv" / "bin" / "codellama"
    process = subprocess.Popen(
        [str(program), "playground", url, "--port", "0"],
        cwd=ROOT,
        env=quiet_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.fullmatch(rf"The playground for {re.escape(url)} is on (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        yield found[1]
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=LIMIT)
        assert (process.returncode, rest) == (130, "interrupted\n")
    finally:
        process.kill()
        process.wait(LIMIT)
