"""Laws of a generator on servers of all kinds: every refusal by name, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from remote_requests import (
    HOLES,
    LENGTH,
    PLAIN,
    Scripted,
    by_place,
    completion,
    refused,
    sample_requests,
    settings,
)

from llama.errors import ConfigError, EvaluationError, LlamaError
from llama.evaluation.generator import PROMPT_TOO_LONG, ModelInfo, seed_of
from llama.evaluation.problem import Answer, Order, Problem
from llama.evaluation.remote import UNKNOWN, sample_seed
from llama.terminal.backend import ServerError


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [each for each in threading.enumerate() if each.name == "remote generation"]


def test_a_request_says_what_the_settings_say() -> None:
    server = Scripted(lambda body: completion())
    server.generate(
        sample_requests([Problem("a", "def ", stops=("\n#",))], Order.PLAIN, 2), temperature=0.8, top_p=0.9
    )
    seed = seed_of(0, "a", Order.PLAIN)
    body = {
        "model": "theirs",
        "prompt": "def ",
        "max_tokens": LENGTH,
        "temperature": 0.8,
        "top_p": 0.9,
        "stop": ["\n#"],
    }
    expected = [{**body, "seed": sample_seed(seed, sample)} for sample in range(2)]
    assert sorted(server.bodies, key=lambda each: each["seed"]) == sorted(
        expected, key=lambda each: each["seed"]
    )
    assert server.paths == ["/v1/completions"] * 2
    server = Scripted(lambda body: httpx.Response(200, json={"choices": [{"message": {"content": "y"}}]}))
    (answer,) = server.generate(
        sample_requests([Problem("b", "unused", stops=("\n#",), question="?")], Order.CHAT), top_p=0.0
    )
    assert answer.text == "y"
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "?"}]
    # Code stands within other text there; top_p means nothing at temperature 0, and servers refuse 0.
    assert not {"stop", "prompt"} & server.bodies[0].keys()
    assert server.bodies[0]["top_p"] == 1


def test_each_sample_has_a_seed_of_its_own_that_every_server_takes() -> None:
    """llama.cpp's are of 32 bits, Java's and numpy's older ones of 31 and 32."""
    seeds = [sample_seed(seed_of(0, f"task/{i}", Order.PLAIN), j) for i in range(20) for j in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 2**31
    assert sample_seed(seed_of(0, "task/0", Order.PLAIN), 0) == 636253877


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("eos_token", "stop"),
        ("max_tokens", "length"),
        ("content_filter", "content_filter"),
        (None, UNKNOWN),
        ("", UNKNOWN),
        (7, UNKNOWN),
    ],
)
def test_finish_reasons_of_all_servers_are_read(given: object, found: str) -> None:
    (answer,) = Scripted(lambda body: completion(finish=given)).generate(
        sample_requests(PLAIN[:1], Order.PLAIN)
    )
    assert answer.finish_reason == found


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [({"completion_tokens": 7}, 7), ({}, 0), ({"completion_tokens": "7"}, 0), ("many", 0), (None, 0)],
)
def test_tokens_are_those_of_the_usage(usage: object, tokens: int) -> None:
    (answer,) = Scripted(lambda body: completion(usage=usage)).generate(
        sample_requests(PLAIN[:1], Order.PLAIN)
    )
    assert answer.tokens == tokens


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {},
        {"choices": []},
        {"choices": ["x"]},
        {"choices": [{"text": 5}]},
        {"choices": [{"message": {}}]},
    ],
    ids=str,
)
def test_an_answer_without_a_text_has_a_name(body: object) -> None:
    with pytest.raises(ServerError, match="answer without a text"):
        Scripted(lambda _: httpx.Response(200, json=body)).generate(sample_requests(PLAIN[:1], Order.PLAIN))


def test_a_server_that_is_busy_is_asked_again() -> None:
    answers = [httpx.Response(503, headers={"retry-after": "7"}), refused(429, "full"), completion("here")]
    server = Scripted(lambda body: answers.pop(0))
    (answer,) = server.generate(sample_requests(PLAIN[:1], Order.PLAIN))
    assert answer.text == "here"
    assert server.waits == [7.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            refused(400, "temperature is odd"),
            EvaluationError,
            r"server:1 refuses plain/0 \(400\): temperature is odd",
        ),
        (refused(404, "no such route"), EvaluationError, r"\(404\): no such route"),
        (refused(401, "no"), ServerError, "api-key-file"),
        (refused(500, "broken"), ServerError, "500: broken"),
        (refused(503, "starting"), ServerError, "no answer in 8 tries; the last: .*starting"),
        (httpx.Response(200, content=b"<html>"), ServerError, "answer without a text"),
    ],
    ids=str,
)
def test_every_failure_has_a_name(answer: httpx.Response, error: type[LlamaError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        Scripted(lambda body: answer).generate(sample_requests(PLAIN, Order.PLAIN, 3))
    assert type(raised.value) is error


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 64 tokens. However, you requested 512 tokens",
        "the request exceeds the available context size (512 tokens)",
        "prompt is too long",
    ],
)
def test_prompts_that_are_too_long_for_other_servers_end_no_run(message: str) -> None:
    server = Scripted(lambda body: refused(400, message) if body["prompt"] == "long" else completion())
    found = by_place(iter(server.generate(sample_requests([Problem("long", "long"), PLAIN[0]], Order.PLAIN))))
    assert found["long", 0].finish_reason == PROMPT_TOO_LONG
    assert found[PLAIN[0].task_id, 0].text == "x"


FIVE = tuple("abcde")


@pytest.mark.parametrize("honest", [True, False])
def test_five_stops_cut_the_text_whatever_the_server_makes_of_them(honest: bool) -> None:
    """Some servers take four at most, some ignore them: the text is the same."""

    def handler(body: dict[str, Any]) -> httpx.Response:
        if len(body["stop"]) > 4 and honest:
            return refused(400, "stop: at most 4 sequences")
        return completion("xy e d", "length")

    server = Scripted(handler, in_flight=1)
    found = server.generate(
        sample_requests([Problem(str(i), "p", stops=FIVE) for i in range(3)], Order.PLAIN)
    )
    assert [answer.text for answer in found] == ["xy "] * 3
    assert [answer.finish_reason for answer in found] == ["stop_sequence"] * 3
    lengths = [len(body["stop"]) for body in server.bodies]
    assert lengths == ([5, 4, 4, 4] if honest else [5, 5, 5]), "it is found out once"


def count_words(body: dict[str, Any], *, reads_suffix: bool) -> httpx.Response:
    words = body["prompt"] + (body.get("suffix", "") if reads_suffix else "")
    return completion(usage={"prompt_tokens": len(words.split())})


def test_a_server_that_ignores_the_suffix_is_found_out() -> None:
    """It would write a continuation, which would be judged as if it were the middle."""
    with pytest.raises(
        EvaluationError, match=r"ignores the field suffix \(a prompt has 4 tokens with it, and 4 without"
    ):
        Scripted(lambda body: count_words(body, reads_suffix=False)).generate(
            sample_requests(HOLES, Order.PSM)
        )
    honest = Scripted(lambda body: count_words(body, reads_suffix=True))
    assert len(honest.generate(sample_requests(HOLES, Order.PSM, 3))) == 6
    assert len(honest.bodies) == 6 + 2
    # It asks nothing where there is no hole, and believes a server that counts nothing.
    plain = Scripted(lambda body: count_words(body, reads_suffix=False))
    plain.generate(sample_requests(PLAIN, Order.PLAIN))
    assert len(plain.bodies) == len(PLAIN)
    assert len(Scripted(lambda body: completion()).generate(sample_requests(HOLES, Order.PSM))) == 2


@pytest.mark.parametrize(
    "answer",
    [refused(400, "suffix is not currently supported"), refused(400, "no pieces", "unsupported")],
    ids=str,
)
def test_a_server_that_refuses_the_suffix_is_named(answer: httpx.Response) -> None:
    with pytest.raises(
        EvaluationError, match=r"http://server:1 cannot fill holes: (suffix is not|no pieces)"
    ):
        Scripted(lambda body: answer).generate(sample_requests(HOLES, Order.PSM))


def test_the_order_spm_is_refused_since_no_server_can_be_asked_for_it() -> None:
    server = Scripted(lambda body: completion())
    with pytest.raises(EvaluationError, match="spm cannot be asked for; take order psm"):
        server.generate([*sample_requests(HOLES, Order.PSM), *sample_requests(HOLES, Order.SPM)])
    assert server.bodies == []


@pytest.mark.parametrize("in_flight", [1, 5, 64])
def test_requests_in_flight_are_as_many_as_allowed(in_flight: int) -> None:
    running = most = 0

    async def slow() -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return completion()

    found = Scripted(lambda body: slow(), in_flight=in_flight).generate(
        sample_requests(PLAIN, Order.PLAIN, 25)
    )
    assert {(each.problem.task_id, each.sample) for each in found} == {
        (problem.task_id, sample) for problem in PLAIN for sample in range(25)
    }
    assert len(found) == 100
    assert most == in_flight


def test_closing_early_ends_all_requests() -> None:
    ended = 0

    async def first_of(body: dict[str, Any]) -> httpx.Response:
        nonlocal ended
        if body["prompt"] == PLAIN[0].prompt:
            return completion("first")
        try:
            await asyncio.sleep(3600)
        finally:
            ended += 1
        raise AssertionError

    server = Scripted(first_of)
    answers = server.generator.generate(sample_requests(PLAIN[:3], Order.PLAIN), settings())
    assert next(answers).text == "first"
    answers.close()
    assert ended == 2
    assert not [each for each in threading.enumerate() if each.name == "remote generation"]


def test_one_failure_ends_the_other_requests() -> None:
    ended = 0

    async def handler(body: dict[str, Any]) -> httpx.Response:
        nonlocal ended
        if body["prompt"] == PLAIN[2].prompt:
            return refused(400, "odd")
        try:
            await asyncio.sleep(3600)
        finally:
            ended += 1
        raise AssertionError

    with pytest.raises(EvaluationError, match="odd"):
        Scripted(handler).generate(sample_requests(PLAIN[:3], Order.PLAIN))
    assert ended == 2


def test_answers_come_before_the_last_one_is_there_and_meanwhile() -> None:
    """The requests go on while the caller is busy with an answer."""
    go_on, all_asked = threading.Event(), threading.Event()

    async def handler(body: dict[str, Any]) -> httpx.Response:
        if body["prompt"] != "0":
            await asyncio.to_thread(go_on.wait, 60)
        if body["prompt"] == "3":
            all_asked.set()
        return completion(body["prompt"])

    server = Scripted(handler, in_flight=1)
    answers = server.generator.generate(
        sample_requests([Problem(str(i), str(i)) for i in range(4)], Order.PLAIN), settings()
    )
    assert next(answers).text == "0"
    go_on.set()
    assert all_asked.wait(60), "nothing is asked while the caller does something else"
    assert [answer.text for answer in answers] == ["1", "2", "3"]


def test_it_works_within_an_event_loop() -> None:
    """As in a notebook."""

    async def notebook() -> list[Answer]:
        return Scripted(lambda body: completion()).generate(sample_requests(PLAIN, Order.PLAIN))

    assert len(asyncio.run(notebook())) == len(PLAIN)


def test_no_password_is_told() -> None:
    server = Scripted(lambda body: refused(400, "odd"), url="http://me:secret@server:1/v1")
    assert server.generator.model == ModelInfo("theirs", url="http://server:1")
    with pytest.raises(EvaluationError) as raised:
        server.generate(sample_requests(PLAIN, Order.PLAIN))
    assert "secret" not in str(raised.value)


def test_nothing_in_flight_is_refused() -> None:
    with pytest.raises(ConfigError, match="in_flight is 0"):
        Scripted(lambda body: completion(), in_flight=0)
