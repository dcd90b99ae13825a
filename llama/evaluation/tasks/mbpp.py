"""MBPP: Python from one sentence and three tests, after three examples (Austin et al. 2021, arXiv 2108.07732)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import EvaluationError
from ..problem import DataFile, Problem, Program
from .python_answers import defining_any, task_question
from .records import Record, Shape, described, read_records

__all__ = ["MBPP"]

_SHAPE = Shape(
    keys={"task_id": int, "text": str, "code": str, "test_list": list, "test_setup_code": str},
    name="task_id",
    mark="task_id",
    pattern=r"\d+",
)
_DATA = DataFile(
    "https://github.com/google-research/google-research", "mbpp/mbpp.jsonl", "CC BY 4.0", problems=500
)
_SHOTS = (2, 3, 4)
_TEST_SPLIT = range(11, 511)


@dataclass(frozen=True)
class MBPP:
    """The task `mbpp`: the test split, ids 11 to 510."""

    name: str = "mbpp"
    title: str = "MBPP"
    language: str = "python"
    is_infilling: bool = False
    data: DataFile = _DATA
    notes: tuple[str, ...] = ()

    def problems(self, path: Path | None) -> list[Problem]:
        """See `Task.problems`."""
        records = read_records(path, self.title, self.data, _SHAPE)
        by_id = {record["task_id"]: _unix_lines(record) for record in records}
        chosen = [record for record in by_id.values() if record["task_id"] in _TEST_SPLIT]
        absent = [str(shot) for shot in _SHOTS if shot not in by_id]
        if absent or not chosen:
            lacks = (
                f"task_id {', '.join(absent)} (the examples)" if absent else "task_id 11 to 510 (the tasks)"
            )
            raise EvaluationError(f"{path} lacks {lacks}; {self.title} takes {described(self.data)}")
        shots = "".join(_shot(by_id[shot]) for shot in _SHOTS)
        return [
            Problem(
                task_id=f"MBPP/{record['task_id']}",
                prompt=f"{shots}{_task(record)}",
                stops=("[DONE]",),
                question=task_question(record["text"], record["test_list"]),
                solution=record["code"],
                test="\n".join(record["test_list"]),
                setup=record["test_setup_code"],
            )
            for record in chosen
        ]

    def program(self, problem: Problem, answer: str) -> Program:
        """Answer, set-up of the tests, tests. The set-up of one task (367) uses the class that the answer defines."""
        return Program(self.language, f"{answer}\n{problem.setup}\n{problem.test}\n")

    def answer_of_chat(self, problem: Problem, message: str) -> str:
        """The code that defines what the tests call."""
        return defining_any(message, f"{problem.setup}\n{problem.test}")


def _unix_lines(record: Record) -> Record:
    """The record with LF where its texts have CRLF, as nearly all do: no model is to write the latter."""
    texts = {key: record[key].replace("\r\n", "\n") for key in ("text", "code", "test_setup_code")}
    return {**record, **texts, "test_list": [test.replace("\r\n", "\n") for test in record["test_list"]]}


def _task(record: Record) -> str:
    tests = "\n".join(record["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {record['text']}"
        f" Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _shot(record: Record) -> str:
    return f"{_task(record)}{record['code']}\n[DONE]\n\n"
