"""Laws of replicas on Ray Serve: the answers are the library's, and requests go on while replicas die.

What a client sees of a dead replica is Ray's to decide. These tests hold what docs/deploy.md says of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ray_server import LIMIT, TINY, RayServer, ray_server

from llama import Llama

ROUTE = "/v1/completions"
PROMPTS = ["def f(x):\n", "import os\n", "class A:\n", "for i in range("]


@pytest.fixture(scope="module")
def server() -> Iterator[RayServer]:
    """The last test stops it."""
    with ray_server("--dtype", "float32", "--max-queue", "64") as server:
        yield server


def greedy(prompt: str, tokens: int = 24) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0}


def endless(tokens: int) -> dict[str, Any]:
    return {"prompt": PROMPTS[0], "max_tokens": tokens, "temperature": 1, "ignore_eos": True}


def text(answer: Any) -> str:
    return answer["choices"][0]["text"]


def in_threads(number: int, work: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "it hangs"


def test_every_answer_is_the_librarys(server: RayServer) -> None:
    """Many more than would all go to the same replica by chance."""
    assert server.get("/health") == (200, b'{"status":"ok"}')
    with Llama.build(TINY, max_seq_len=256, device="cpu", dtype="float32") as llama:
        found = llama.text_completion(PROMPTS, temperature=0, max_gen_len=24)
    expected = {prompt: each["generation"] for prompt, each in zip(PROMPTS, found, strict=True)}
    for prompt in PROMPTS * 4:
        status, answer = server.post(ROUTE, greedy(prompt))
        assert status == 200, answer
        assert text(answer) == expected[prompt]
    status, lines = server.stream(ROUTE, greedy(PROMPTS[0]))
    assert (status, lines[-1]) == (200, "data: [DONE]")
    assert "".join(text(json.loads(line[6:])) for line in lines[:-1]) == expected[PROMPTS[0]]


def test_errors_and_limits_are_the_servers_own(server: RayServer) -> None:
    status, answer = server.post(ROUTE, {"prompt": "a", "wrong": 1})
    assert (status, answer["error"]["param"]) == (400, "wrong")
    status, answer = server.post("/v1/nothing", {})
    assert (status, answer["error"]["code"]) == (404, "not_found")


def test_requests_go_on_when_a_replica_is_killed(server: RayServer) -> None:
    """Those that it had end with an error, and nothing else fails, then or later; a new one takes its place."""
    victim, plain, streams = server.replicas()[0], [], []
    threads = in_threads(6, lambda: plain.append(server.post(ROUTE, endless(1200))))
    threads += in_threads(4, lambda: streams.append(server.stream(ROUTE, endless(1200))))
    time.sleep(1.5)
    assert not plain, "all are under way"
    victim.kill()
    after = [server.post(ROUTE, greedy(prompt)) for prompt in PROMPTS * 3]
    assert [status for status, _ in after] == [200] * len(after)
    join(threads)
    failed = [answer for status, answer in plain if status != 200]
    cut = [lines for _, lines in streams if lines[-1] != "data: [DONE]"]
    assert {status for status, _ in plain} <= {200, 500}
    assert failed or cut, "the dead one had none"
    assert len(failed) + len(cut) < len(plain) + len(streams), "and the other one had some"
    # A client that tries again is answered.
    assert all(server.post(ROUTE, endless(20))[0] == 200 for _ in failed + cut)
    server.wait_for_replicas(2, besides=victim.pid)


def test_requests_wait_for_a_new_replica_when_all_are_dead(server: RayServer) -> None:
    old = server.replicas()
    assert len(old) == 2
    for replica in old:
        replica.kill()
    end = time.monotonic() + LIMIT
    # One that comes before the deaths are noticed may be lost with them; those that come later wait.
    while server.post(ROUTE, greedy(PROMPTS[0]))[0] != 200:
        assert time.monotonic() < end
    server.wait_for_replicas(2)
    assert not {each.pid for each in old} & {each.pid for each in server.replicas()}


def test_sigterm_lets_running_answers_end(server: RayServer) -> None:
    """Exit code 0, and no process of Ray's left."""
    found: list[tuple[int, list[str]]] = []
    threads = in_threads(4, lambda: found.append(server.stream(ROUTE, endless(1200))))
    time.sleep(1.5)
    assert not found, "all are under way"
    replicas = server.replicas()
    server.process.terminate()
    join(threads)
    assert [lines[-1] for _, lines in found] == ["data: [DONE]"] * 4
    assert server.process.wait(LIMIT) == 0, server.log.read_text()[-4000:]
    assert not [each for each in replicas if each.is_running() and each.status() != "zombie"]
