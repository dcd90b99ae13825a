"""What plug-ins of editors send, word for word, and their way to read the answer.

They are in no registry, so they cannot run here. Their bodies, in bodies/, and the code that reads the answers
were read in their sources: llama.vim, llama.vscode, Zed, Twinny, Tabby, minuet, llm-ls, llama-coder.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import httpx
import pytest
from asked import PREFIX, SUFFIX
from server_process import LIMIT

BODIES = Path(__file__).with_name("bodies")


def body(name: str) -> dict:
    return json.loads((BODIES / f"{name}.json").read_text(encoding="utf-8"))


def post(url: str, path: str, name: str) -> httpx.Response:
    answer = httpx.post(url + path, json=body(name), timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    return answer


def events(answer: httpx.Response) -> list[dict]:
    """As Rust's EventSource gives them: the data of each event, up to [DONE]."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def lines(answer: httpx.Response) -> list[dict]:
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def middle(url: str, prefix: str = PREFIX, tokens: int = 128) -> str:
    """What fills the hole, by the structured call."""
    asked = {"prompt": prefix, "suffix": SUFFIX, "max_tokens": tokens, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=LIMIT)
    return answer.json()["choices"][0]["text"]


# ---- llama.vim and llama.vscode ----------------------------------------------------------------------------


def head(name: str) -> str:
    """The chunks of other files, which come in front of the prefix."""
    return "".join(chunk["text"] for chunk in body(name)["input_extra"])


def test_llama_vim(url) -> None:
    """Vim gives the plug-in one line at a time, and it drops what does not match its pattern."""
    # Where no key is set it sends an empty one, which httpx would refuse to send.
    headers = {"Content-Type": "application/json", "Authorization": "Bearer "}
    request = urllib.request.Request(f"{url}/infill", json.dumps(body("llama_vim_infill")).encode(), headers)
    with urllib.request.urlopen(request, timeout=LIMIT) as answer:
        (line,) = answer.read().decode().splitlines()
    assert re.search(r'"content"\s*:"', line)
    shown = json.loads(line)
    assert set(shown) == set(body("llama_vim_infill")["response_fields"])
    assert shown["timings/predicted_n"] >= 1
    assert shown["timings/prompt_per_second"] > 0
    assert shown["truncated"] is False
    assert shown["tokens_cached"] >= 1
    # Time, or a line that is indented less, may end it early, but only where a line ends.
    whole, content = middle(url, head("llama_vim_infill") + PREFIX), shown["content"]
    assert content
    assert whole.startswith(content)


def test_llama_vims_warm_ups_answer_nothing_and_fill_the_cache(url) -> None:
    for path, name in (
        ("/infill", "llama_vim_warm_up"),
        ("/v1/chat/completions", "llama_vim_chat_warm_up"),
    ):
        assert post(url, path, name).text == "{}"
    again = post(url, "/infill", "llama_vim_infill").json()
    assert again["tokens_cached"] >= 1


def test_llama_vscode(url) -> None:
    answer = post(url, "/infill", "llama_vscode_infill").json()
    assert answer["generation_settings"]["n_ctx"] > 0
    assert answer["content"]
    assert middle(url, head("llama_vscode_infill") + PREFIX).startswith(answer["content"])
    assert answer["timings"]["predicted_n"] >= 1
    assert answer["truncated"] is False


def test_llama_vscode_wants_a_list_of_three(url) -> None:
    answers = post(url, "/infill", "llama_vscode_infill_three").json()
    assert len(answers) == 3
    assert all(isinstance(answer["content"], str) for answer in answers)


def test_llama_vscodes_warm_ups_succeed(url) -> None:
    assert post(url, "/infill", "llama_vscode_warm_up").json()["content"] == ""
    chat = post(url, "/v1/chat/completions", "llama_vscode_chat_warm_up").json()
    assert chat["choices"][0]["message"]["content"] == ""


def test_llama_vscodes_edit_reads_a_chat_answer(url) -> None:
    """Every sampler of llama.cpp is in the body, each at the value that turns it off."""
    answer = post(url, "/v1/chat/completions", "llama_vscode_edit").json()
    assert answer["choices"][0]["message"]["content"]


# ---- Plug-ins that fill the middle -------------------------------------------------------------------------


def zed(answer: httpx.Response) -> str:
    read = answer.json()
    assert {"id", "object", "created", "model"} <= set(read)
    assert all(isinstance(read["usage"][f"{kind}_tokens"], int) for kind in ("prompt", "completion", "total"))
    return read["choices"][0]["text"]


def tabby_openai(answer: httpx.Response) -> str:
    read = [event["choices"][0] for event in events(answer)]
    assert [choice["finish_reason"] is not None for choice in read] == [False] * (len(read) - 1) + [True]
    return "".join(choice["text"] for choice in read)


def tabby_mistral(answer: httpx.Response) -> str:
    read = [event["choices"][0] for event in events(answer)]
    assert [choice["finish_reason"] is not None for choice in read] == [False] * (len(read) - 1) + [True]
    return "".join(choice["delta"]["content"] for choice in read)


def llama_cpp(answer: httpx.Response) -> str:
    read = events(answer)
    assert [event["stop"] for event in read] == [False] * (len(read) - 1) + [True]
    return "".join(event["content"] for event in read)


def ollama(answer: httpx.Response) -> str:
    read = lines(answer)
    assert [line["done"] for line in read] == [False] * (len(read) - 1) + [True]
    return "".join(line["response"] for line in read)


def llm_ls_tgi(answer: httpx.Response) -> str:
    """It refuses a list here."""
    return answer.json()["generated_text"]


GREEDY = [
    ("zed_openai", "/v1/completions", zed),
    ("twinny_openai", "/v1/completions", tabby_openai),
    ("twinny_ollama", "/api/generate", ollama),
    ("twinny_llamacpp", "/completion", llama_cpp),
    ("tabby_llamacpp", "/completion", llama_cpp),
    ("tabby_openai", "/v1/completions", tabby_openai),
    ("tabby_mistral", "/v1/fim/completions", tabby_mistral),
    ("tabby_ollama", "/api/generate", ollama),
    ("minuet_openai", "/v1/completions", tabby_openai),
    ("llm_ls_tgi_nulls", "/generate", llm_ls_tgi),
    ("llama_coder", "/api/generate", ollama),
]
# These ask for a temperature above 0.
SAMPLED = [
    ("zed_ollama", "/api/generate", lambda answer: answer.json()["response"]),
    ("llm_ls_tgi", "/generate", llm_ls_tgi),
    ("llm_ls_ollama", "/api/generate", lambda answer: answer.json()["response"]),
    ("llm_ls_openai", "/v1/completions", lambda answer: answer.json()["choices"][0]["text"]),
]


@pytest.mark.parametrize(("name", "path", "read"), GREEDY, ids=[each[0] for each in GREEDY])
def test_the_middle_is_the_librarys(url, library, name, path, read) -> None:
    assert read(post(url, path, name)) == library["infilling"]["text"]


@pytest.mark.parametrize(("name", "path", "read"), SAMPLED, ids=[each[0] for each in SAMPLED])
def test_a_sampled_middle_is_a_text_without_markers(url, name, path, read) -> None:
    text = read(post(url, path, name))
    assert text
    assert not re.search(r"<(PRE|SUF|MID|EOT)>|</s>", text)


def test_minuets_codestral_stops_where_it_asks(url) -> None:
    text = tabby_mistral(post(url, "/v1/fim/completions", "minuet_codestral"))
    whole = middle(url, body("minuet_codestral")["prompt"], body("minuet_codestral")["max_tokens"])
    assert text == whole.split("\n\n")[0]


def test_continue_sees_in_the_template_that_the_model_infills(url) -> None:
    """Its Ollama provider asks before it sends a suffix; its llama.cpp provider reads /props."""
    shown = httpx.post(f"{url}/api/show", json={"name": "any"}, timeout=LIMIT).json()
    assert ".Suffix" in shown["template"]
    props = httpx.get(f"{url}/props", timeout=LIMIT).json()
    assert props["default_generation_settings"]["n_ctx"] > 0
    models = httpx.get(f"{url}/v1/models", timeout=LIMIT).json()["data"]
    assert models[0]["max_model_len"] == props["default_generation_settings"]["n_ctx"]
