"""What a remote generator is asked in tests, and servers whose answers a test writes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpx

from llama.evaluation.generator import SampleRequest, seed_of
from llama.evaluation.problem import Answer, Order, Problem
from llama.evaluation.remote import RemoteGenerator
from llama.evaluation.settings import Settings

PLAIN = [Problem(f"plain/{i}", text) for i, text in enumerate(("def f(", "class A:\n    ", "é ü 漢\r\n", ""))]
HOLES = [
    Problem("hole/0", "def add(a, b):\n    return ", suffix="\n\nprint(add(1, 2))\n"),
    Problem("hole/1", "x = ", suffix=""),
]
QUESTIONS = [Problem("chat/0", "", question="What is a list?")]
LENGTH = 24


def sample_requests(
    problems: Sequence[Problem], order: Order, count: int = 1, first: int = 0, seed: int = 0
) -> list[SampleRequest]:
    return [SampleRequest(each, order, seed_of(seed, each.task_id, order), first, count) for each in problems]


def settings(**changes: Any) -> Settings:
    return Settings(**{"task": "humaneval", "max_gen_len": LENGTH, **changes})


def by_place(answers: Iterable[Answer]) -> dict[tuple[str, int], Answer]:
    """By task_id and number of the sample."""
    return {(each.problem.task_id, each.sample): each for each in answers}


Handler = Callable[[dict[str, Any]], "httpx.Response | Awaitable[httpx.Response]"]


def completion(text: str = "x", finish: object = "stop", **more: Any) -> httpx.Response:
    return httpx.Response(
        200, json={"choices": [{"index": 0, "text": text, "finish_reason": finish}], **more}
    )


def refused(status: int, message: str, code: str | None = None) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": code}})


class Scripted:
    """A server that answers what `handler` says; `bodies` is what it was asked."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.waits: list[float] = []

        async def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/models"):
                return httpx.Response(200, json={"data": [{"id": "theirs"}]})
            self.paths.append(request.url.path)
            self.bodies.append(json.loads(request.content))
            answer = handler(self.bodies[-1])
            return answer if isinstance(answer, httpx.Response) else await answer

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        self.generator = RemoteGenerator(
            options.pop("url", "http://server:1"),
            transport=httpx.MockTransport(handle),
            sleep=sleep,
            **options,
        )

    def generate(self, given: Sequence[SampleRequest], **changes: Any) -> list[Answer]:
        return list(self.generator.generate(given, settings(**changes)))
