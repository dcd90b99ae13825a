"""The mistralai package's fill-in-the-middle, and the models it lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from asked import COMPLETION, MODEL, PREFIX, SUFFIX, TOKENS
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

GREEDY = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Mistral]:
    with Mistral(api_key="any", server_url=url) as client:
        yield client


def test_the_middle_is_the_librarys(client, library) -> None:
    answer = client.fim.complete(prompt=PREFIX, suffix=SUFFIX, **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", library["infilling"]["text"])
    assert choice.finish_reason == library["infilling"]["finish_reason"]
    assert answer.usage.completion_tokens == library["infilling"]["generated"]
    assert answer.usage.prompt_tokens == len(library["infilling"]["prompt"])


def test_without_a_suffix_the_prompt_goes_on(client, library) -> None:
    answer = client.fim.complete(prompt=COMPLETION, **GREEDY)
    assert answer.choices[0].message.content == library["completion"]["text"]


def test_a_stream_joined_is_the_answer(client, library) -> None:
    with client.fim.stream(prompt=PREFIX, suffix=SUFFIX, **GREEDY) as stream:
        events = [event.data for event in stream]
    contents = [each.choices[0].delta.content for each in events]
    assert all(isinstance(content, str) for content in contents)
    assert "".join(contents) == library["infilling"]["text"]
    assert events[-1].choices[0].finish_reason == library["infilling"]["finish_reason"]
    assert events[-1].usage.completion_tokens == library["infilling"]["generated"]


def test_stop_and_seed_are_understood(client, library) -> None:
    whole = library["infilling"]["text"]
    stop = whole[10:14]
    answer = client.fim.complete(prompt=PREFIX, suffix=SUFFIX, stop=[stop], **GREEDY)
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    warm = {**GREEDY, "temperature": 0.8, "random_seed": 5, "min_tokens": 2, "top_p": 0.9}
    texts = {
        client.fim.complete(prompt=PREFIX, suffix=SUFFIX, **warm).choices[0].message.content for _ in "ab"
    }
    assert len(texts) == 1


def test_the_asynchronous_calls_get_the_same(url, library) -> None:
    async def main() -> None:
        async with Mistral(api_key="any", server_url=url) as client:
            stream = await client.fim.stream_async(prompt=PREFIX, suffix=SUFFIX, **GREEDY)
            texts = [event.data.choices[0].delta.content async for event in stream]
            assert "".join(texts) == library["infilling"]["text"]

    asyncio.run(main())


def test_the_model_is_listed(client) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.capabilities.completion_fim) == (MODEL, True)


def test_an_error_has_the_servers_words(client) -> None:
    with pytest.raises(SDKError, match="temperature") as caught:
        client.fim.complete(prompt=PREFIX, suffix=SUFFIX, **{**GREEDY, "temperature": -1})
    assert caught.value.status_code == 400
