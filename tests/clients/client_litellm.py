"""litellm, which other tools talk through: to OpenAI's routes, Mistral's fill-in-the-middle, and Ollama's."""

from __future__ import annotations

import litellm
import pytest
from asked import CHAT, COMPLETION, MODEL, PREFIX, SUFFIX, TOKENS

GREEDY = {"max_tokens": TOKENS, "temperature": 0, "num_retries": 0}
USER = [{"role": "user", "content": CHAT}]


@pytest.mark.parametrize(
    ("provider", "path"), [("openai", "/v1"), ("hosted_vllm", "/v1"), ("ollama_chat", "")]
)
def test_chat_is_the_librarys_streamed_or_not(url, library, provider, path) -> None:
    body = {
        "model": f"{provider}/{MODEL}",
        "messages": USER,
        "api_base": url + path,
        "api_key": "any",
        **GREEDY,
    }
    assert litellm.completion(**body).choices[0].message.content == library["chat"]["text"]
    chunks = list(litellm.completion(stream=True, **body))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == library["chat"]["text"]


def test_a_text_goes_on_as_the_librarys(url, library) -> None:
    body = {"model": f"text-completion-openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "any", **GREEDY}
    assert litellm.text_completion(prompt=COMPLETION, **body).choices[0].text == library["completion"]["text"]
    filled = litellm.text_completion(prompt=PREFIX, suffix=SUFFIX, **body)
    assert filled.choices[0].text == library["infilling"]["text"]


def test_codestrals_middle_is_the_librarys_streamed_or_not(url, library) -> None:
    body = {
        "model": f"text-completion-codestral/{MODEL}",
        "api_base": f"{url}/v1/fim/completions",
        "api_key": "any",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        **GREEDY,
    }
    assert litellm.text_completion(**body).choices[0].text == library["infilling"]["text"]
    chunks = list(litellm.text_completion(stream=True, **body))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == library["infilling"]["text"]


def test_an_error_keeps_its_type(url) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(
            model=f"openai/{MODEL}", messages=USER, api_base=f"{url}/v1", api_key="any", temperature=-1
        )
