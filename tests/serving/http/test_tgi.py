"""text-generation-inference's routes: whole = streamed = the library; every token is told; errors in TGI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bad_bodies import broken_bodies, untouched
from chosen_prompts import across, completed, crosses, ends, goes_on, infilled
from http_service import Served, bundled, serving

CODE = "def fib("
HOLE = "def f(x):\n    return <FILL_ME>\n\nprint(f(1))\n"
MOST = {CODE: 60, HOLE: 20}
PENALTIES = {"presence_penalty": 1.5, "frequency_penalty": 1.9}


@pytest.fixture(scope="module")
def library() -> dict[str, Any]:
    """What the library's greedy calls give."""
    with bundled() as llama:
        greedy: dict[str, Any] = {"temperature": 0, "logprobs": 2}
        (whole,) = llama.text_completion([CODE], **greedy, max_gen_len=MOST[CODE])
        (filled,) = llama.text_infilling([HOLE], **greedy, max_gen_len=MOST[HOLE])
        (scored,) = llama.text_completion([CODE], temperature=0, max_gen_len=0, logprobs=True, echo=True)
        long = completed(llama, goes_on, 48)
        (before, after), middle = infilled(llama, crosses, 24)
        (penalized,) = llama.text_completion([long[0]], 0, 1, 48, **PENALTIES)
        (drawn,) = llama.text_completion([CODE], 0.9, 0.8, 20, seed=5, top_k=30, repetition_penalty=1.2)
        return {
            **{"whole": whole, "filled": filled, "scored": scored, "drawn": drawn, "penalized": penalized},
            **{"long": long, "ended": completed(llama, ends, 64)},
            "long hole": (f"{before}<FILL_ME>{after}", middle),
        }


@pytest.fixture(scope="module")
def server(library):
    with bundled() as llama, serving(llama) as served:
        yield served


def ask(inputs: str = CODE, stream: bool | None = None, **parameters: Any) -> dict[str, Any]:
    body = {
        "inputs": inputs,
        "parameters": {"max_new_tokens": MOST.get(inputs, 20), "details": True, **parameters},
    }
    return body if stream is None else {**body, "stream": stream}


def whole(server: Served, **more: Any) -> dict[str, Any]:
    answer = server.post("/generate", ask(**more))
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: Served, **more: Any) -> list[dict[str, Any]]:
    return [json.loads(each) for each in server.events("/generate_stream", ask(**more))]


def texts(answer: dict[str, Any]) -> list[str]:
    """Of its tokens."""
    return [each["text"] for each in answer["details"]["tokens"]]


def pieces(server: Served, tokens: list[dict[str, Any]]) -> list[str]:
    """Of the tokens that are not special, as the library names them."""
    return [server.service.tokenizer.token_piece(each["id"]) for each in tokens if not each["special"]]


@pytest.mark.parametrize(("inputs", "name"), [(CODE, "whole"), (HOLE, "filled")])
def test_text_and_tokens_are_those_of_the_library(server, library, inputs, name) -> None:
    """Also of infilling: one <FILL_ME> is `text_infilling`."""
    expected = library[name]
    answer = whole(server, inputs=inputs, top_n_tokens=2)
    assert answer["generated_text"] == expected["generation"]
    tokens = answer["details"]["tokens"]
    assert pieces(server, tokens) == expected["tokens"]
    assert [each["logprob"] for each in tokens if not each["special"]] == pytest.approx(
        expected["logprobs"], abs=1e-4
    )
    for told, top in zip(answer["details"]["top_tokens"], expected["top_logprobs"], strict=False):
        assert {server.service.tokenizer.token_piece(each["id"]) for each in told} == set(top)
        assert sorted((each["logprob"] for each in told), reverse=True) == pytest.approx(
            sorted(top.values(), reverse=True), abs=1e-4
        )


@pytest.mark.parametrize("stop", [(), ("*",), ("zzz", "*"), ("zzz", "\n    ")])
@pytest.mark.parametrize("name", ["long", "long hole"])
def test_a_stream_tells_what_the_whole_answer_tells(server, library, name, stop) -> None:
    """Whatever stop strings hold back: no text and no token is lost, and the texts joined are the answer.

    "*" is a stop string that begins within a token and ends within the next.
    """
    asked: dict[str, Any] = {"inputs": library[name][0], "max_new_tokens": 24}
    plain = whole(server, **asked)
    given = [across(texts(plain))[1] if each == "*" else each for each in stop]
    more = {**asked, "stop": given, "top_n_tokens": 1}
    answer, events = whole(server, **more), streamed(server, **more)
    details, tokens = answer["details"], [each["token"] for each in events]
    assert (
        "".join(each["text"] for each in tokens) == answer["generated_text"] == events[-1]["generated_text"]
    )
    assert [(each["id"], each["text"], each["special"]) for each in tokens] == [
        (each["id"], each["text"], each["special"]) for each in details["tokens"]
    ]
    assert [[each["id"] for each in event["top_tokens"]] for event in events] == [
        [each["id"] for each in top] for top in details["top_tokens"]
    ]
    assert [each["index"] for each in events] == list(range(1, len(events) + 1))
    assert all(each["generated_text"] is None and each["details"] is None for each in events[:-1])
    last = events[-1]["details"]
    assert last.pop("input_length") > 0
    assert last == {name: details[name] for name in ("finish_reason", "generated_tokens", "seed")}
    assert last["generated_tokens"] == len(tokens)
    found = any(each in plain["generated_text"] for each in given)
    assert (last["finish_reason"] == "stop_sequence") == found
    assert "*" not in stop or found


def test_the_end_token_is_told_without_text(server, library) -> None:
    """Clients print the text of every token, and `</s>` is not part of the answer."""
    prompt, ended = library["ended"]
    *others, last = streamed(server, inputs=prompt, max_new_tokens=64)
    assert len(others) == len(ended["tokens"])
    assert last["generated_text"] == ended["generation"]
    assert last["details"]["finish_reason"] == "eos_token"
    token = last["token"]
    assert (token["id"], token["text"], token["special"]) == (server.service.tokenizer.eos_id, "", True)
    assert token["logprob"] < 0


def test_the_tokens_of_a_stop_string_end_the_list(server, library) -> None:
    """A stop string that begins within a token: what stands before it in the token is told."""
    prompt, long = library["long"]
    asked: dict[str, Any] = {"inputs": prompt, "max_new_tokens": 48}
    told = texts(whole(server, **asked))
    index, stop = across(told)
    answer = whole(server, **asked, stop=[stop])
    assert answer["generated_text"] == "".join(told[:index]) + told[index][:1]
    *kept, first, second = answer["details"]["tokens"]
    assert [each["text"] for each in kept] == told[:index]
    assert (first["text"], second["text"]) == (told[index][:1], "")
    assert pieces(server, [*kept, first, second]) == long["tokens"][: index + 2]


def test_stops_have_two_names(server, library) -> None:
    """llm-ls sends stop_tokens."""
    prompt, _ = library["long"]
    asked: dict[str, Any] = {"inputs": prompt, "max_new_tokens": 48}
    told = texts(whole(server, **asked))
    index, stop = across(told)
    for name in ("stop", "stop_tokens"):
        text = whole(server, **asked, **{name: [stop]})["generated_text"]
        assert text == "".join(told[:index]) + told[index][:1]


def test_the_root_answers_with_a_list_or_streams(server) -> None:
    answer = server.post("/", ask(max_new_tokens=5)).json()
    assert answer == [whole(server, max_new_tokens=5)]
    assert server.post("/", ask(stream=False, max_new_tokens=5)).json() == answer
    events = server.events("/", ask(stream=True, max_new_tokens=5))
    assert json.loads(events[-1])["generated_text"] == answer[0]["generated_text"]


def test_without_details_there_are_none(server) -> None:
    assert set(whole(server, details=False)) == {"generated_text"}
    assert streamed(server, details=False)[-1]["details"] is None


def test_the_prompt_is_scored_as_the_library_does(server, library) -> None:
    answer = whole(server, decoder_input_details=True, details=False)
    prefill = answer["details"]["prefill"]
    first, *others = library["scored"]["logprobs"]
    assert [server.service.tokenizer.token_piece(each["id"]) for each in prefill] == library["scored"][
        "tokens"
    ]
    assert prefill[0]["logprob"] is None
    assert prefill[0]["text"] == "<s>"
    assert first == 0
    assert [each["logprob"] for each in prefill[1:]] == pytest.approx(others, abs=1e-4)


def test_a_seed_repeats_the_librarys_draws_and_is_told(server, library) -> None:
    given = {"temperature": 0.9, "top_p": 0.8, "top_k": 30, "repetition_penalty": 1.2, "max_new_tokens": 20}
    answer = whole(server, seed=5, **given)
    assert answer["generated_text"] == library["drawn"]["generation"]
    assert answer["details"]["seed"] == 5
    drawn = whole(server, **given)
    assert whole(server, seed=drawn["details"]["seed"], **given) == drawn


@pytest.mark.parametrize(
    "parameters",
    [{}, {"temperature": 1.0}, {"do_sample": True, "temperature": 0}, {"do_sample": False, "top_p": 1}],
)
def test_it_is_greedy_unless_asked_to_sample(server, library, parameters) -> None:
    answer = whole(server, **parameters)
    assert answer["generated_text"] == library["whole"]["generation"]
    assert answer["details"]["seed"] is None


@pytest.mark.parametrize(
    "parameters", [{"do_sample": True}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.5}]
)
def test_do_sample_or_a_warper_samples(server, parameters) -> None:
    assert whole(server, seed=3, **parameters)["details"]["seed"] == 3


def test_penalties_are_the_librarys(server, library) -> None:
    prompt, long = library["long"]
    answer = whole(server, inputs=prompt, **PENALTIES, max_new_tokens=48)
    assert answer["generated_text"] == library["penalized"]["generation"] != long["generation"]


def test_the_best_of_several_is_the_most_probable(server) -> None:
    answer = whole(server, best_of=4, do_sample=True, seed=1, max_new_tokens=12)
    best, others = answer["details"], answer["details"]["best_of_sequences"]
    assert len(others) == 3

    def mean(each: dict[str, Any]) -> float:
        return sum(token["logprob"] for token in each["tokens"]) / len(each["tokens"])

    assert mean(best) == max(map(mean, [best, *others]))
    texts = {answer["generated_text"], *(each["generated_text"] for each in others)}
    assert len(texts) > 1
    single = whole(server, do_sample=True, seed=1, max_new_tokens=12)["generated_text"]
    assert single in texts


def test_the_full_text_has_the_inputs_around_it(server, library) -> None:
    assert whole(server, return_full_text=True)["generated_text"] == CODE + library["whole"]["generation"]
    full = library["filled"]["full_text"]
    assert whole(server, inputs=HOLE, return_full_text=True)["generated_text"] == full
    events = streamed(server, inputs=HOLE, return_full_text=True)
    assert events[-1]["generated_text"] == full
    assert "".join(each["token"]["text"] for each in events) == library["filled"]["generation"]


def prompt(server: Served, **more: Any) -> list[int]:
    answer = whole(server, decoder_input_details=True, max_new_tokens=1, **more)
    return [each["id"] for each in answer["details"]["prefill"]]


def test_truncate_keeps_the_end_of_the_prompt(server) -> None:
    """And what makes it a prompt: the bos id, and of infilling its control ids and the suffix."""
    ids = prompt(server)
    assert prompt(server, truncate=3) == [ids[0], *ids[-2:]]
    assert prompt(server, truncate=len(ids)) == ids
    hole = prompt(server, inputs=HOLE)
    assert prompt(server, inputs=HOLE, truncate=len(hole) - 4) == [*hole[:2], *hole[6:]]


@pytest.mark.parametrize("most", [50, 500])
@pytest.mark.parametrize("end", ["", "<FILL> + 1"])
def test_truncate_makes_room_for_any_text(server, end, most) -> None:
    """Also for a text so long that it is otherwise refused before it is encoded."""
    line = "value = other + 1\n"
    ids, longer = (prompt(server, inputs=line * count + end, truncate=most) for count in (200, 2000))
    assert longer == ids
    assert len(ids) == most


BAD = {
    "no inputs": ({}, "inputs"),
    "inputs of a wrong type": ({"inputs": 3}, "inputs"),
    "ids as inputs": ({"inputs": [1, 2]}, "inputs"),
    "an unknown field": ({"inputs": "a", "prompt": "b"}, "prompt"),
    "parameters of a wrong type": ({"inputs": "a", "parameters": [1]}, "parameters"),
    "an unknown parameter": (ask(max_tokens=3), "max_tokens"),
    "a parameter of a wrong type": (ask(temperature="hot"), "temperature"),
    "a bool for a number": (ask(top_k=True), "top_k"),
    "no tokens": (ask(max_new_tokens=0), "max_new_tokens"),
    "a negative temperature": (ask(do_sample=True, temperature=-1), "temperature"),
    "top_p above 1": (ask(do_sample=True, top_p=1.5), "top_p"),
    "a negative seed": (ask(seed=-1, do_sample=True), "seed"),
    "an empty stop string": (ask(stop=[""]), "stop"),
    "too many stop strings": (ask(stop=[str(i) for i in range(65)]), "stop"),
    "too many alternatives": (ask(top_n_tokens=21), "top_n_tokens"),
    "best_of without sampling": (ask(best_of=2), "best_of"),
    "truncate 0": (ask(truncate=0), "truncate"),
    "truncate that cuts the suffix": (ask(HOLE, truncate=4), "truncate"),
    "a watermark": (ask(watermark=True), "watermark"),
    "a grammar": (ask(grammar={"type": "json", "value": {}}), "grammar"),
    "an adapter": (ask(adapter_id="other"), "adapter_id"),
    "typical_p": (ask(typical_p=0.5), "typical_p"),
    "two holes": (ask("a<FILL_ME>b<FILL>c"), "found 2"),
    "no room": (ask("word " * 600), "512"),
    "no room by far": (ask("word " * 100_000), "512"),
    "a stream where none is": (ask(stream=True), "stream"),
}


@pytest.mark.parametrize(("body", "named"), BAD.values(), ids=BAD)
def test_bad_requests_are_422_with_the_name_of_what_is_wrong(server, body, named) -> None:
    with untouched(server):
        answer = server.post("/generate", body)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == "validation"
    assert named in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream"])
@broken_bodies
def test_broken_bodies_are_422(server, path, body) -> None:
    with untouched(server):
        answer = server.client.post(path, content=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error_type"] == "validation"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"best_of": 2, "do_sample": True}, "best_of"),
        ({"decoder_input_details": True}, "decoder_input_details"),
    ],
)
def test_what_only_a_whole_answer_can_have_is_refused_in_a_stream(server, parameters, named) -> None:
    with untouched(server):
        answer = server.post("/generate_stream", ask(**parameters))
    assert answer.status_code == 422
    assert named in answer.json()["error"]


def test_what_asks_for_nothing_is_accepted(server) -> None:
    """text-generation sends every parameter, most of them null."""
    names = "repetition_penalty frequency_penalty seed temperature top_k top_p truncate typical_p best_of"
    nulls = dict.fromkeys([*names.split(), "top_n_tokens", "grammar", "adapter_id"])
    neutral = {"watermark": False, "stop": [], **nulls}
    body = ask(max_new_tokens=3, **neutral)
    answer = server.post("/generate", {**body, "model": "dummy", "options": {"use_cache": False}})
    assert answer.json() == whole(server, max_new_tokens=3)


def test_a_marker_in_text_is_text(server) -> None:
    """Control pieces of users never become control ids, and HTML is no infilling."""
    ids = prompt(server, inputs="<PRE> a <SUF>b <MID> </s>")
    assert server.service.tokenizer.control_ids.isdisjoint(ids[1:])


def test_info_tells_the_limits(server) -> None:
    info = server.client.get("/info").json()
    assert info["model_id"] == "CodeLlama-tiny"
    assert info["max_input_length"] == info["max_input_tokens"] == info["max_total_tokens"] - 1 == 511
    assert info["max_stop_sequences"] == 64
