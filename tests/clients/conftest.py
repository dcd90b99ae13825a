"""A server process on the bundled checkpoint for all clients, and what the library itself answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asked
import pytest
from server_process import LIMIT, Server, running
from skips import Skips

pytest_plugins = ["playground_fixtures"]

# Before any client is imported: some read their settings then.
os.environ.update(asked.quiet_environment())
for _name in set(os.environ) - set(asked.quiet_environment()):
    del os.environ[_name]

# Started in the background, a shell has it ignored, and the programs that are tested inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Print every skip, and fail the run for one that is not allowed."""
    config.pluginmanager.register(Skips())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that nearly all tests ask, one request after another."""
    with running(tmp_path_factory.mktemp("server"), "--text-fim") as server:
        yield server


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    """The server's address, without a slash at the end."""
    return server.url


@pytest.fixture(scope="session")
def library() -> dict[str, dict]:
    """What the library answers to completion, infilling and chat: prompt, text, tokens, logprobs."""
    python = asked.ROOT / ".venv" / "bin" / "python"
    script = Path(__file__).with_name("library_answers.py")
    done = subprocess.run(
        [python, script], cwd=asked.ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    # A fill may end by itself; of the others the clients are told that they were cut.
    assert len(answers["completion"]["tokens"]) == len(answers["chat"]["tokens"]) == asked.TOKENS
    assert len(answers["infilling"]["tokens"]) > 4
    return answers
