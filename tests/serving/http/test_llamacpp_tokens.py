"""/tokenize and /detokenize with three protocols' bodies, called without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from llama.serving.http.llamacpp.tokens import ROUTES
from llama.serving.http.problems import Problem
from llama.serving.http.routes import Call
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings

TEXT = st.lists(
    st.sampled_from(
        ["def", " return", "\n", "    ", "x", "漢字", "ü", "\x00", "🦙", "</s>", " <MID>", "<s>"]
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(tiny_llama(), None, Settings("tiny"))


def ask(service: Service, path: str, **data: Any) -> Any:
    (route,) = [route for route in ROUTES if path in route.paths]
    return json.loads(route.handler(Call(service, None, data)).body)


@given(text=TEXT, bos=st.booleans())
def test_the_three_protocols_agree_and_ids_become_the_text_again(
    service: Service, text: str, bos: bool
) -> None:
    ids = ask(service, "/tokenize", content=text, add_special=bos)["tokens"]
    vllm = ask(service, "/tokenize", prompt=text, add_special_tokens=bos)
    assert vllm == {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids}
    tgi = ask(service, "/tokenize", inputs=text)
    assert [each["id"] for each in tgi] == ids[bos:]
    assert [text[each["start"] : each["stop"]] for each in tgi] == [each["text"] for each in tgi]
    assert "".join(each["text"] for each in tgi) == text
    if text not in ("</s>", " <MID>", "<s>"):
        assert service.tokenizer.control_ids.isdisjoint(ids[bos:])
        assert ask(service, "/detokenize", tokens=ids) == {"content": text, "prompt": text}


@given(text=TEXT)
def test_pieces_are_text_or_bytes(service: Service, text: str) -> None:
    told = ask(service, "/tokenize", content="a" + text, with_pieces=True)["tokens"]
    pieces = [each["piece"] for each in told]
    data = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert data.decode() == " a" + text


@pytest.mark.parametrize("field", ["content", "prompt", "inputs"])
def test_a_text_that_is_one_control_piece_is_its_id(service: Service, field: str) -> None:
    tokenizer = service.tokenizer
    pieces = {
        "</s>": tokenizer.eos_id,
        "<s>": tokenizer.bos_id,
        "<PRE>": tokenizer.prefix_id,
        " <MID>": tokenizer.middle_id,
    }
    for piece, token in pieces.items():
        more = {"add_special_tokens": False} if field == "prompt" else {}
        told = ask(service, "/tokenize", **{field: piece}, **more)
        assert (told if field == "inputs" else told["tokens"]) in (
            [token],
            [{"id": token, "text": piece, "start": 0, "stop": len(piece)}],
        )


def test_control_pieces_within_a_text_become_ids_only_on_request(service: Service) -> None:
    tokenizer = service.tokenizer
    ids = ask(service, "/tokenize", content="a <PRE> b", parse_special=True)["tokens"]
    assert tokenizer.prefix_id in ids
    assert tokenizer.prefix_id not in ask(service, "/tokenize", content="a <PRE> b")["tokens"]


def test_a_chats_tokens_are_those_of_its_prompt(service: Service) -> None:
    messages = [{"role": "user", "content": "hi"}]
    told = ask(service, "/tokenize", messages=messages)
    assert told["tokens"] == list(service.chat_prompt(messages).tokens)
    assert ask(service, "/tokenize", messages=messages, return_token_strs=True)["token_strs"][0] == "<s>"


@pytest.mark.parametrize(
    ("path", "data", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"text": "a"}, None),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "prompt"),
        ("/tokenize", {"content": "a" * (1 << 18) + "b"}, None),
        ("/tokenize", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [10**30]}, "tokens.0"),
    ],
)
def test_other_bodies_are_refused(
    service: Service, path: str, data: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(Problem) as raised:
        ask(service, path, **data)
    assert (raised.value.status, raised.value.param) == (400, param)
