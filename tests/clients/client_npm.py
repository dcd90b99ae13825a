"""Clients from npm, each driven by a small program of node/: openai, ollama, Hugging Face's, Continue's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import asked
import pytest
from server_process import LIMIT
from skips import allowed

NODE = Path(__file__).with_name("node")


def ask(client: str, url: str) -> dict:
    """What the program of a client printed: its answers by name."""
    reason = "node 20 or newer, with npm, is not on this machine"
    if allowed(reason):
        pytest.skip(reason)
    names = ("MODEL", "TOKENS", "COMPLETION", "PREFIX", "SUFFIX", "CHAT")
    given = json.dumps({"url": url, **{name.lower(): getattr(asked, name) for name in names}})
    done = subprocess.run(
        ["node", NODE / f"{client}.mjs", given],
        cwd=NODE,
        env=asked.quiet_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def texts(library: dict, *kinds: str) -> dict[str, str]:
    return {kind: library[kind]["text"] for kind in kinds}


def test_openai(url, library) -> None:
    answers = ask("openai", url)
    wanted = texts(library, "completion", "infilling", "chat")
    assert answers["whole"] == answers["streamed"] == wanted
    assert answers["usage"] == asked.TOKENS
    assert answers["error"] == {"name": "BadRequestError", "param": "no_such_field"}
    assert answers["models"] == [asked.MODEL]


def test_ollama(url, library) -> None:
    answers = ask("ollama", url)
    wanted = texts(library, "completion", "infilling", "chat")
    assert answers["whole"] == answers["streamed"] == wanted
    assert answers["insert"] is True
    assert "images" in answers["error"]


def test_huggingface(url, library) -> None:
    """It posts texts to OpenAI's route, with text-generation-inference's parameters in the body."""
    answers = ask("huggingface", url)
    wanted = texts(library, "completion", "chat")
    assert answers["whole"] == answers["streamed"] == wanted


def test_continue(url, library) -> None:
    """Every provider that it has for such a server; llamastack alone posts infilling to OpenAI's route."""
    answers = ask("continue", url)
    assert set(answers) == {"mistral", "openai", "vllm", "llama.cpp", "ollama", "lmstudio", "llamastack"}
    for provider, answer in answers.items():
        assert answer == texts(library, "completion", "infilling", "chat"), provider
