"""Laws of a batch's files: what is a request, and that a run goes on exactly where one stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llama.errors import ConfigError
from llama.terminal.batch_files import AnswerFile, count_requests, error_record, read_requests


def line(custom_id: str = "a", **fields: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "x"},
        **fields,
    }


def write(path: Path, lines: list[Any]) -> Path:
    """Strings as they are, all else as JSON."""
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def test_requests_are_read_in_order_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line("a"), "", line("b", url="/v1/chat/completions"), "  \r"])
    found = list(read_requests(source))
    assert [(each.custom_id, each.url, each.problem) for each in found] == [
        ("a", "/v1/completions", None),
        ("b", "/v1/chat/completions", None),
    ]
    assert found[0].body == {"prompt": "x"}
    assert count_requests(source) == 2
    assert len({each.id for each in found}) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("5", "it is 5"),
        ({k: v for k, v in line().items() if k != "url"}, "no url"),
        (line(extra=1), "unknown field 'extra'"),
        (line(custom_id=7), "custom_id is 7"),
        (line(custom_id=""), "custom_id is ''"),
        (line(method="GET"), "method is 'GET'"),
        (line(url="/v1/embeddings"), "/v1/completions or /v1/chat/completions"),
        (line(url=["/v1/completions"]), "url is"),
        (line(body="x"), "body is 'x'"),
        (line(body={"stream": True}), "stream"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_bad_line_has_its_problem_and_the_next_is_read(tmp_path: Path, content: Any, words: str) -> None:
    first, second = read_requests(write(tmp_path / "in", [content, line("b")]))
    assert first.problem is not None
    assert words in first.problem
    assert second.problem is None
    assert error_record(first, "c", "m")["error"] == {"code": "c", "message": "m"}


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'{"custom_id": "\xff"}\n' + json.dumps(line()).encode())
    assert [each.problem is None for each in read_requests(tmp_path / "in")] == [False, True]


def test_an_id_that_comes_twice_is_a_problem_of_the_second(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line("a"), line("b"), line("a"), line("a")])
    problems = [each.problem for each in read_requests(source)]
    assert problems[:2] == [None, None]
    assert all(problem is not None and "line 1 too" in problem for problem in problems[2:])


def answers(source: Path, target: Path) -> None:
    """Write what is left, an answer for each."""
    with AnswerFile(target, source) as out:
        for request in list(read_requests(source))[out.done :]:
            out.append({"id": request.id, "custom_id": request.custom_id, "response": {"body": "é\n"}})


def test_a_run_goes_on_from_every_byte_at_which_one_can_stop(tmp_path: Path) -> None:
    source, whole, part = (
        write(tmp_path / "in", [line("a"), "bad", line("c")]),
        tmp_path / "whole",
        tmp_path / "part",
    )
    answers(source, whole)
    content = whole.read_bytes()
    assert content.count(b"\n") == 3
    for cut in range(len(content) + 1):
        part.write_bytes(content[:cut])
        with AnswerFile(part, source) as out:
            assert out.done == content[:cut].count(b"\n")
            assert out.torn == (cut > 0 and content[cut - 1 : cut] != b"\n")
        answers(source, part)
        assert part.read_bytes() == content


def test_requests_may_be_added_at_the_end(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in", [line("a")]), tmp_path / "out"
    answers(source, target)
    write(source, [line("a"), line("b")])
    answers(source, target)
    assert [json.loads(each)["custom_id"] for each in target.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize(
    "lines",
    [[line("a", body={}), line("b")], [line("b"), line("a")], [line("a")], []],
    ids=["changed", "order", "fewer", "none"],
)
def test_answers_to_other_requests_are_refused_and_stay(tmp_path: Path, lines: list[Any]) -> None:
    source, target = write(tmp_path / "in", [line("a"), line("b")]), tmp_path / "out"
    answers(source, target)
    before = target.read_bytes()
    write(source, lines)
    with pytest.raises(ConfigError, match="not the answer to request"):
        AnswerFile(target, source)
    assert target.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes\n", b"[]\n", b'{"id": 5}\n', b"\n", b"\xff\n"])
def test_a_file_that_is_something_else_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    source, target = write(tmp_path / "in", [line("a")]), tmp_path / "out"
    target.write_bytes(content)
    with pytest.raises(ConfigError):
        AnswerFile(target, source)
    assert target.read_bytes() == content


def test_requests_are_not_overwritten_by_their_answers(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line("a")])
    (tmp_path / "link").symlink_to(source)
    before = source.read_bytes()
    for target in (source, tmp_path / "link"):
        with pytest.raises(ConfigError, match="the file of the requests"):
            AnswerFile(target, source)
    assert source.read_bytes() == before


def test_two_batches_do_not_write_one_file(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line("a")])
    with AnswerFile(tmp_path / "out", source), pytest.raises(ConfigError, match="another batch"):
        AnswerFile(tmp_path / "out", source)
    with AnswerFile(tmp_path / "out", source):
        pass


def test_requests_that_are_not_there_make_no_answers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AnswerFile(tmp_path / "out", tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a file"):
        AnswerFile(tmp_path / "out", tmp_path / "pipe")
    assert not (tmp_path / "out").exists()
