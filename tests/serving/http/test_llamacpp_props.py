"""/props, /slots and /apply-template, and the chat formats as templates."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Template
from starlette.requests import Request
from tiny_llama import tiny_llama

from llama import Llama
from llama.chat_templates import chat_template
from llama.prompts import chat_prompt
from llama.serving.http.llamacpp.props import ROUTES
from llama.serving.http.problems import Problem
from llama.serving.http.routes import Call
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings
from llama.serving.http.token_texts import spelled

SYSTEM = {"role": "system", "content": " Be brief. "}
TALK = [
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": " hello "},
    {"role": "user", "content": "sort\n  this"},
]


@pytest.fixture(scope="module", params=["infilling", "step"])
def llama(request: pytest.FixtureRequest) -> Llama:
    return tiny_llama(kind=request.param)


def ask(llama: Llama, path: str, query: bytes = b"", *, running: int = 0, **data: Any) -> Any:
    engine = SimpleNamespace(snapshot=SimpleNamespace(running=running))
    (route,) = [route for route in ROUTES if path in route.paths]
    request = Request({"type": "http", "query_string": query, "headers": []})
    return json.loads(route.handler(Call(Service(llama, engine, Settings("tiny")), request, data)).body)


@pytest.mark.parametrize("messages", [TALK[:1], [SYSTEM, *TALK[:1]], TALK, [SYSTEM, *TALK]])
def test_the_template_gives_the_text_of_the_prompt(llama: Llama, messages: list[dict[str, str]]) -> None:
    tokenizer = llama.tokenizer
    addressed = [
        {**each, "destination": "user"} if each["role"] == "assistant" else each for each in messages
    ]
    text = spelled(tokenizer, chat_prompt(tokenizer, addressed).tokens)
    template = Template(chat_template(tokenizer))
    assert template.render(messages=messages, bos_token="<s>", eos_token="</s>") == text
    told = ask(llama, "/apply-template", messages=messages)
    assert "<s>" + told["prompt"] == text


def test_a_first_turn_goes_through_completion_unchanged() -> None:
    llama = tiny_llama()
    service = Service(llama, SimpleNamespace(), Settings("tiny"))
    messages = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    text = ask(llama, "/apply-template", messages=messages)["prompt"]
    wanted = service.chat_prompt([SYSTEM, {"role": "user", "content": "hi"}])
    assert service.text_prompt(text).tokens == wanted.tokens


def test_parts_of_a_message_are_its_lines_as_in_a_chat() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    texts = [
        ask(tiny_llama(), "/apply-template", messages=[{"role": "user", "content": content}])
        for content in (parts, "a\nb")
    ]
    assert texts[0] == texts[1]


def test_props_say_how_long_a_text_may_be_and_name_no_path(llama: Llama) -> None:
    told = ask(llama, "/props")
    assert told["default_generation_settings"]["n_ctx"] == 128
    assert told["default_generation_settings"]["params"]["temperature"] == 0.8
    assert (told["total_slots"], told["model_path"], told["model_alias"]) == (4, "tiny", "tiny")
    assert (told["bos_token"], told["eos_token"]) == ("<s>", "</s>")
    assert told["chat_template"] == chat_template(llama.tokenizer)


def test_slots_are_the_sequences_that_may_run(llama: Llama) -> None:
    assert [each["is_processing"] for each in ask(llama, "/slots", running=3)] == [True, True, True, False]
    assert len(ask(llama, "/slots", b"fail_on_no_slot=1", running=3)) == 4
    with pytest.raises(Problem) as raised:
        ask(llama, "/slots", b"fail_on_no_slot=1", running=4)
    assert raised.value.status == 503


def test_tools_and_unknown_roles_are_refused(llama: Llama) -> None:
    for data in ({"messages": TALK, "tools": [{}]}, {"messages": [{"role": "tool", "content": ""}]}, {}):
        with pytest.raises(Problem) as raised:
            ask(llama, "/apply-template", **data)
        assert raised.value.status == 400
