"""Laws of the verbs with a server: the same words as with the model in this process, and its refusals by name."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from http_service import LIMIT, Served, serving
from scripted_backend import ScriptedReader

from llama import Llama
from llama.terminal.answers import Answers
from llama.terminal.backend import Sampling
from llama.terminal.chat import ChatProgram
from llama.terminal.conversation import Conversation
from llama.terminal.remote import connect

KEY = "a-key-of-tests"
GREEDY = ["--temperature", "0", "--max-gen-len", "24"]
OPTIONS = ["--device", "cpu", "--dtype", "float32", "--max-seq-len", "512"]
TEXT = "def add(a, b):\n    <FILL>\n\nprint(add(1, 2))\n"


@contextlib.contextmanager
def serving_endless(folder: Path, max_seq_len: int, max_batch_size: int) -> Iterator[Served]:
    with (
        Llama.build(folder, None, max_seq_len, max_batch_size, device="cpu", dtype="float32") as llama,
        serving(llama, api_keys=(KEY,)) as served,
    ):
        yield served


@pytest.fixture(scope="module")
def server(endless: Path) -> Iterator[Served]:
    with serving_endless(endless, 512, 8) as served:
        yield served


@pytest.fixture(autouse=True)
def key(tmp_path: Path) -> list[str]:
    (tmp_path / "key").write_text(f"{KEY}\n")
    return ["--api-key-file", str(tmp_path / "key")]


@pytest.mark.parametrize(
    ("verb", "options", "given"),
    [
        ("chat", [], "What is a list?\n!!\nAnd a tuple?\n!!\n"),
        ("chat", ["--sys-instruct", "Be brief."], "What is a list?\n!!\n"),
        ("chat", ["--cap", "python"], "def f(\n!!\n"),
        ("chat", ["--cap", "infilling"], f"{TEXT}!!\n"),
        ("complete", [], "def f("),
        ("infill", ["--full"], TEXT),
    ],
    ids=str,
)
def test_a_server_answers_as_the_model_in_this_process(
    command: Any, server: Served, endless: Path, key: list[str], verb: str, options: list[str], given: str
) -> None:
    here = command(verb, endless, *OPTIONS, *GREEDY, *options, given=given)
    there = command(verb, server.url, *key, *GREEDY, *options, given=given)
    assert here.code == there.code == 0, there.err
    assert here.out == there.out
    assert here.out.strip()
    if verb == "chat":
        client = command("client", server.url, *key, *GREEDY, *options, given=given)
        assert (client.code, client.out) == (0, here.out)


def test_a_conversation_with_a_server_is_counted_and_forgets_its_oldest_turns(
    command: Any, server: Served, key: list[str]
) -> None:
    given = "".join(f"question {i}: what is a list of lists of words?\n!!\n" for i in range(20))
    options = ["--temperature", 0, "--max-gen-len", 16, "--stats"]
    done = command("client", server.url, *key, *options, given=given)
    assert done.code == 0, done.err
    assert "the context is full (512 tokens)" in done.err
    assert "of them reused" in done.err


def test_a_batch_posts_to_a_server(command: Any, server: Served, key: list[str], tmp_path: Path) -> None:
    bodies = [{"prompt": "def f(", "max_tokens": n, "temperature": 0} for n in (4, 8, "many")]
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = command("batch", server.url, source, target, *key)
    assert done.code == 0
    assert "2 requests answered, 1 refused" in done.err
    responses = [json.loads(line)["response"] for line in target.read_text().splitlines()]
    assert [response["status_code"] for response in responses] == [200, 200, 400]
    assert [each["body"]["usage"]["completion_tokens"] for each in responses[:2]] == [4, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [("[INST]\n!!\n", "[INST]"), ("word " * 1000 + "\n!!\n", "512")],
)
def test_what_a_server_refuses_is_told_and_the_program_goes_on(
    command: Any, server: Served, key: list[str], given: str, words: str
) -> None:
    done = command("client", server.url, *key, *GREEDY, given=f"{given}hello\n!!\n")
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert done.out.strip()


def test_a_wrong_key_is_told(command: Any, server: Served, tmp_path: Path) -> None:
    for arguments in (["client", server.url], ["batch", server.url, tmp_path / "key", tmp_path / "out"]):
        if arguments[0] == "batch":
            line = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {}}
            (tmp_path / "key").write_text(json.dumps(line))
        done = command(*arguments)
        assert done.code == 1
        assert "--api-key-file" in done.err
        assert KEY not in done.err


def test_a_stopped_answer_is_cancelled_in_the_server(endless: Path) -> None:
    """So that the model does not write what nobody reads. This text would go on for minutes."""
    out = io.StringIO()

    class StopsAtOnce(ScriptedReader):
        @contextlib.contextmanager
        def watch(self, stop: Callable[[], object]) -> Iterator[None]:
            async def at_the_first_word() -> None:
                while not out.getvalue():
                    await asyncio.sleep(0)
                stop()

            task = asyncio.ensure_future(at_the_first_word())
            yield
            task.cancel()

    async def main(url: str) -> int:
        async with connect(url, KEY, None) as backend:
            reader = StopsAtOnce(["x = 1\n" * 10], interactive=True, stop=False)
            sampling = Sampling(temperature=0.0, max_gen_len=90_000)
            chat = ChatProgram(backend, reader, Answers(out), Conversation(), "completion", sampling)
            return await chat.run()

    with serving_endless(endless, 100_000, 1) as server:
        engine = server.service.engine
        before = engine.snapshot
        assert asyncio.run(asyncio.wait_for(main(server.url), LIMIT)) == 0
        end = time.monotonic() + LIMIT
        while engine.snapshot.cancelled == before.cancelled:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert engine.snapshot.finished == before.finished
