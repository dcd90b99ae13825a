"""Laws of the verbs on an endless model: their text is the library's, and a conversation's cache is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_program import MODEL

from llama import Llama
from llama.errors import RankError
from llama.serving import AsyncEngine

GREEDY = ["--temperature", "0", "--max-gen-len", "24"]
PREFIX, SUFFIX = "def add(a, b):\n    ", "\n\nprint(add(1, 2))\n"


@pytest.fixture
def model(endless: Path) -> list[str]:
    """The words of a command line that name it."""
    return [str(endless), *MODEL[1:]]


@pytest.fixture(scope="module")
def llama(endless: Path) -> Iterator[Llama]:
    with Llama.build(endless, None, 256, 1, device="cpu", dtype="float32") as built:
        yield built


def test_complete_writes_what_the_library_does(command: Any, model: list[str], llama: Llama) -> None:
    (expected,) = llama.text_completion([PREFIX], temperature=0, max_gen_len=24)
    done = command("complete", *model, *GREEDY, given=PREFIX)
    assert (done.code, done.out) == (0, expected["generation"])
    assert "cut at 24 tokens" in done.err
    full = command("complete", *model, *GREEDY, "--full", given=PREFIX)
    assert full.out == PREFIX + expected["generation"]


def test_infill_writes_what_the_library_does_wherever_the_place_comes_from(
    command: Any, model: list[str], llama: Llama, tmp_path: Path
) -> None:
    (expected,) = llama.text_infilling([PREFIX], [SUFFIX], temperature=0, max_gen_len=24)
    middle = expected["generation"]
    assert middle
    assert command("infill", *model, *GREEDY, given=f"{PREFIX}<FILL>{SUFFIX}").out == middle
    file = tmp_path / "add.py"
    file.write_text(PREFIX + SUFFIX)
    place = ["--line", 2, "--column", 5]
    assert command("infill", *model, file, *GREEDY, *place, "--full").out == expected["full_text"]
    done = command("infill", *model, file, *GREEDY, *place, "--in-place")
    assert (done.code, done.out) == (0, "")
    assert file.read_text() == expected["full_text"]


def test_a_seed_draws_the_same_and_no_seed_does_not(command: Any, model: list[str]) -> None:
    def drawn(*more: object) -> str:
        done = command("complete", *model, "--temperature", 1, "--max-gen-len", 24, *more, given=PREFIX)
        assert done.code == 0
        return str(done.out)

    assert drawn("--seed", 3) == drawn("--seed", 3)
    assert drawn() != drawn()


def test_a_conversation_answers_as_the_library_and_computes_only_what_is_new(
    command: Any, model: list[str], llama: Llama
) -> None:
    questions = ["What is a list?", "And a tuple?", "Why?"]
    dialog: list[Any] = [{"role": "system", "content": "Be brief."}]
    answers = []
    for question in questions:
        dialog.append({"role": "user", "content": question})
        (found,) = llama.chat_completion([dialog], temperature=0, max_gen_len=8)
        dialog.append(found["generation"])
        answers.append(found["generation"]["content"])
    given = "".join(f"{question}\n!!\n" for question in questions)
    options = ["--sys-instruct", "Be brief.", "--temperature", 0, "--max-gen-len", 8, "--stats"]
    done = command("chat", *model, *options, given=given)
    assert done.code == 0
    assert done.out == "".join(f"{answer}\n" for answer in answers)
    counts = [
        tuple(map(int, each))
        for each in re.findall(r"(\d+) tokens of the prompt, (\d+) of them reused", done.err)
    ]
    assert len(counts) == 3
    for (before, _), (_, reused) in pairwise(counts):
        # All whole blocks of 16 tokens of the prompt before; the answer's too, where it is encoded as it was drawn.
        assert reused >= before // 16 * 16


def test_the_other_capabilities_ask_as_they_say(command: Any, model: list[str], llama: Llama) -> None:
    (text,) = llama.text_completion([PREFIX], temperature=0, max_gen_len=24)
    (middle,) = llama.text_infilling([PREFIX], [SUFFIX], temperature=0, max_gen_len=24)
    # Two of them, since each stands alone.
    done = command("chat", *model, *GREEDY, "--cap", "completion", given=f"{PREFIX}\n!!\n{PREFIX}\n!!\n")
    answer = text["generation"]
    assert done.out == (answer if answer.endswith("\n") else f"{answer}\n") * 2
    done = command("chat", *model, *GREEDY, "--cap", "infilling", given=f"{PREFIX}<FILL>{SUFFIX}\n!!\n")
    assert done.out.rstrip("\n") == middle["generation"].rstrip("\n")


def test_a_long_conversation_forgets_its_oldest_turns_and_goes_on(command: Any, model: list[str]) -> None:
    given = "".join(f"question {i}: what is a list of lists of words?\n!!\n" for i in range(12))
    done = command("chat", *model, "--temperature", 0, "--max-gen-len", 16, given=given)
    assert done.code == 0
    assert "the context is full (256 tokens)" in done.err
    assert "forgotten" in done.err
    assert "error" not in done.err
    assert "the answer was cut" not in done.err


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        (["complete", "nowhere"], "x", "nowhere"),
        (["complete", *MODEL, "--line", 2], "x", "has 1 lines"),
        (["infill", *MODEL], "no mark", "found 0"),
        (["infill", *MODEL, "--column", 2], "x", "--column needs --line"),
        (["infill", *MODEL, "--in-place"], "x", "--in-place needs FILE"),
        (["infill", *MODEL, "nofile.py"], "x", "nofile.py"),
        (["complete", *MODEL], b"\xff", "not UTF-8"),
        (["complete", *MODEL], "word " * 600, "max_seq_len"),
        (["chat", *MODEL, "--cap", "python", "--sys-instruct", "x"], "", "needs --cap chat"),
        (["chat", *MODEL], "a <<SYS>>\n!!\n", "<<SYS>>"),
        (["client", "localhost:1"], "", "not the URL"),
        (["client", "http://127.0.0.1:9", "--api-key-file", "nokey"], "", "nokey"),
        (["complete", "http://127.0.0.1:9"], "x", "no server answers at http://127.0.0.1:9"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_and_1(command: Any, arguments: list[Any], given: str, words: str) -> None:
    done = command(*arguments, given=given)
    assert (done.code, done.out) == (1, "")
    (line,) = [line for line in done.err.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"],
        ["chat", "x", "--cap", "talk"],
        ["complete", "x", "--temperature", "-1"],
        ["complete", "x", "--temperature", "nan"],
        ["complete", "x", "--seed", "-1"],
        ["complete", "x", "--seed", str(2**63)],
        ["complete", "x", "--line", "0"],
        ["infill", "x", "y", "--full", "--in-place"],
        ["batch", "x", "y"],
        ["batch", "x", "y", "z", "--in-flight", "0"],
        ["client"],
    ],
    ids=" ".join,
)
def test_wrong_usage_of_a_program_is_2(command: Any, arguments: list[str]) -> None:
    assert command(*arguments).code == 2


def test_a_missing_extra_is_named(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("llama.terminal.remote", "llama.terminal.batch", "httpx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    for arguments in (["client", "http://x"], ["batch", "http://x", "a", "b"]):
        done = command(*arguments)
        assert done.code == 1
        assert "httpx is missing, for" in done.err
        assert "pip install 'codellama-runtime[terminal]'" in done.err


def test_an_engine_that_is_closed_meanwhile_gives_no_answer(
    command: Any, model: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half an answer is not written into a file."""
    file = tmp_path / "add.py"
    file.write_text(PREFIX)
    real = AsyncEngine.stream

    async def closing(engine: AsyncEngine, request: Any) -> Any:
        async for delta in real(engine, request):
            yield delta
            await engine.close()

    monkeypatch.setattr(AsyncEngine, "stream", closing)
    done = command("complete", *model, file, *GREEDY, "--in-place")
    assert done.code == 1
    assert "closed before the answer had ended" in done.err
    assert file.read_text() == PREFIX


BODY = {"prompt": PREFIX, "temperature": 0, "max_tokens": 24}


def test_a_batch_has_the_servers_answers_and_the_librarys_text(
    command: Any, model: list[str], llama: Llama, tmp_path: Path
) -> None:
    (text,) = llama.text_completion([PREFIX], temperature=0, max_gen_len=24)
    (middle,) = llama.text_infilling([PREFIX], [SUFFIX], temperature=0, max_gen_len=24)
    (said,) = llama.chat_completion([[{"role": "user", "content": "hi"}]], temperature=0, max_gen_len=24)
    chat_body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 24}
    bodies = [
        ("/v1/completions", BODY),
        ("/v1/completions", {**BODY, "suffix": SUFFIX}),
        ("/v1/chat/completions", chat_body),
        ("/v1/completions", {**BODY, "max_tokens": "many"}),
        ("/v1/completions", {**BODY, "prompt": "word " * 600}),
        ("/v1/completions", {**BODY, "prompt": "\ud800"}),
    ]
    lines: list[Any] = [
        {"custom_id": f"c{i}", "method": "POST", "url": url, "body": body}
        for i, (url, body) in enumerate(bodies)
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"custom_id": "bad"}]))
    done = command("batch", *model, source, target, "--max-batch-size", 4)
    assert (done.code, done.out) == (0, "")
    assert "3 requests answered, 4 refused" in done.err
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["custom_id"] for record in records] == [*(f"c{i}" for i in range(6)), "bad"]
    choices = [record["response"]["body"]["choices"][0] for record in records[:3]]
    assert choices[0]["text"] == text["generation"]
    assert choices[1]["text"] == middle["generation"]
    assert choices[2]["message"]["content"] == said["generation"]["content"]
    for record in records[3:6]:
        assert record["response"]["status_code"] == 400
        assert record["response"]["body"]["error"]["message"]
        assert record["error"] is None
    assert records[6]["response"] is None
    assert "no method" in records[6]["error"]["message"]
    assert all(record["response"]["request_id"] for record in records[:6])
    # Once more: nothing is left to do, and nothing changes.
    before = target.read_bytes()
    done = command("batch", *model, source, target)
    assert "7 of 7 requests are done already" in done.err
    assert "Loaded" not in done.err
    assert target.read_bytes() == before


def test_a_batch_whose_engine_ends_has_no_answers_that_are_none(
    command: Any, model: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine fails under the second request, as if a rank had died: the first answer stays."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": BODY} for i in range(3)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    real, asked, failed = AsyncEngine.batches, [], []

    def failing(engine: AsyncEngine, request: Any) -> Any:
        asked.append(request)
        if len(asked) == 2:  # outside of a step, which would fail its requests alone
            post = engine._post
            monkeypatch.setattr(engine, "_post", lambda items: post(items) if failed else fail())
        return real(engine, request)

    def fail() -> None:
        failed.append(True)
        raise RankError("rank 1 is gone")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncEngine, "batches", failing)
        done = command("batch", *model, source, target, "--in-flight", 1)
    assert done.code == 1
    assert "error: rank 1 is gone" in done.err
    assert "1 of 3 requests are done" in done.err
    assert len(target.read_text().splitlines()) == 1
    assert command("batch", *model, source, target).code == 0
    assert len(target.read_text().splitlines()) == 3
