"""Laws of judging a file again: new verdicts, all else as it was, and the old file until the last of them is there."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_files import FAILED, NOT_RUN, PASSED, TIMED_OUT, header_of, sample, write
from toy_task import Box

from llama.errors import EvaluationError
from llama.evaluation import grader
from llama.evaluation.generator import PROMPT_TOO_LONG
from llama.evaluation.header import Header
from llama.evaluation.problem import Order, Program, Sample, Status, Verdict
from llama.evaluation.rescore import rescore
from llama.evaluation.samples import header_line, read_samples, sample_line
from llama.evaluation.tasks import TASKS
from llama.terminal.files import FileChangedError

TASK = TASKS["humaneval"]
PROBLEMS = TASK.problems(None)
FIRST = [problem.task_id for problem in PROBLEMS[:3]]


BOX = Box("unshare")
Judge = Callable[[Program], Verdict]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Judge], list[Program]]:
    """Puts a judge in the place of the real one -> the programs that it will have been given."""

    def put(judge: Judge) -> list[Program]:
        given: list[Program] = []

        def record(sandbox: object, program: Program, *, javatuples: object = None) -> Verdict:
            assert sandbox is BOX
            given.append(program)
            return judge(program)

        monkeypatch.setattr(grader, "judge", record)
        return given

    return put


def by_answer(program: Program) -> Verdict:
    return PASSED if "right" in program.source else replace(FAILED, detail="wrong now")


def head(**more: object) -> Header:
    return header_of("humaneval", PROBLEMS, n=2, temperature=0.8, limit=3, **more)


def samples() -> list[Sample]:
    """With every verdict; the answers say what is true of them now."""
    return [
        sample(FIRST[2], 1, NOT_RUN, completion="    right\n"),
        sample(FIRST[0], 0, PASSED, completion="    wrong \ud800\n"),
        sample(FIRST[0], 1, FAILED, completion="    right\r\n", finish_reason="length"),
        sample(FIRST[1], 0, TIMED_OUT, completion="    wrong", exact=True),
        sample(
            FIRST[1], 1, replace(FAILED, detail="no room"), completion="right", finish_reason=PROMPT_TOO_LONG
        ),
    ]


def test_verdicts_are_new_and_all_else_is_as_it_was(
    tmp_path: Path, judged: Callable[[Judge], list[Program]]
) -> None:
    given = judged(by_answer)
    path = write(tmp_path / "run.jsonl", head(), samples())
    path.chmod(0o640)
    report = rescore(path, sandbox=BOX, progress=False)
    after, found = read_samples(path)
    assert after == replace(head(), sandbox="unshare")
    expected = [
        PASSED,
        Verdict(Status.FAILED, "wrong now"),
        PASSED,
        Verdict(Status.FAILED, "wrong now"),
        Verdict(Status.FAILED, "no room"),  # nothing was asked, so nothing can be run
    ]
    assert found == [replace(old, verdict=new) for old, new in zip(samples(), expected, strict=True)]
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(path.parent.iterdir()) == [path]
    programs = {
        TASK.program(problem, each.completion)
        for problem in PROBLEMS
        for each in samples()[:4]
        if each.task_id == problem.task_id
    }
    assert len(given) == 4
    assert set(given) == programs
    assert report.header == after
    assert report.pass_at(1).value == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert report.notes[0].startswith("The run has not ended: 5 of 6")


def test_every_program_that_runs_again_gets_the_jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def spy(sandbox: object, program: Program, *, javatuples: object) -> Verdict:
        given.append(javatuples)
        return PASSED

    monkeypatch.setattr(grader, "judge", spy)
    path = write(tmp_path / "run.jsonl", head(), samples())
    rescore(path, sandbox=BOX, progress=False, javatuples=str(tmp_path / "a.jar"))
    assert given == [tmp_path / "a.jar"] * 4


def test_earlier_headers_stay_and_half_a_line_is_dropped(
    tmp_path: Path, judged: Callable[[Judge], list[Program]]
) -> None:
    """A run that was continued with a greater n has a header for each beginning; the last one counts."""
    judged(by_answer)
    path = tmp_path / "run.jsonl"
    first = replace(head(), versions={"codellama": "0.9"})
    whole = [header_line(first), sample_line(samples()[0]), header_line(head()), sample_line(samples()[1])]
    path.write_bytes(b"".join(whole) + b'{"task_id": "Hum')
    rescore(path, sandbox=BOX, progress=False)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[0] == whole[0]
    assert lines[2] == header_line(replace(head(), sandbox="unshare"))
    assert [json.loads(lines[i])["completion"] for i in (1, 3)] == ["    right\n", "    wrong \ud800\n"]
    assert len(lines) == 4


def test_again_is_the_same_file(tmp_path: Path, judged: Callable[[Judge], list[Program]]) -> None:
    judged(by_answer)
    path = write(tmp_path / "run.jsonl", head(), samples())
    rescore(path, sandbox=BOX, workers=1, progress=False)
    once = path.read_bytes()
    rescore(path, sandbox=BOX, workers=7, progress=False)
    assert path.read_bytes() == once


def test_a_failure_leaves_the_file_as_it_was(
    tmp_path: Path, judged: Callable[[Judge], list[Program]]
) -> None:
    def fail(program: Program) -> Verdict:
        if "right" in program.source:
            raise EvaluationError("the sandbox is gone")
        return PASSED

    judged(fail)
    path = write(tmp_path / "run.jsonl", head(), samples())
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match="sandbox is gone"):
        rescore(path, sandbox=BOX, progress=False)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_told_before_the_programs_run(
    tmp_path: Path, judged: Callable[[Judge], list[Program]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = judged(by_answer)
    path = write(tmp_path / "run.jsonl", head(), samples())
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)  # root may write anywhere
    with pytest.raises(PermissionError, match=tmp_path.name):
        rescore(path, sandbox=BOX, progress=False)
    assert ran == []


def test_no_run_can_write_meanwhile(tmp_path: Path, judged: Callable[[Judge], list[Program]]) -> None:
    path = write(tmp_path / "run.jsonl", head(), samples())
    locked = []

    def look(program: Program) -> Verdict:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(True)
        return PASSED

    given = judged(look)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EvaluationError, match="a run is writing"):
            rescore(path, sandbox=BOX, progress=False)
    assert given == []
    rescore(path, sandbox=BOX, progress=False)
    assert locked == [True] * 4


def test_what_somebody_else_wrote_meanwhile_is_not_lost(
    tmp_path: Path, judged: Callable[[Judge], list[Program]]
) -> None:
    path = write(tmp_path / "run.jsonl", head(), samples())
    once = threading.Lock()

    def write_beside(program: Program) -> Verdict:
        if once.acquire(blocking=False):
            path.write_bytes(path.read_bytes() + sample_line(sample(FIRST[2], 0)))
        return PASSED

    judged(write_beside)
    with pytest.raises(FileChangedError):
        rescore(path, sandbox=BOX, progress=False)
    assert len(read_samples(path)[1]) == 6


def test_samples_of_other_problems_are_refused_before_anything_runs(
    tmp_path: Path, judged: Callable[[Judge], list[Program]]
) -> None:
    given = judged(by_answer)
    other = replace(head(), data_sha256="0" * 64)
    with pytest.raises(EvaluationError, match=r"answers other problems .*--data"):
        rescore(write(tmp_path / "other.jsonl", other, samples()), sandbox=BOX)
    beyond = [*samples(), sample(PROBLEMS[3].task_id)]
    with pytest.raises(EvaluationError, match="a sample of 'HumanEval/3', which is not among its problems"):
        rescore(write(tmp_path / "beyond.jsonl", head(), beyond), sandbox=BOX)
    with pytest.raises(EvaluationError, match="no task 'theirs'"):
        rescore(write(tmp_path / "task.jsonl", header_of("theirs", PROBLEMS), []), sandbox=BOX)
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(EvaluationError, match="does not begin with a header"):
        rescore(tmp_path / "text", sandbox=BOX)
    with pytest.raises(EvaluationError, match="pass@3 needs"):
        rescore(write(tmp_path / "k.jsonl", head(), samples()), k=3, sandbox=BOX)
    with pytest.raises(FileNotFoundError):
        rescore(tmp_path / "none", sandbox=BOX)
    assert given == []


def test_orders_are_told_apart(tmp_path: Path, judged: Callable[[Judge], list[Program]]) -> None:
    """A chat's completion is code already: it is not taken out of its fence once more."""
    given = judged(by_answer)
    chat = header_of("humaneval", PROBLEMS, chat=True, limit=1)
    answer = "    # ```\n    right\n"
    path = write(tmp_path / "chat.jsonl", chat, [sample(FIRST[0], order=Order.CHAT, completion=answer)])
    rescore(path, sandbox=BOX, progress=False)
    assert given == [TASK.program(PROBLEMS[0], answer)]
