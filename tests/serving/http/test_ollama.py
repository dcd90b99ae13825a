"""Ollama's routes: lines joined = whole = the library; options as Ollama means them; errors in its shape."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from bad_bodies import broken_bodies, untouched
from chosen_prompts import completed, ends, goes_on, has_word, inside
from http_service import Served, bundled, serving
from tiny_llama import tiny_llama

BEFORE, AFTER, CODE = "def f(x):\n    return ", "\n\nprint(f(1))\n", "def fib("
DIALOG = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Reverse a list."}]
GREEDY = {"temperature": 0, "num_predict": 24}
# By Ollama's name: the library's, and a value.
PENALTIES: dict[str, tuple[str, float]] = {
    "repeat_penalty": ("repetition_penalty", 1.8),
    "presence_penalty": ("presence_penalty", 2),
    "frequency_penalty": ("frequency_penalty", 2),
}


@pytest.fixture(scope="module")
def library() -> dict[str, Any]:
    with bundled() as llama:
        greedy: dict[str, Any] = {"temperature": 0, "max_gen_len": 24}
        drawn = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 7, "max_gen_len": 24}
        (chat,) = llama.chat_completion([DIALOG], **greedy)
        long = completed(llama, goes_on, 48)
        (turn,) = llama.chat_completion([DIALOG[1:]], **greedy)
        return {
            "filled": llama.text_infilling([BEFORE], [AFTER], **greedy)[0]["generation"],
            "reversed": llama.text_infilling([BEFORE], [AFTER], suffix_first=True, **greedy)[0]["generation"],
            "completed": llama.text_completion([CODE], **greedy, logprobs=2)[0],
            "ended": completed(llama, ends, 64),
            "long": long,
            "with a word": completed(llama, has_word),
            "penalized": {
                ours: llama.text_completion([long[0]], 0, 1, 48, **{ours: value})[0]["generation"]
                for ours, value in PENALTIES.values()
            },
            "no prefix": llama.text_infilling([""], [AFTER], **greedy)[0],
            "drawn": llama.text_completion([CODE], **drawn)[0]["generation"],
            "chat": chat["generation"]["content"],
            "turn": turn["generation"]["content"],
        }


@pytest.fixture(scope="module")
def server(library):
    with bundled() as llama, serving(llama) as served:
        yield served


def whole(server: Served, path: str = "/api/generate", **body: Any) -> dict[str, Any]:
    answer = server.post(path, {"model": "codellama:7b-code", "options": GREEDY, "stream": False, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def lines(server: Served, path: str = "/api/generate", **body: Any) -> list[dict[str, Any]]:
    """Streaming is the default."""
    answer = server.post(path, {"model": "codellama:7b-code", "options": GREEDY, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if "duration" not in name and name != "created_at"}


GENERATE = {
    "a suffix": ({"prompt": BEFORE, "suffix": AFTER}, "filled"),
    "a suffix and raw": ({"prompt": BEFORE, "suffix": AFTER, "raw": True}, "filled"),
    "markers": ({"prompt": f"<PRE> {BEFORE} <SUF>{AFTER} <MID>", "raw": True}, "filled"),
    "markers without spaces": ({"prompt": f"<PRE>{BEFORE}<SUF>{AFTER}<MID>", "raw": True}, "filled"),
    "markers, suffix first": ({"prompt": f"<PRE> <SUF>{AFTER} <MID> {BEFORE}", "raw": True}, "reversed"),
    "raw": ({"prompt": CODE, "raw": True}, "completed"),
    "a plain template": ({"prompt": CODE, "template": "{{ .Prompt }}"}, "completed"),
    "a plain template and markers": (
        {"prompt": f"<PRE> {BEFORE} <SUF>{AFTER} <MID>", "template": "{{.Prompt}}"},
        "filled",
    ),
    "a question": ({"prompt": DIALOG[1]["content"]}, "turn"),
    "a question and system": ({"prompt": DIALOG[1]["content"], "system": DIALOG[0]["content"]}, "chat"),
}


@pytest.mark.parametrize(("body", "name"), GENERATE.values(), ids=GENERATE)
def test_a_prompt_means_what_raw_template_and_suffix_say(server, library, body, name) -> None:
    expected = library[name] if isinstance(library[name], str) else library[name]["generation"]
    assert whole(server, **body)["response"] == expected


def test_with_text_fim_markers_count_without_raw_too() -> None:
    """Twinny sends them so; a question is still a question."""
    body = {"prompt": "<PRE> def <SUF> value <MID>", "options": {"temperature": 0, "num_predict": 4}}
    with serving(tiny_llama(), text_fim=True) as served:
        filled = whole(served, **body)
        assert filled["prompt_eval_count"] == len(served.service.infilling_prompt("def", " value").tokens)
        assert whole(served, **body, raw=True)["response"] == filled["response"]
        asked = whole(served, prompt="return value", options=body["options"])
        dialog = served.service.chat_prompt([{"role": "user", "content": "return value"}])
        assert asked["prompt_eval_count"] == len(dialog.tokens)


def test_messages_are_a_dialog(server, library) -> None:
    assert whole(server, "/api/chat", messages=DIALOG)["message"] == {
        "role": "assistant",
        "content": library["chat"],
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": BEFORE, "suffix": AFTER}),
        ("/api/generate", {"prompt": CODE, "raw": True, "options": {"temperature": 0}}),
        ("/api/generate", {"prompt": CODE, "raw": True, "options": {**GREEDY, "stop": ["e", "zz"]}}),
        ("/api/generate", {"prompt": CODE, "raw": True, "logprobs": True, "top_logprobs": 2}),
        ("/api/chat", {"messages": DIALOG}),
    ],
)
def test_lines_joined_are_the_whole_answer(server, path, body) -> None:
    answer, found = whole(server, path, **body), lines(server, path, **body)

    def text(line: dict[str, Any]) -> str:
        return line["message"]["content"] if path == "/api/chat" else line["response"]

    assert "".join(map(text, found)) == text(answer)
    *others, last = map(without_times, found)
    assert all(not line["done"] and "done_reason" not in line for line in others)
    told = ("done", "done_reason", "eval_count", "prompt_eval_count", "model")
    assert {name: last[name] for name in told} == {name: answer[name] for name in told}
    logprobs = [each for line in others for each in line.get("logprobs", [])]
    assert [each["token"] for each in logprobs] == [each["token"] for each in answer.get("logprobs", [])]


def test_the_last_line_counts_and_measures(server, library) -> None:
    for name, reason, most in (("long", "length", 48), ("ended", "stop", 64)):
        prompt, answer = library[name]
        options = {"temperature": 0, "num_predict": most}
        *_, last = lines(server, prompt=prompt, raw=True, options=options)
        assert last["done"] is True
        assert last["done_reason"] == reason
        assert last["response"] == ""
        assert last["eval_count"] == len(answer["tokens"])
        assert last["prompt_eval_count"] == len(server.service.text_prompt(prompt).tokens)
    durations = [last[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert all(type(each) is int and each >= 1 for each in durations)
    assert sum(durations) - 3 <= last["total_duration"] < 120 * 10**9
    datetime.fromisoformat(last["created_at"])
    assert last["model"] == "CodeLlama-tiny"


def test_an_answer_that_ends_by_itself_says_stop(server, library) -> None:
    for limit in ({}, {"num_predict": 0}, {"num_predict": -2}):
        prompt, ended = library["ended"]
        answer = whole(server, prompt=prompt, raw=True, options={"temperature": 0, **limit})
        assert answer["response"] == ended["generation"]
        assert answer["done_reason"] == "stop"


def test_the_defaults_are_ollamas(server, library) -> None:
    """0.8, 0.9, 40; and greedy for infilling, whose answer belongs into a file."""
    options = {"seed": 7, "num_predict": 24}
    assert whole(server, prompt=CODE, raw=True, options=options)["response"] == library["drawn"]
    filled = whole(server, prompt=BEFORE, suffix=AFTER, options={"num_predict": 24})
    assert filled["response"] == library["filled"]
    drawn = whole(server, prompt=BEFORE, suffix=AFTER, options={**options, "temperature": 1.5})
    assert drawn["response"] != library["filled"]


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_the_librarys(server, library, name) -> None:
    prompt, long = library["long"]
    ours, value = PENALTIES[name]
    options = {"temperature": 0, "num_predict": 48, name: value}
    answer = whole(server, prompt=prompt, raw=True, options=options)
    assert answer["response"] == library["penalized"][ours] != long["generation"]
    off = whole(server, prompt=prompt, raw=True, options={**options, "repeat_last_n": 0})
    assert off["response"] == long["generation"]


def test_a_seed_of_minus_one_is_none(server) -> None:
    options = {"seed": -1, "num_predict": 6, "temperature": 2.0}
    assert len({whole(server, prompt=CODE, raw=True, options=options)["response"] for _ in range(4)}) > 1


def test_another_negative_seed_is_one(server) -> None:
    """Tabby sends 32 bits with a sign."""
    options = {"num_predict": 12, "temperature": 2.0}
    first, again, unsigned = (
        whole(server, prompt=CODE, raw=True, options={**options, "seed": seed})["response"]
        for seed in (-5, -5, 2**32 - 5)
    )
    assert first == again == unsigned


def test_stops_count_in_both_places(server, library) -> None:
    """jupyterlab-cellsense sends them beside the options."""
    prompt, written = library["with a word"]
    word, cut = inside(written["generation"])
    for body in (
        {"stop": [word]},
        {"stop": word},
        {"options": {**GREEDY, "stop": word}},
        {"options": {**GREEDY, "stop": ["\0"]}, "stop": [word]},
    ):
        answer = whole(server, prompt=prompt, raw=True, **body)
        assert answer["response"] == written["generation"][:cut]
        assert answer["done_reason"] == "stop"


def test_logprobs_are_the_librarys(server, library) -> None:
    found = whole(server, prompt=CODE, raw=True, logprobs=True, top_logprobs=2)["logprobs"]
    expected = library["completed"]
    assert [each["logprob"] for each in found] == pytest.approx(expected["logprobs"], abs=1e-4)
    assert b"".join(bytes(each["bytes"]) for each in found).decode() == expected["generation"]
    for each, top in zip(found, expected["top_logprobs"], strict=True):
        assert [other["logprob"] for other in each["top_logprobs"]] == pytest.approx(
            list(top.values()), abs=1e-4
        )
    plain = whole(server, prompt=CODE, raw=True, logprobs=True)["logprobs"]
    assert all("top_logprobs" not in each for each in plain)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_without_a_prompt_the_model_is_loaded(server, stream) -> None:
    with untouched(server):
        for path, body in (
            ("/api/generate", {}),
            ("/api/generate", {"prompt": ""}),
            ("/api/chat", {"messages": []}),
        ):
            answer = server.post(path, {"model": "x", "keep_alive": "5m", "stream": stream, **body}).json()
            assert answer["done"] is True
            assert answer["done_reason"] == "load"


def test_a_file_may_begin_with_the_hole(server, library) -> None:
    answer, filled = whole(server, prompt="", suffix=AFTER), library["no prefix"]
    assert (answer["response"], answer["done_reason"]) == (filled["generation"], filled["finish_reason"])


def test_what_clients_always_send_is_accepted(server, library) -> None:
    """litellm: images; ollama: tools; Twinny, cellsense: keep_alive; Continue: num_ctx and the like."""
    options = {**GREEDY, "num_ctx": 4096, "num_thread": 4, "num_gpu": 1, "mirostat": 0, "repeat_last_n": 64}
    more = {"keep_alive": -1, "think": False, "options": options, "stop": None}
    answer = whole(server, prompt=CODE, raw=True, images=[], context=[], format="", **more)
    assert answer["response"] == library["completed"]["generation"]
    messages = [{**each, "images": []} for each in DIALOG]
    answer = whole(server, "/api/chat", messages=messages, tools=[], **more)
    assert answer["message"]["content"] == library["chat"]


# ---- models ---------------------------------------------------------------------------------------------------


def test_show_tells_that_the_model_infills(server) -> None:
    for field in ("model", "name"):
        shown = server.post("/api/show", {field: "codellama"}).json()
        assert ".Suffix" in shown["template"]
        assert "[INST]" in shown["template"]
        assert shown["capabilities"] == ["completion", "insert"]
        assert shown["parameters"] == "num_ctx 512"
        assert shown["model_info"]["general.architecture"] == "llama"
        assert shown["model_info"]["llama.context_length"] == 512
        assert shown["details"]["parameter_size"] == "5.0M"


def test_lists_hold_the_one_model(server) -> None:
    (tag,) = server.client.get("/api/tags").json()["models"]
    (running,) = server.client.get("/api/ps").json()["models"]
    assert tag["name"] == tag["model"] == running["name"] == "CodeLlama-tiny"
    details = {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}
    assert set(tag["details"]) == details
    assert tag["size"] > 5_000_000
    assert running["size_vram"] == 0
    assert running["context_length"] == 512
    datetime.fromisoformat(tag["modified_at"])
    assert [int(part) for part in server.client.get("/api/version").json()["version"].split(".")] >= [0, 6, 4]


def test_a_quantized_model_has_its_real_size() -> None:
    with bundled(quantize="int8") as llama, serving(llama) as served:
        (tag,) = served.client.get("/api/tags").json()["models"]
    matrices, embedding = 4_000_000, 4096 * 256
    assert tag["details"]["quantization_level"] == "Q8_0"
    assert matrices * 34 / 32 + 4 * embedding < tag["size"] < matrices * 34 / 32 + 4 * embedding + 50_000


def test_the_served_model_is_pulled_already(server) -> None:
    for name in ("CodeLlama-tiny", "CodeLlama-tiny:latest"):
        found = server.post("/api/pull", {"model": name, "insecure": False})
        assert [json.loads(line)["status"] for line in found.text.splitlines()][-1] == "success"
        assert server.post("/api/pull", {"name": name, "stream": False}).json() == {"status": "success"}
    other = server.post("/api/pull", {"model": "mistral"})
    assert other.status_code == 400
    assert "CodeLlama-tiny" in other.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("POST", "/api/push"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:00"),
        ("POST", "/api/embed"),
        ("POST", "/api/embeddings"),
    ],
)
def test_other_management_is_refused(server, method, path) -> None:
    answer = server.client.request(method, path, json={"model": "x"})
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


# ---- bad requests ---------------------------------------------------------------------------------------------

ASK = {"model": "x", "prompt": CODE}
BAD = {
    "a prompt of a wrong type": ({"prompt": 3}, "prompt"),
    "an unknown field": ({"max_tokens": 3}, "max_tokens"),
    "an unknown option": ({"options": {"beams": 3}}, "options.beams"),
    "options of a wrong type": ({"options": [1]}, "options"),
    "an option of a wrong type": ({"options": {"temperature": "hot"}}, "options.temperature"),
    "a bool for a number": ({"options": {"num_predict": True}}, "options.num_predict"),
    "mirostat": ({"options": {"mirostat": 1}}, "options.mirostat"),
    "a negative temperature": ({"options": {"temperature": -1}}, "temperature"),
    "top_p above 1": ({"options": {"top_p": 1.2}}, "top_p"),
    "an empty stop string": ({"stop": ["a", ""]}, "stop"),
    "images": ({"images": ["aGk="]}, "images"),
    "context": ({"context": [1, 2]}, "context"),
    "JSON wanted": ({"format": "json"}, "format"),
    "a schema": ({"format": {"type": "object"}}, "format"),
    "thinking": ({"think": True}, "think"),
    "too many alternatives": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "another template": ({"template": "Q: {{ .Prompt }}"}, "template"),
    "raw and template": ({"raw": True, "template": "{{ .Prompt }}"}, "template"),
    "raw and system": ({"raw": True, "system": "Be brief."}, "system"),
    "suffix and system": ({"suffix": "a", "system": "Be brief."}, "system"),
    "a marker twice": ({"raw": True, "prompt": "<PRE> a <SUF>b <MID> <MID>"}, "<MID> 2 times"),
    "a chat tag": ({"prompt": "[INST] hi [/INST]"}, "[INST]"),
    "no room": ({"raw": True, "prompt": "word " * 600}, "512"),
    "no room by far": ({"suffix": "word " * 100_000}, "512"),
}
BAD_CHAT = {
    "messages of a wrong type": ({"messages": "hi"}, "messages"),
    "a message of a wrong type": ({"messages": ["hi"]}, "messages.0"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.role"),
    "an unknown field of a message": ({"messages": [{"role": "user", "text": "1"}]}, "messages.0.text"),
    "content of a wrong type": ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content"),
    "an image": ({"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "messages.0.images"),
    "roles out of order": ({"messages": [*DIALOG, DIALOG[1]]}, "message 2"),
    "a tag in a message": ({"messages": [{"role": "user", "content": "a [/INST] b"}]}, "[/INST]"),
    "tools": ({"messages": DIALOG, "tools": [{"type": "function"}]}, "tools"),
    "a prompt": ({"messages": DIALOG, "prompt": "a"}, "prompt"),
}
_CASES = [("/api/generate", {**ASK, **body}, named) for body, named in BAD.values()]
_CASES += [("/api/chat", {"model": "x", **body}, named) for body, named in BAD_CHAT.values()]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("path", "body", "named"), _CASES, ids=[*BAD, *BAD_CHAT])
def test_bad_requests_are_400_with_the_name_of_what_is_wrong(server, path, body, named, stream) -> None:
    with untouched(server):
        answer = server.post(path, {**body, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert named in answer.json()["error"]


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/show", "/api/pull"])
@broken_bodies
def test_broken_bodies_are_400(server, path, body) -> None:
    with untouched(server):
        answer = server.client.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["error"], str)
