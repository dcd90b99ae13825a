"""The ollama package: generate, infilling with a suffix, chat, and what it asks about models."""

from __future__ import annotations

import ollama
import pytest
from asked import CHAT, COMPLETION, MARKED, MODEL, PREFIX, ROOM, SUFFIX, TOKENS

GREEDY = {"num_predict": TOKENS, "temperature": 0}
USER = [{"role": "user", "content": CHAT}]


@pytest.fixture(scope="module")
def client(url: str) -> ollama.Client:
    return ollama.Client(host=url)


def test_a_raw_prompt_goes_on_as_the_librarys(client, library) -> None:
    wanted = library["completion"]
    answer = client.generate(MODEL, COMPLETION, raw=True, options=GREEDY)
    assert (answer.response, answer.done, answer.done_reason) == (wanted["text"], True, "length")
    assert (answer.prompt_eval_count, answer.eval_count) == (len(wanted["prompt"]), TOKENS)
    assert 0 < answer.eval_duration <= answer.total_duration
    parts = list(client.generate(MODEL, COMPLETION, raw=True, stream=True, options=GREEDY))
    assert "".join(part.response for part in parts) == wanted["text"]
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_suffix_asks_for_infilling(client, library) -> None:
    answer = client.generate(MODEL, PREFIX, suffix=SUFFIX, options=GREEDY)
    assert answer.response == library["infilling"]["text"]
    parts = client.generate(MODEL, PREFIX, suffix=SUFFIX, stream=True, options=GREEDY)
    assert "".join(part.response for part in parts) == library["infilling"]["text"]


def test_a_raw_prompt_with_markers_asks_for_infilling(client, library) -> None:
    assert client.generate(MODEL, MARKED, raw=True, options=GREEDY).response == library["infilling"]["text"]


def test_a_prompt_alone_is_a_message(client, library) -> None:
    """As Ollama does: the template of a chat around it."""
    assert client.generate(MODEL, CHAT, options=GREEDY).response == library["chat"]["text"]


def test_chat_is_the_librarys_streamed_or_not(client, library) -> None:
    answer = client.chat(MODEL, USER, options=GREEDY)
    assert (answer.message.role, answer.message.content) == ("assistant", library["chat"]["text"])
    parts = list(client.chat(MODEL, USER, stream=True, options=GREEDY))
    assert "".join(part.message.content for part in parts) == library["chat"]["text"]
    assert parts[-1].done


def test_a_stop_string_ends_the_text_before_it(client, library) -> None:
    whole = library["completion"]["text"]
    stop = whole[20:26]
    answer = client.generate(MODEL, COMPLETION, raw=True, options={**GREEDY, "stop": [stop]})
    assert (answer.response, answer.done_reason) == (whole[: whole.index(stop)], "stop")


def test_no_prompt_loads_the_model(client) -> None:
    answer = client.generate(MODEL)
    assert (answer.response, answer.done, answer.done_reason) == ("", True, "load")


def test_the_model_is_listed_shown_and_at_work(client) -> None:
    (listed,) = client.list().models
    (at_work,) = client.ps().models
    assert listed.model.partition(":")[0] == at_work.model.partition(":")[0] == MODEL
    shown = client.show(MODEL)
    assert ".Suffix" in shown.template
    assert shown.capabilities == ["completion", "insert"]
    assert shown.modelinfo["llama.context_length"] == ROOM


def test_pulling_the_model_that_is_served_succeeds(client) -> None:
    assert client.pull(MODEL).status == "success"
    assert [part.status for part in client.pull(MODEL, stream=True)][-1] == "success"


def test_errors_say_what_was_wrong(client) -> None:
    with pytest.raises(ollama.ResponseError, match=f"{ROOM:,}") as caught:
        client.generate(MODEL, "word " * 2 * ROOM, raw=True)
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="images"):
        client.generate(MODEL, COMPLETION, images=["aGVsbG8="])
    with pytest.raises(ollama.ResponseError):
        client.create("another", from_=MODEL)
