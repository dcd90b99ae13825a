"""Prompts are in the log if an operator asks for them with --log-prompts, and otherwise not."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from tiny_llama import tiny_llama

from llama.serving.http.service import Service
from llama.serving.http.settings import Settings


@pytest.mark.parametrize("log_prompts", [True, False])
def test_prompts_are_logged_only_when_asked_for(log_prompts: bool, caplog: pytest.LogCaptureFixture) -> None:
    engine = SimpleNamespace(accepting=True, waiting=0, batches=lambda request: None)
    service = Service(tiny_llama(), engine, Settings("tiny", log_prompts=log_prompts))
    prompts = [service.text_prompt("def\nf"), service.infilling_prompt("a", "b")]
    with caplog.at_level(logging.DEBUG):
        service.start(service.requests(prompts, temperature=0, top_p=1, max_tokens=1))
    told = [record.getMessage() for record in caplog.records]
    if not log_prompts:
        assert told == []
        return
    plain, filled = told
    assert "def\\nf" in plain  # on one line, whatever the prompt holds
    assert "\n" not in plain
    assert all(marker in filled for marker in ("<PRE>", "<SUF>", "<MID>"))
