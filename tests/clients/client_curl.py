"""curl, as people type it: no header, so that it calls the body a form; one line an event; errors with their status."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from asked import COMPLETION, TOKENS
from server_process import LIMIT

BODY = json.dumps({"prompt": COMPLETION, "max_tokens": TOKENS, "temperature": 0})


@pytest.fixture(autouse=True)
def _curl() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", str(int(LIMIT)), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_json_is_read_without_a_header(url, library) -> None:
    answer = json.loads(curl(f"{url}/v1/completions", "-d", BODY))
    assert answer["choices"][0]["text"] == library["completion"]["text"]


def test_a_stream_ends_with_done(url, library) -> None:
    streamed = json.dumps({**json.loads(BODY), "stream": True})
    *data, done, rest = curl("--no-buffer", f"{url}/v1/completions", "-d", streamed).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    texts = [json.loads(each.removeprefix("data: "))["choices"][0]["text"] for each in data]
    assert "".join(texts) == library["completion"]["text"]


def test_a_large_body_that_waits_for_a_word_is_read(url, tmp_path: Path) -> None:
    """Above 1 MiB curl sends Expect: 100-continue, and would wait a second without an answer."""
    large = tmp_path / "body.json"
    large.write_text(json.dumps({"prompt": COMPLETION, "max_tokens": 1, "user": "x" * (2 << 20)}))
    answer = json.loads(curl(f"{url}/v1/completions", "--data-binary", f"@{large}"))
    assert answer["usage"]["completion_tokens"] == 1


def test_an_error_has_its_status_and_says_what_was_wrong(url) -> None:
    shown = curl(f"{url}/v1/completions", "-d", "{", "--write-out", "\n%{http_code} %{content_type}")
    body, _, status = shown.rpartition("\n")
    assert status == "400 application/json"
    assert json.loads(body)["error"]["message"]


def test_health_answers_a_probe(url) -> None:
    assert curl(f"{url}/health", "--output", "/dev/null", "--write-out", "%{http_code}") == "200"
