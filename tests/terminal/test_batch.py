"""Laws of a batch: answers in order, requests in flight bounded, nothing lost where it stops."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama.errors import RankError
from llama.terminal.backend import ServerError
from llama.terminal.batch import Answer, Batch, Poster, run_requests
from llama.terminal.batch_files import BatchRequest, Json
from llama.terminal.progress import Progress
from llama.terminal.remote import open_client


def requests(count: int, bad: frozenset[int] = frozenset()) -> list[BatchRequest]:
    return [
        BatchRequest(f"id{i}", f"c{i}", "/v1/completions", {"n": i}, "it is bad" if i in bad else None)
        for i in range(count)
    ]


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.mark.parametrize("in_flight", [1, 3, 16])
def test_answers_are_written_in_order_and_all_places_are_used(in_flight: int) -> None:
    written: list[Json] = []
    running = most = 0
    rng = random.Random(0)

    async def ask(url: str, body: Json) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        running -= 1
        return Answer(200, body, "r")

    run(run_requests(requests(100, frozenset({3, 50})), ask, in_flight, written.append))
    assert [record["id"] for record in written] == [f"id{i}" for i in range(100)]
    assert most == in_flight
    for i, record in enumerate(written):
        assert record["custom_id"] == f"c{i}"
        if i in (3, 50):
            assert record["response"] is None
            assert record["error"] == {"code": "invalid_request", "message": "it is bad"}
        else:
            assert record["response"] == {"status_code": 200, "request_id": "r", "body": {"n": i}}
            assert record["error"] is None


def test_answers_run_only_so_far_ahead_of_a_slow_one() -> None:
    """They are in memory until it is there: four times as many as are in flight, and not the whole file."""
    written: list[Json] = []
    begun: list[int] = []

    async def ask(url: str, body: Json) -> Answer:
        begun.append(body["n"])
        if body["n"] == 0:
            for _ in range(1000):
                await asyncio.sleep(0)
            assert begun == list(range(4 * 3))
        return Answer(200, {})

    run(run_requests(requests(100), ask, 3, written.append))
    assert len(written) == 100


def test_a_server_that_is_gone_ends_it_behind_the_answers_before() -> None:
    written: list[Json] = []
    cancelled = 0

    async def ask(url: str, body: Json) -> Answer:
        nonlocal cancelled
        if body["n"] == 5:
            raise ServerError("gone")
        try:
            await asyncio.sleep(0 if body["n"] < 5 else 3600)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return Answer(200, {})

    with pytest.raises(ServerError):
        run(run_requests(requests(20), ask, 8, written.append))
    assert [record["id"] for record in written] == [f"id{i}" for i in range(5)]
    assert cancelled > 0


async def run_batch(source: Path, target: Path, ask: Any, in_flight: int) -> int:
    with Batch(source, target) as batch:
        return await batch.run(ask, in_flight)


def write_requests(path: Path, count: int) -> None:
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": {"n": i}}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_batch_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    write_requests(source, 10)
    asked: list[int] = []
    fails_at = 4

    async def ask(url: str, body: Json) -> Answer:
        asked.append(body["n"])
        if body["n"] == fails_at:
            raise ServerError("gone")
        return Answer(400 if body["n"] == 7 else 200, {"n": body["n"]})

    with pytest.raises(ServerError):
        run(run_batch(source, target, ask, 1))
    assert "4 of 10 requests are done; run the same command to continue" in capsys.readouterr().err
    with target.open("ab") as file:
        file.write(b'{"id": "batch')  # as after a power cut
    fails_at = -1
    asked.clear()
    assert run(run_batch(source, target, ask, 3)) == 0
    assert asked == list(range(4, 10))
    err = capsys.readouterr().err
    assert "was incomplete" in err
    assert "4 of 10 requests are done already" in err
    assert "5 requests answered, 1 refused" in err
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["response"]["body"]["n"] for record in records] == list(range(10))
    before = target.read_bytes()
    assert run(run_batch(source, target, ask, 3)) == 0
    assert target.read_bytes() == before


def test_a_cancelled_batch_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_requests(tmp_path / "in", 3)

    async def ask(url: str, body: Json) -> Answer:
        await asyncio.sleep(0 if body["n"] == 0 else 3600)
        return Answer(200, {})

    async def main() -> None:
        task = asyncio.ensure_future(run_batch(tmp_path / "in", tmp_path / "out", ask, 2))
        while not (tmp_path / "out").exists() or not (tmp_path / "out").stat().st_size:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert "1 of 3 requests are done" in capsys.readouterr().err


def post(
    *answers: httpx.Response | Exception, body: Json | None = None
) -> tuple[Any, list[float], list[bytes]]:
    """Post once -> the answer or the error, waits, bodies."""
    left, waits, bodies = list(answers), [], []

    def handle(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def main():
        async with open_client("http://server:1", None, httpx.MockTransport(handle)) as client:
            try:
                return await Poster(client, sleep=sleep)("/v1/completions", body or {"prompt": "x"})
            except ServerError as error:
                return error

    return run(main()), waits, bodies


FULL = httpx.Response(429, headers={"retry-after": "7"}, json={"error": {"message": "full"}})


def test_a_server_that_cannot_just_now_is_asked_again() -> None:
    ok = httpx.Response(200, json={"a": 1}, headers={"x-request-id": "r1"})
    lost = httpx.ConnectError("refused")
    bad_date = httpx.Response(503, headers={"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"})
    answer, waits, bodies = post(FULL, lost, bad_date, httpx.Response(502), ok)
    assert answer == Answer(200, {"a": 1}, "r1")
    assert waits == [7.0, 1.0, 2.0, 4.0]
    assert bodies == [b'{"prompt": "x"}'] * 5


@pytest.mark.parametrize("seconds", ["nan", "-5", "1e9", "inf"])
def test_a_wait_is_never_longer_than_half_a_minute(seconds: str) -> None:
    answer, waits, _ = post(httpx.Response(429, headers={"retry-after": seconds}))
    assert isinstance(answer, ServerError)
    assert len(waits) == 7
    assert all(0 <= wait <= 30 for wait in waits)


def test_a_server_that_stays_away_is_an_error_with_the_last_reason() -> None:
    assert "in 8 tries; the last: ConnectError: refused" in str(post(httpx.ConnectError("refused"))[0])
    assert "full" in str(post(FULL)[0])


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_it_at_once(status: int) -> None:
    answer, waits, _ = post(httpx.Response(status, json={"error": {"message": "wrong key"}}))
    assert "wrong key" in str(answer)
    assert waits == []


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_what_a_request_alone_is_refused_for_is_its_answer(status: int) -> None:
    answer, waits, _ = post(httpx.Response(status, json={"error": {"message": "no"}}))
    assert answer == Answer(status, {"error": {"message": "no"}})
    assert waits == []
    assert post(httpx.Response(status, text="<html>"))[0] == Answer(status, {"error": {"message": "<html>"}})


@pytest.mark.parametrize("status", [500, 503])
def test_an_engine_that_has_ended_is_no_answer(status: int) -> None:
    """As when a rank dies: the requests in flight have no answer yet, and the next run asks them again."""

    def check() -> None:
        raise RankError("rank 1 is gone")

    async def main() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, json={}))
        async with open_client("http://server:1", None, transport) as client:
            with pytest.raises(RankError):
                await Poster(client, check)("/v1/completions", {})

    run(main())


def test_half_a_surrogate_pair_gets_to_the_server() -> None:
    assert post(httpx.Response(400, json={}), body={"prompt": "\ud800"})[2] == [b'{"prompt": "\\ud800"}']


def test_the_bar_counts_from_where_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = 0.0
    bar = Progress(100, 50, clock=lambda: now)
    for _ in range(25):
        now += 1.0
        bar.advance()
    bar.clear()
    drawn = capsys.readouterr().err.split("\r")
    assert drawn[-3].strip() == "[######################        ] 75 of 100, 1.0/s, 25 s left"
    assert drawn[-2].strip() == ""
