"""One law for all doors: the same prompt, greedily, gives the ids and the text of the library's own call."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from asked import CHAT, COMPLETION, FILL_ME, MARKED, MODEL, PREFIX, SUFFIX, TOKENS
from server_process import LIMIT

OPENAI = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0}
LLAMA_CPP = {"n_predict": TOKENS, "temperature": 0, "return_tokens": True}
TGI = {"parameters": {"max_new_tokens": TOKENS, "details": True}}
OLLAMA = {"model": MODEL, "stream": False, "options": {"num_predict": TOKENS, "temperature": 0}}
USER = {"messages": [{"role": "user", "content": CHAT}]}

Read = Callable[[dict], tuple[str, list[int] | None]]


def text(answer: dict) -> tuple[str, list[int] | None]:
    choice = answer["choices"][0]
    return choice["text"], choice.get("token_ids")


def message(answer: dict) -> tuple[str, list[int] | None]:
    choice = answer["choices"][0]
    return choice["message"]["content"], choice.get("token_ids")


def content(answer: dict) -> tuple[str, list[int] | None]:
    return answer["content"], answer["tokens"]


def generated(answer: dict) -> tuple[str, list[int] | None]:
    answer = answer[0] if isinstance(answer, list) else answer
    # This protocol also tells of the end token, as a special one.
    ids = [token["id"] for token in answer["details"]["tokens"] if not token["special"]]
    return answer["generated_text"], ids


def response(answer: dict) -> tuple[str, list[int] | None]:
    return answer["response"], None


WAYS: list[tuple[str, str, dict, Read]] = [
    ("completion", "/v1/completions", {**OPENAI, "prompt": COMPLETION, "return_token_ids": True}, text),
    ("completion", "/completion", {**LLAMA_CPP, "prompt": COMPLETION}, content),
    ("completion", "/completions", {**LLAMA_CPP, "prompt": COMPLETION}, content),
    ("completion", "/generate", {**TGI, "inputs": COMPLETION}, generated),
    ("completion", "/", {**TGI, "inputs": COMPLETION}, generated),
    ("completion", "/v1/fim/completions", {**OPENAI, "prompt": COMPLETION}, message),
    ("completion", "/api/generate", {**OLLAMA, "prompt": COMPLETION, "raw": True}, response),
    ("infilling", "/v1/completions", {**OPENAI, "prompt": PREFIX, "suffix": SUFFIX}, text),
    ("infilling", "/v1/completions", {**OPENAI, "prompt": MARKED}, text),
    ("infilling", "/infill", {**LLAMA_CPP, "input_prefix": PREFIX, "input_suffix": SUFFIX}, content),
    ("infilling", "/completion", {**LLAMA_CPP, "prompt": MARKED}, content),
    ("infilling", "/generate", {**TGI, "inputs": FILL_ME}, generated),
    ("infilling", "/v1/fim/completions", {**OPENAI, "prompt": PREFIX, "suffix": SUFFIX}, message),
    ("infilling", "/api/generate", {**OLLAMA, "prompt": PREFIX, "suffix": SUFFIX}, response),
    ("infilling", "/api/generate", {**OLLAMA, "prompt": MARKED, "raw": True}, response),
    ("chat", "/v1/chat/completions", {**OPENAI, **USER}, message),
    ("chat", "/api/chat", {**OLLAMA, **USER}, lambda answer: (answer["message"]["content"], None)),
    ("chat", "/api/generate", {**OLLAMA, "prompt": CHAT}, response),
]


@pytest.mark.parametrize(("kind", "path", "body", "read"), WAYS, ids=[f"{way[0]}-{way[1]}" for way in WAYS])
def test_every_door_gives_the_librarys_tokens(url, library, kind, path, body, read) -> None:
    answer = httpx.post(url + path, json=body, timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    written, ids = read(answer.json())
    assert written == library[kind]["text"]
    assert ids in (None, library[kind]["tokens"])


def test_the_ids_of_a_prompt_are_the_librarys(url, library) -> None:
    """Through each of the three bodies that /tokenize knows."""

    def tokenize(**body: object) -> object:
        return httpx.post(f"{url}/tokenize", json=body, timeout=LIMIT).json()

    wanted = library["completion"]["prompt"]
    assert tokenize(content=COMPLETION, add_special=True)["tokens"] == wanted
    assert tokenize(prompt=COMPLETION, add_special_tokens=True)["tokens"] == wanted
    # Slices of the text, so without the beginning of a text.
    assert [token["id"] for token in tokenize(inputs=COMPLETION)] == wanted[1:]
    back = httpx.post(f"{url}/detokenize", json={"tokens": wanted[1:]}, timeout=LIMIT).json()
    assert back["content"] == back["prompt"] == COMPLETION
