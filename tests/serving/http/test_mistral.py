"""Mistral's /v1/fim/completions: whole = streamed = the library; content is a string everywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bad_bodies import broken_bodies, untouched
from chosen_prompts import completed, ends, has_word, infilled, inside
from http_service import bundled, serving

PATH = "/v1/fim/completions"
BEFORE, AFTER, CODE = "def f(x):\n    return ", "\n\nprint(f(1))\n", "def fib("
FIM = {"model": "codestral-latest", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 24}
PENALTIES = {"frequency_penalty": 1.9, "presence_penalty": 1.5}


@pytest.fixture(scope="module")
def library() -> dict[str, Any]:
    with bundled() as llama:
        greedy: dict[str, Any] = {"temperature": 0, "max_gen_len": 24}
        forced: dict[str, Any] = {**greedy, "max_gen_len": 48, "min_tokens": 48}
        drawn: dict[str, Any] = {"temperature": 0.8, "top_p": 0.7, "max_gen_len": 24, "seed": 11}
        return {
            "filled": llama.text_infilling([BEFORE], [AFTER], **greedy)[0]["generation"],
            "counted": len(llama.text_infilling([BEFORE], [AFTER], **greedy, logprobs=True)[0]["tokens"]),
            "with a word": infilled(llama, has_word),
            "open end": llama.text_infilling([BEFORE], [""], **greedy)[0]["generation"],
            "ended": completed(llama, ends, 64),
            "forced": llama.text_infilling([BEFORE], [AFTER], **forced)[0]["generation"],
            "penalized": llama.text_infilling([BEFORE], [AFTER], **forced, **PENALTIES)[0]["generation"],
            "drawn": llama.text_infilling([BEFORE], [AFTER], **drawn)[0]["generation"],
        }


@pytest.fixture(scope="module")
def server(library):
    with bundled() as llama, serving(llama) as served:
        yield served


def whole(server, **more: Any) -> dict[str, Any]:
    answer = server.post(PATH, {**FIM, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def text(server, **more: Any) -> str:
    return whole(server, **more)["choices"][0]["message"]["content"]


def chunks(server, **more: Any) -> list[dict[str, Any]]:
    *events, done = server.events(PATH, {**FIM, **more, "stream": True})
    assert done == "[DONE]"
    return [json.loads(each) for each in events]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "filled"),
        ({"suffix": ""}, "open end"),
        ({"max_completion_tokens": 24, "max_tokens": None}, "filled"),
    ],
)
def test_the_middle_is_the_librarys(server, library, fields, name) -> None:
    assert text(server, **fields) == library[name]


def test_without_a_suffix_the_prompt_is_continued(server, library) -> None:
    """To the model's own end, where no limit is given."""
    for suffix in ({"suffix": None}, {}):
        prompt, ended = library["ended"]
        (choice,) = server.post(PATH, {"prompt": prompt, **suffix}).json()["choices"]
        assert choice["message"]["content"] == ended["generation"]
        assert choice["finish_reason"] == ended["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "fields",
    [{}, {"stop": ["e", "zz"]}, {"stop": "\n"}, {"prompt": CODE, "suffix": None, "max_tokens": 64}],
)
def test_a_stream_joined_is_the_whole_answer(server, fields) -> None:
    answer, found = whole(server, **fields), chunks(server, **fields)
    (choice,) = answer["choices"]
    deltas = [each["choices"][0]["delta"] for each in found]
    assert all(type(delta["content"]) is str for delta in deltas)
    assert "".join(delta["content"] for delta in deltas) == choice["message"]["content"]
    assert deltas[0]["role"] == choice["message"]["role"] == "assistant"
    reasons = [each["choices"][0]["finish_reason"] for each in found]
    assert reasons == [None] * (len(found) - 1) + [choice["finish_reason"]]
    assert found[-1]["usage"] == answer["usage"]
    assert all("usage" not in each for each in found[:-1])
    assert {each["id"] for each in found} == {found[0]["id"]}
    assert found[0]["model"] == answer["model"] == "CodeLlama-tiny"


def test_stops_cut_the_text(server, library) -> None:
    (before, after), filled = library["with a word"]
    word, cut = inside(filled["generation"])
    for stop in (word, ["\0", word]):
        answer = whole(server, prompt=before, suffix=after, stop=stop)
        assert answer["choices"][0]["message"]["content"] == filled["generation"][:cut]
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_seeds_repeat_by_either_name(server, library) -> None:
    for name in ("random_seed", "seed"):
        assert text(server, temperature=0.8, top_p=0.7, **{name: 11}) == library["drawn"]


def test_the_usage_counts_ids(server, library) -> None:
    assert whole(server)["usage"]["completion_tokens"] == library["counted"]
    usage = whole(server, min_tokens=24)["usage"]
    assert usage["completion_tokens"] == 24
    tokenizer = server.service.tokenizer
    ids = server.service.infilling_prompt(BEFORE, AFTER).tokens
    assert usage["prompt_tokens"] == len(ids)
    assert tokenizer.suffix_id in ids
    assert usage["total_tokens"] == len(ids) + 24


def test_min_tokens_keeps_the_model_from_ending(server, library) -> None:
    prompt, ended = library["ended"]
    short = len(ended["tokens"])
    body = {"prompt": prompt, "suffix": None, "max_tokens": 80}
    assert whole(server, **body)["usage"]["completion_tokens"] == short
    assert whole(server, **body, min_tokens=short + 5)["usage"]["completion_tokens"] >= short + 5


def test_penalties_are_the_librarys(server, library) -> None:
    forced = {"max_tokens": 48, "min_tokens": 48}
    assert text(server, **forced) == library["forced"]
    assert text(server, **forced, **PENALTIES) == library["penalized"] != library["forced"]


BAD = {
    "no prompt": ({"prompt": None}, "prompt"),
    "a prompt of ids": ({"prompt": [1, 2]}, "prompt"),
    "a suffix of a wrong type": ({"suffix": 1}, "suffix"),
    "an unknown field": ({"top_k": 3}, "top_k"),
    "several samples": ({"n": 2}, "n"),
    "a bool for a number": ({"max_tokens": True}, "max_tokens"),
    "a negative limit": ({"max_tokens": -1}, "max_tokens"),
    "two limits": ({"max_completion_tokens": 3}, "max_completion_tokens"),
    "two seeds": ({"seed": 3, "random_seed": 4}, "seed"),
    "a negative temperature": ({"temperature": -0.1}, "temperature"),
    "a negative seed": ({"random_seed": -1}, "seed"),
    "top_p above 1": ({"top_p": 2}, "top_p"),
    "an empty stop string": ({"stop": ""}, "stop"),
    "no room": ({"prompt": "word " * 600}, "512"),
    "no room by far": ({"suffix": "word " * 100_000}, "512"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("fields", "named"), BAD.values(), ids=BAD)
def test_bad_requests_are_400_with_the_name_of_what_is_wrong(server, fields, named, stream) -> None:
    with untouched(server):
        answer = server.post(PATH, {**FIM, **fields, "stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["object"] == "error"
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert error["error"] == {name: error[name] for name in ("message", "type", "param", "code")}


@broken_bodies
def test_broken_bodies_are_400(server, body) -> None:
    with untouched(server):
        answer = server.client.post(PATH, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "invalid_json" or answer.json()["message"]


def test_what_continue_and_mistralai_add_is_accepted(server, library) -> None:
    """Numbers that ask for nothing, and fields of Mistral's own service."""
    more = {
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "metadata": {"a": 1},
        "prompt_cache_key": "k",
        "n": 1,
    }
    assert text(server, **more, stop=None, random_seed=None) == library["filled"]
