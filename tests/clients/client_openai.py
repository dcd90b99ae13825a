"""The openai package, synchronous and asynchronous: completions, infilling, chat, models and typed errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import openai
import pytest
from asked import CHAT, COMPLETION, MODEL, PREFIX, ROOM, SUFFIX, TOKENS
from server_process import running

GREEDY = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0}
USER = [{"role": "user", "content": CHAT}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_the_model_is_listed_and_found_by_its_name(client) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_completion_is_the_librarys_with_its_counts(client, library) -> None:
    answer = client.completions.create(prompt=COMPLETION, **GREEDY)
    (choice,) = answer.choices
    assert choice.text == library["completion"]["text"]
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    asked = len(library["completion"]["prompt"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (asked, TOKENS)
    assert answer.usage.total_tokens == asked + TOKENS


def test_a_stream_joined_is_the_answer_and_its_usage_comes_last(client, library) -> None:
    stream = client.completions.create(
        prompt=COMPLETION, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == library["completion"]["text"]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], TOKENS)
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_a_stream_that_asks_for_no_usage_has_a_choice_in_every_chunk(client) -> None:
    chunks = list(client.completions.create(prompt=COMPLETION, stream=True, **GREEDY))
    assert all(len(chunk.choices) == 1 for chunk in chunks)


def test_a_suffix_asks_for_infilling(client, library) -> None:
    answer = client.completions.create(prompt=PREFIX, suffix=SUFFIX, **GREEDY)
    assert answer.choices[0].text == library["infilling"]["text"]
    stream = client.completions.create(prompt=PREFIX, suffix=SUFFIX, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream) == library["infilling"]["text"]


def test_texts_and_ids_as_prompts_give_the_same_answers_in_order(client, library) -> None:
    """Many prompts at once, n samples of each: choice i * n + j is sample j of prompt i."""
    ids = library["completion"]["prompt"]
    other = client.completions.create(prompt="import os\n", **GREEDY).choices[0].text
    (text,) = client.completions.create(prompt=ids, **GREEDY).choices
    assert text.text == library["completion"]["text"]
    both = client.completions.create(prompt=["import os\n", COMPLETION], n=2, **GREEDY).choices
    assert [choice.index for choice in both] == [0, 1, 2, 3]
    assert [choice.text for choice in both] == [other] * 2 + [library["completion"]["text"]] * 2


def test_logprobs_belong_to_the_texts_tokens(client, library) -> None:
    (choice,) = client.completions.create(prompt=COMPLETION, logprobs=3, **GREEDY).choices
    scores = choice.logprobs
    assert "".join(scores.tokens) == choice.text
    assert scores.token_logprobs == pytest.approx(library["completion"]["logprobs"], abs=1e-4)
    for chosen, top in zip(scores.token_logprobs, scores.top_logprobs, strict=True):
        assert len(top) == 3
        assert chosen == max(top.values())  # greedy
    assert scores.text_offset[0] in (0, len(COMPLETION))
    lengths = [len(token) for token in scores.tokens]
    assert [b - a for a, b in pairwise(scores.text_offset)] == lengths[:-1]


def test_a_streams_logprobs_are_the_answers(client) -> None:
    (choice,) = client.completions.create(prompt=COMPLETION, logprobs=2, **GREEDY).choices
    chunks = list(client.completions.create(prompt=COMPLETION, logprobs=2, stream=True, **GREEDY))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == choice.logprobs.tokens
    assert [offset for part in parts for offset in part.text_offset] == choice.logprobs.text_offset
    scores = [score for part in parts for score in part.token_logprobs]
    assert scores == pytest.approx(choice.logprobs.token_logprobs)


def test_echo_returns_the_prompt_with_its_scores(client) -> None:
    (choice,) = client.completions.create(prompt=COMPLETION, echo=True, logprobs=1, **GREEDY).choices
    assert choice.text.startswith(COMPLETION)
    assert choice.logprobs.token_logprobs[0] is None
    assert all(score is not None for score in choice.logprobs.token_logprobs[1:])


def test_samples_repeat_with_their_seed_and_differ_from_each_other(client) -> None:
    body = {"model": MODEL, "prompt": COMPLETION, "max_tokens": TOKENS, "temperature": 1, "n": 4}
    first, again = (client.completions.create(seed=7, **body) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) > 1
    best = client.completions.create(seed=7, **{**body, "n": 1}, best_of=4)
    assert best.choices[0].text in texts


def test_a_stop_string_ends_the_text_before_it(client, library) -> None:
    whole = library["completion"]["text"]
    stop = whole[20:26]
    (choice,) = client.completions.create(prompt=COMPLETION, stop=[stop, "no such text"], **GREEDY).choices
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_bias_keeps_a_token_away_and_forces_another(client, library) -> None:
    first = library["completion"]["tokens"][0]
    banned = client.completions.create(prompt=COMPLETION, logit_bias={str(first): -100}, **GREEDY)
    assert banned.choices[0].text != library["completion"]["text"]
    forced = client.completions.create(prompt=COMPLETION, logit_bias={"2": 100}, **GREEDY)  # </s>
    assert (forced.choices[0].text, forced.choices[0].finish_reason) == ("", "stop")


def test_a_chat_answer_is_the_librarys_streamed_or_not(client, library) -> None:
    answer = client.chat.completions.create(messages=USER, **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", library["chat"]["text"])
    assert (answer.object, choice.finish_reason) == ("chat.completion", "length")
    chunks = list(client.chat.completions.create(messages=USER, stream=True, **GREEDY))
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == library["chat"]["text"]
    assert [each.choices[0].finish_reason for each in chunks if each.choices[0].finish_reason] == ["length"]


def test_the_stream_helper_collects_a_chat(client, library) -> None:
    # At a limit of tokens it raises, with what there is.
    with (
        client.chat.completions.stream(messages=USER, **GREEDY) as stream,
        pytest.raises(openai.LengthFinishReasonError) as caught,
    ):
        stream.get_final_completion()
    assert caught.value.completion.choices[0].message.content == library["chat"]["text"]


def test_a_chat_has_logprobs_system_texts_parts_and_turns(client) -> None:
    turns = [
        {"role": "system", "content": "Answer in Python."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": CHAT},
    ]
    answer = client.chat.completions.create(
        messages=turns, model=MODEL, max_completion_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    scores = answer.choices[0].logprobs.content
    assert "".join(each.token for each in scores) == answer.choices[0].message.content
    assert all(len(each.top_logprobs) == 2 for each in scores)


def test_a_prediction_changes_the_time_and_not_the_text(client, library) -> None:
    guess = {"type": "content", "content": library["chat"]["text"]}
    answer = client.chat.completions.create(messages=USER, prediction=guess, **GREEDY)
    assert answer.choices[0].message.content == library["chat"]["text"]
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0


def test_many_asynchronous_callers_get_the_librarys_text(url, library) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:

            async def streamed() -> str:
                stream = await client.completions.create(prompt=COMPLETION, stream=True, **GREEDY)
                return "".join([chunk.choices[0].text async for chunk in stream])

            async def whole() -> str:
                answer = await client.completions.create(prompt=PREFIX, suffix=SUFFIX, **GREEDY)
                return answer.choices[0].text

            texts = await asyncio.gather(*(streamed() for _ in range(8)), *(whole() for _ in range(8)))
            assert texts == [library["completion"]["text"]] * 8 + [library["infilling"]["text"]] * 8

    asyncio.run(main())


def test_a_caller_that_leaves_is_not_waited_for(url, library) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            body = {**GREEDY, "max_tokens": ROOM - 64}
            async with await client.completions.create(prompt=COMPLETION, stream=True, **body) as stream:
                await anext(aiter(stream))
            answer = await client.completions.create(prompt=COMPLETION, **GREEDY)
            assert answer.choices[0].text == library["completion"]["text"]

    asyncio.run(main())


def test_errors_have_their_types_and_name_the_field(client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt=COMPLETION, extra_body={"no_such_field": 1}, **GREEDY)
    assert "no_such_field" in caught.value.message
    assert caught.value.param == "no_such_field"
    assert caught.value.request_id
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="word " * 2 * ROOM, **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    assert f"{ROOM:,}" in caught.value.message
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=USER, tools=[tool], **GREEDY)
    assert caught.value.param == "tools"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(prompt=COMPLETION, **{**GREEDY, "temperature": -1})
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input=CHAT)


def test_a_key_and_the_true_name_are_asked_for_where_the_operator_wants_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    with running(tmp_path, "--api-key-file", str(keys), "--strict-model") as server:
        address = {"base_url": f"{server.url}/v1", "max_retries": 0}
        with openai.OpenAI(api_key="third", **address) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        for key in ("first", "second"):
            with openai.OpenAI(api_key=key, **address) as client:
                assert client.completions.create(prompt=COMPLETION, **GREEDY).choices
                with pytest.raises(openai.NotFoundError) as caught:
                    client.completions.create(prompt=COMPLETION, **{**GREEDY, "model": "other"})
                assert caught.value.code == "model_not_found"
