"""llama.cpp's /infill and /completion over HTTP, with the bodies that llama.vim and llama.vscode send."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from chosen_prompts import completed, ends, infilled, inside
from http_service import LIMIT, Served, bundled, serving
from test_llamacpp_limits import indented

from llama.serving.http.llamacpp.answers import AnswersEncoder
from llama.serving.http.problems import Problem

PREFIX = "class Reader:\n    def read(self, size):\n"
LINE = "        self."
SUFFIX = "\n    def close(self):\n        pass\n"
EXTRA = "import os\nimport sys\n"
# As llama.vim a1c8e6e sends it.
VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": [{"text": EXTRA, "time": [1700000000, 12345], "filename": ""}],
    "prompt": LINE,
    "n_predict": 32,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
    "model": "",
}
# As llama.vscode 3938fb3: without `stop` and `response_fields`.
VSCODE = {
    **{name: value for name, value in VIM.items() if name not in ("stop", "response_fields")},
    "input_extra": [{"text": EXTRA, "time": 1700000000000, "filename": "a.py"}],
    "top_p": 0.99,
    "n_cmpl": 3,
}
# The same hole without a limit of time, whose answer does not depend on the machine.
HOLE = {
    name: VIM[name]
    for name in ("input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "samplers")
}
EOS = 2
# A text of 24 tokens, whatever model: its end is forbidden.
GREEDY: dict[str, Any] = {"temperature": 0, "n_predict": 24, "logit_bias": [[EOS, False]]}
# The library's name for it.
ENDLESS = {EOS: -100.0}
TEXT = "def fib(n):\n    if"


@pytest.fixture(scope="module")
def llama():
    with bundled() as made:
        yield made


@pytest.fixture(scope="module")
def middle(llama) -> str:
    """What the library's call fills into the hole."""
    (filled,) = llama.text_infilling([EXTRA + PREFIX + LINE], [SUFFIX], temperature=0, max_gen_len=32)
    return filled["generation"]


@pytest.fixture(scope="module")
def continued(llama) -> str:
    """What the library's call writes behind TEXT."""
    (written,) = llama.text_completion([TEXT], temperature=0, max_gen_len=24, logit_bias=ENDLESS)
    return written["generation"]


@pytest.fixture(scope="module")
def ended(llama) -> tuple[str, Any]:
    """A text that the model ends before 24 tokens, and what the library's call writes behind it."""
    return completed(llama, ends)


@pytest.fixture(scope="module")
def lines(llama) -> tuple[dict[str, Any], int, str]:
    """A hole that the model goes on to fill, an indentation, and the middle's first 64 tokens.

    Some of its lines have less indentation, and before them, one has not.
    """

    def cuts(text: str) -> list[int]:
        return [n for n in range(1, 13) if text != indented(text, n) and indented(text, n).count("\n") > 1]

    def has(answer: Any) -> bool:
        return answer["generation"].count("\n") > 2 and bool(cuts(answer["generation"]))

    ids = (EOS, llama.tokenizer.eot_id)
    (before, after), filled = infilled(llama, has, 64, logit_bias=dict.fromkeys(ids, -100.0))
    hole = {"input_prefix": before, "input_suffix": after, "n_predict": 400, "samplers": HOLE["samplers"]}
    text = filled["generation"]
    return {**hole, "logit_bias": [[each, False] for each in ids]}, cuts(text)[-1], text


@pytest.fixture(scope="module")
def server(llama, middle, continued, ended, lines):
    with serving(llama) as served:
        yield served


def ok(server: Served, path: str, body: object) -> Any:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- llama.vim and llama.vscode ----------------------------------------------------------------------------


def test_llama_vim_gets_one_line_of_compact_json_with_its_fields(server: Served, middle: str) -> None:
    answer = server.post("/infill", VIM)
    assert '"content":"' in answer.text
    assert "\n" not in answer.text
    told = answer.json()
    assert list(told) == VIM["response_fields"]
    # The limit of time may have ended it at a line break.
    whole = indented(middle, 4)
    assert told["content"] == whole or (whole.startswith(told["content"]) and told["content"].endswith("\n"))
    assert told["truncated"] is False
    assert told["tokens_cached"] > told["timings/predicted_n"] >= len(told["content"].split("\n")) - 1


def test_infill_is_the_librarys_infilling_with_extra_and_line_in_the_prefix(
    server: Served, middle: str
) -> None:
    assert ok(server, "/infill", HOLE)["content"] == middle


def test_llama_vscode_gets_an_array_of_as_many_as_it_asks_for(server: Served) -> None:
    told = ok(server, "/infill", {**VSCODE, "seed": 7})
    assert [each["index"] for each in told] == [0, 1, 2]
    assert all(isinstance(each["content"], str) for each in told)
    assert told[0]["generation_settings"]["temperature"] == 0.6
    one = ok(server, "/infill", {**VSCODE, "n_cmpl": 1})
    assert one["generation_settings"]["n_ctx"] == server.service.max_model_len


@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_a_warm_up_answers_nothing_and_fills_the_cache(server: Served, path: str) -> None:
    text = f"# warm {path} " + "value = list(range(size))\n" * 6
    body = {"input_prefix": text} if path == "/infill" else {"prompt": text}
    quiet = {**body, "n_predict": 0, "samplers": [], "cache_prompt": True}
    assert ok(server, path, {**quiet, "response_fields": [""]}) == {}
    told = ok(server, path, {**body, **GREEDY, "n_predict": 1})
    assert told["timings"]["cache_n"] > len(server.service.tokenizer.encode(text, True, False)) - 32
    assert told["timings"]["cache_n"] + told["timings"]["prompt_n"] == told["tokens_evaluated"]
    # Without response_fields, as llama.vscode warms up, it is a full answer without text.
    again = ok(server, path, {**quiet, "ignore_eos": True})
    assert (again["content"], again["tokens_predicted"], again["stop_type"]) == ("", 0, "limit")


def test_chunks_sent_ahead_are_in_the_cache_when_the_hole_comes(server: Served) -> None:
    # As llama.vim sends new chunks of its ring while the user does not type.
    chunks = [
        {"text": f"# chunk {i}\n" + "size = read(buffer, size)\n" * 4, "time": [1, 2], "filename": ""}
        for i in (1, 2)
    ]
    ahead = {
        **{"input_prefix": "", "input_suffix": "", "input_extra": chunks, "prompt": "", "n_predict": 0},
        **{"temperature": 0.0, "stream": False, "samplers": [], "cache_prompt": True},
        **{"t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""]},
    }
    assert ok(server, "/infill", ahead) == {}
    told = ok(server, "/infill", {**HOLE, "input_extra": chunks})
    head = "".join(chunk["text"] for chunk in chunks)
    assert told["timings"]["cache_n"] > len(server.service.tokenizer.encode(head, False, False)) - 32


def test_a_warm_up_streamed_has_no_text_either(server: Served) -> None:
    (last,) = server.events("/infill", {**HOLE, "n_predict": 0, "stream": True})
    assert (json.loads(last)["content"], json.loads(last)["stop"]) == ("", True)


# ---- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_less_indentation_ends_the_text_and_the_request(server: Served, lines: Any, stream: bool) -> None:
    hole, n_indent, middle = lines
    whole = indented(middle, n_indent)
    engine = server.service.engine
    cancelled = engine.snapshot.cancelled
    body = {**hole, "n_indent": n_indent, "return_tokens": True, "stream": stream}
    if stream:
        *parts, last = [json.loads(each) for each in server.events("/infill", body)]
        text = "".join(each["content"] for each in parts)
        tokens = [token for each in parts for token in each["tokens"]]
    else:
        last = ok(server, "/infill", body)
        text, tokens = last["content"], last["tokens"]
    assert text == whole
    assert (last["stop"], last["stop_type"], last["tokens_predicted"]) == (True, "limit", len(tokens))
    # Ids whose text goes through the cut are left out.
    assert whole.startswith(server.service.tokenizer.decode_infilling(tokens))
    assert last["timings"]["predicted_ms"] > 0
    end = time.monotonic() + LIMIT
    while engine.snapshot.cancelled == cancelled:
        assert time.monotonic() < end, "the request went on"
        time.sleep(0.002)


def test_after_the_time_the_text_ends_with_a_line(server: Served, lines: Any) -> None:
    hole, _, middle = lines
    told = ok(server, "/infill", {**hole, "t_max_predict_ms": 0.001})
    assert middle.startswith(told["content"])
    assert told["content"].endswith("\n")
    assert len(told["content"]) < len(middle)
    assert told["stop_type"] == "limit"


def test_what_does_not_fit_is_left_out_and_the_answer_says_so(server: Served) -> None:
    told = ok(server, "/infill", {**HOLE, "input_prefix": PREFIX * 100, "n_predict": 4})
    assert told["truncated"] is True
    assert told["tokens_evaluated"] + 4 <= server.service.max_model_len
    assert LINE.strip() in told["prompt"]


# ---- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_a_completion_is_the_librarys(server: Served, continued: str, path: str) -> None:
    told = ok(server, path, {**GREEDY, "prompt": TEXT})
    assert told["content"] == continued
    assert (told["stop"], told["stop_type"], told["tokens"], told["index"]) == (True, "limit", [], 0)
    assert told["model"] == server.service.settings.model_name
    assert told["has_new_line"] == ("\n" in continued)
    assert told["tokens_predicted"] == told["timings"]["predicted_n"] == 24


def test_ids_and_lists_answer_the_same_in_their_order(server: Served, continued: str) -> None:
    ids = server.service.tokenizer.encode(TEXT, bos=True, eos=False)
    told = ok(server, "/completion", {**GREEDY, "prompt": [TEXT, ids, "import"], "n_cmpl": 2})
    assert [each["index"] for each in told] == list(range(6))
    assert [each["content"] for each in told[:4]] == [continued] * 4
    assert ok(server, "/completion", {**GREEDY, "prompt": ids})["content"] == continued


def test_to_the_end_means_to_a_stop_or_the_end_of_the_context(server: Served) -> None:
    ids = [1, *[300] * (server.service.max_model_len - 4)]
    told = ok(server, "/completion", {"prompt": ids, "temperature": 0})
    assert told["tokens_predicted"] <= 3
    assert told["truncated"] == (told["stop_type"] == "limit")


def test_an_answer_that_ends_by_itself_is_the_librarys_and_says_so(server: Served, ended: Any) -> None:
    prompt, written = ended
    body = {"prompt": prompt, "temperature": 0, "n_predict": 24}
    told = ok(server, "/completion", body)
    assert (told["content"], told["stop_type"]) == (written["generation"], "eos")
    assert told["tokens_predicted"] == len(written["tokens"]) < 24
    *parts, last = [json.loads(each) for each in server.events("/completion", {**body, "stream": True})]
    assert "".join(each["content"] for each in parts) == written["generation"]
    assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "eos")


def test_a_stream_joined_is_the_whole_answer_and_has_no_done(server: Served, continued: str) -> None:
    body = {**GREEDY, "prompt": TEXT, "stop": "zzz", "return_tokens": True}
    whole = ok(server, "/completion", body)
    *parts, last = [json.loads(each) for each in server.events("/completion", {**body, "stream": True})]
    assert "".join(each["content"] for each in parts) == continued
    assert [token for each in parts for token in each["tokens"]] == whole["tokens"]
    assert {each["stop"] for each in parts} == {False}
    assert last.keys() == whole.keys()
    assert (last["stop"], last["content"], last["tokens"], last["stop_type"]) == (True, "", [], "limit")


def test_a_stop_word_is_named(server: Served, continued: str) -> None:
    word, cut = inside(continued)
    told = ok(server, "/completion", {**GREEDY, "prompt": TEXT, "stop": ["zzz", word, ""]})
    assert (told["stop_type"], told["stopping_word"]) == ("word", word)
    assert told["content"] == continued[:cut]


def test_probabilities_belong_to_the_ids(server: Served) -> None:
    # Without a bias, which is not in the probabilities.
    body = {**GREEDY, "prompt": TEXT, "n_probs": 3, "return_tokens": True, "logit_bias": []}
    told = ok(server, "/completion", body)
    found = told["completion_probabilities"]
    assert [each["id"] for each in found] == told["tokens"]
    for each in found:
        best = each["top_logprobs"]
        assert len(best) == 3
        assert (best[0]["id"], best[0]["logprob"]) == (each["id"], each["logprob"])
        assert bytes(best[0]["bytes"]).decode() == best[0]["token"]
    parts = [json.loads(each) for each in server.events("/completion", {**body, "stream": True})]
    assert [one for part in parts for one in part.get("completion_probabilities", [])] == found


def test_timings_come_with_each_event_if_asked_for(server: Served) -> None:
    events = server.events(
        "/completion", {**GREEDY, "prompt": TEXT, "stream": True, "timings_per_token": True}
    )
    counts = [json.loads(each)["timings"]["predicted_n"] for each in events]
    assert counts == sorted(counts)
    assert counts[-1] == 24


def test_a_seed_repeats_and_minus_one_is_random(server: Served) -> None:
    body = {"prompt": TEXT, "temperature": 1.5, "n_predict": 12}
    assert len({ok(server, "/completion", {**body, "seed": 11})["content"] for _ in range(2)}) == 1
    seeds = {
        ok(server, "/completion", {**body, "seed": -1, "n_predict": 1})["generation_settings"]["seed"]
        for _ in range(3)
    }
    assert len(seeds) == 3


def test_a_banned_token_is_never_drawn(server: Served) -> None:
    first = ok(server, "/completion", {**GREEDY, "prompt": TEXT, "return_tokens": True})["tokens"][0]
    body = {**GREEDY, "prompt": TEXT, "return_tokens": True, "logit_bias": [[first, False]]}
    assert first not in ok(server, "/completion", body)["tokens"]


def test_the_end_of_the_text_is_told_and_may_be_ignored(server: Served) -> None:
    ending = {**GREEDY, "prompt": TEXT, "logit_bias": {str(server.service.tokenizer.eos_id): 100}}
    told = ok(server, "/completion", ending)
    assert (told["content"], told["stop_type"], told["tokens_predicted"]) == ("", "eos", 0)
    assert ok(server, "/completion", {**ending, "ignore_eos": True})["stop_type"] == "limit"


def test_a_penalty_counts_unless_it_looks_back_at_nothing(server: Served, continued: str) -> None:
    body = {**GREEDY, "prompt": TEXT, "presence_penalty": 100, "return_tokens": True}
    tokens = ok(server, "/completion", body)["tokens"]
    assert len(set(tokens)) == len(tokens)
    assert ok(server, "/completion", {**body, "repeat_last_n": 0})["content"] == continued


def test_response_fields_keep_their_slash_and_leave_out_what_is_not_there(server: Served) -> None:
    fields = ["content", "timings/prompt_n", "timings/nothing", "content/x", "generation_settings/n_predict"]
    told = ok(server, "/completion", {**GREEDY, "prompt": TEXT, "response_fields": fields})
    assert list(told) == ["content", "timings/prompt_n", "generation_settings/n_predict"]


def test_a_stream_that_fails_ends_with_an_event_that_every_client_can_read() -> None:
    problem = Problem(500, "internal_error", "a reason", "field")
    event = json.loads(AnswersEncoder(None, None).failed(problem).removeprefix(b"data: "))
    error = {"code": 500, "message": "a reason", "type": "server_error", "param": "field"}
    assert event == {"content": "", "stop": True, "error": error}


def test_fields_that_ask_for_nothing_pass(server: Served, continued: str) -> None:
    body = {
        **GREEDY,
        "prompt": TEXT,
        **{"typical_p": 1, "mirostat": 0, "mirostat_tau": 5, "lora": [], "grammar": "", "json_schema": None},
        **{"dry_multiplier": 0.0, "dry_base": 1.75, "xtc_probability": 0, "post_sampling_probs": False},
        **{"penalty_last_n": 64, "repeat_last_n": 64, "n_keep": 0, "id_slot": -1, "stop": None},
    }
    assert ok(server, "/completion", body)["content"] == continued
