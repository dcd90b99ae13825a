"""HumanEval infilling: a hole in each solution of HumanEval (Bavarian et al. 2022, arXiv 2207.14255)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..problem import DataFile, Problem, Program
from .humaneval import KEYS, problem_of, with_tests
from .records import Shape, read_records

__all__ = ["INFILLING", "Infilling", "exact_match"]


@dataclass(frozen=True)
class Infilling:
    """One of the tasks `infilling-...`.

    kind: how its file calls it, such as SingleLineInfilling.
    empty_passes: how many of its problems an empty answer passes, counted by `make floors`.
    """

    name: str
    title: str
    kind: str
    data: DataFile
    empty_passes: int
    language: str = "python"
    is_infilling: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """The floor of its figures."""
        share = 100 * self.empty_passes / self.data.problems
        return (
            f"An empty answer passes {self.empty_passes:,} of the {self.data.problems:,} problems ({share:.1f} %).",
        )

    def problems(self, path: Path | None) -> list[Problem]:
        """See `Task.problems`."""
        shape = Shape(
            {**KEYS, "suffix": str}, name="task_id", mark="task_id", pattern=rf"{self.kind}/HumanEval/.+"
        )
        records = read_records(path, self.title, self.data, shape)
        return [replace(problem_of(record), suffix=record["suffix"]) for record in records]

    def program(self, problem: Problem, answer: str) -> Program:
        """The text around the hole with the answer in it, tests, and their call."""
        return with_tests(problem, f"{problem.prompt}{answer}{problem.suffix}")

    def answer_of_chat(self, problem: Problem, message: str) -> str:
        """The message: these tasks have no question (`Problem.question` is empty), so nobody chats about them."""
        return message


def exact_match(problem: Problem, answer: str) -> bool | None:
    """Whether an answer is the text that was taken out, but for blanks around both; None if not of infilling."""
    if problem.suffix is None or problem.solution is None:
        return None
    return answer.strip() == problem.solution.strip()


def _infilling(name: str, title: str, kind: str, problems: int, empty_passes: int) -> Infilling:
    file = f"data/HumanEval-{kind}.jsonl.gz"
    data = DataFile("https://github.com/openai/human-eval-infilling", file, "MIT", problems)
    return Infilling(name, title, kind, data, empty_passes)


INFILLING = (
    _infilling("infilling-single", "HumanEval infilling, single line", "SingleLineInfilling", 1033, 27),
    _infilling("infilling-multi", "HumanEval infilling, multiple lines", "MultiLineInfilling", 5815, 55),
    _infilling("infilling-random", "HumanEval infilling, random span", "RandomSpanInfilling", 1640, 30),
    _infilling(
        "infilling-light", "HumanEval infilling, random span light", "RandomSpanInfillingLight", 164, 0
    ),
)
