"""The text-generation package, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from asked import ROOM, TOKENS, environment
from server_process import LIMIT


@pytest.fixture(scope="module")
def answers(url: str) -> dict:
    """What text_generation_calls.py printed."""
    script = Path(__file__).with_name("text_generation_calls.py")
    command = [environment("text-generation") / "python", script, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_answer_and_a_stream_are_the_librarys(answers, library) -> None:
    wanted, details = library["completion"], answers["whole"]["details"]
    assert answers["whole"]["generated_text"] == wanted["text"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", TOKENS)
    assert [token["id"] for token in details["tokens"]] == wanted["tokens"]
    assert [token["id"] for token in details["prefill"]] == wanted["prompt"]
    assert [event["token"]["id"] for event in answers["stream"]] == wanted["tokens"]
    assert "".join(event["token"]["text"] for event in answers["stream"]) == wanted["text"]
    assert answers["stream"][-1]["generated_text"] == wanted["text"]


def test_infilling_and_chat_are_the_librarys(answers, library) -> None:
    assert answers["infilling"] == library["infilling"]["text"]
    assert answers["chat"] == library["chat"]["text"]


def test_a_prompt_without_room_is_a_validation_error(answers) -> None:
    assert f"{ROOM:,}" in answers["error"]
