"""huggingface_hub's InferenceClient, given the server's address: text-generation-inference's routes, and chat."""

from __future__ import annotations

import asyncio

import pytest
from asked import CHAT, COMPLETION, FILL_ME, MODEL, TOKENS
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

USER = [{"role": "user", "content": CHAT}]


@pytest.fixture(scope="module")
def client(url: str) -> InferenceClient:
    return InferenceClient(base_url=url)


def test_a_text_goes_on_as_the_librarys(client, library) -> None:
    """Greedy, since neither do_sample nor anything that shapes sampling is set."""
    assert client.text_generation(COMPLETION, max_new_tokens=TOKENS) == library["completion"]["text"]
    pieces = client.text_generation(COMPLETION, max_new_tokens=TOKENS, stream=True)
    assert "".join(pieces) == library["completion"]["text"]


def test_fill_me_asks_for_infilling(client, library) -> None:
    assert client.text_generation(FILL_ME, max_new_tokens=TOKENS) == library["infilling"]["text"]


def test_details_hold_the_ids_texts_and_scores(client, library) -> None:
    answer = client.text_generation(
        COMPLETION, max_new_tokens=TOKENS, details=True, decoder_input_details=True, top_n_tokens=2
    )
    wanted, details = library["completion"], answer.details
    assert answer.generated_text == wanted["text"]
    assert (details.finish_reason, details.generated_tokens) == ("length", TOKENS)
    assert [token.id for token in details.tokens] == wanted["tokens"]
    assert "".join(token.text for token in details.tokens) == wanted["text"]
    assert [token.logprob for token in details.tokens] == pytest.approx(wanted["logprobs"], abs=1e-4)
    assert [token.id for token in details.prefill] == wanted["prompt"]
    assert [top[0]["id"] for top in details.top_tokens] == wanted["tokens"]
    assert all(len(top) == 2 for top in details.top_tokens)


def test_a_streams_events_hold_the_same_and_the_last_one_the_rest(client, library) -> None:
    wanted = library["completion"]
    events = list(client.text_generation(COMPLETION, max_new_tokens=TOKENS, stream=True, details=True))
    assert [event.token.id for event in events] == wanted["tokens"]
    assert "".join(event.token.text for event in events) == wanted["text"]
    assert [event.index for event in events] == list(range(1, TOKENS + 1))
    assert [event.details for event in events[:-1]] == [None] * (TOKENS - 1)
    last = events[-1]
    assert last.generated_text == wanted["text"]
    assert (last.details.finish_reason, last.details.generated_tokens) == ("length", TOKENS)
    assert last.details.input_length == len(wanted["prompt"])


def test_options_reach_the_sampler(client, library) -> None:
    whole = library["completion"]["text"]
    full = client.text_generation(COMPLETION, max_new_tokens=TOKENS, return_full_text=True)
    assert full == COMPLETION + whole
    stop = whole[20:26]
    cut = client.text_generation(COMPLETION, max_new_tokens=TOKENS, stop=[stop], details=True)
    assert cut.details.finish_reason == "stop_sequence"
    assert cut.generated_text in (whole[: whole.index(stop)], whole[: whole.index(stop) + len(stop)])
    options = {"do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "seed": 3, "best_of": 1}
    first, again = (client.text_generation(COMPLETION, max_new_tokens=TOKENS, **options) for _ in range(2))
    assert first == again


def test_a_wrong_value_is_a_validation_error(client) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation(COMPLETION, temperature=-1.0)


def test_chat_is_the_librarys_streamed_or_not(client, library) -> None:
    """The client sends the model as "dummy"."""
    answer = client.chat_completion(USER, max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].message.content == library["chat"]["text"]
    chunks = client.chat_completion(USER, max_tokens=TOKENS, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == library["chat"]["text"]


def test_the_server_tells_what_it_is(url) -> None:
    client = InferenceClient(url, provider="hf-inference")
    info = client.get_endpoint_info()
    assert info["model_id"] == MODEL
    assert client.health_check()


def test_the_asynchronous_client_gets_the_same(url, library) -> None:
    async def main() -> None:
        async with AsyncInferenceClient(base_url=url) as client:
            stream = await client.text_generation(COMPLETION, max_new_tokens=TOKENS, stream=True)
            assert "".join([piece async for piece in stream]) == library["completion"]["text"]

    asyncio.run(main())
