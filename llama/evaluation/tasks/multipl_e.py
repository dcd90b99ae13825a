"""MultiPL-E: HumanEval's problems in other languages (Cassano et al. 2022, arXiv 2208.08227)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..problem import DataFile, Problem, Program
from .braced_answers import STYLES, braced_question, fitted_to_braces
from .records import Shape, read_records

__all__ = ["MULTIPL_E", "MultiPLE"]

_KEYS = {"name": str, "language": str, "prompt": str, "tests": str, "stop_tokens": list}


@dataclass(frozen=True)
class MultiPLE:
    """One of the tasks `multipl-e-...`. Its file has no solutions."""

    name: str
    title: str
    language: str
    data: DataFile
    notes: tuple[str, ...] = ()
    is_infilling: bool = False

    def problems(self, path: Path | None) -> list[Problem]:
        """See `Task.problems`."""
        shape = Shape(_KEYS, name="name", mark="language", pattern=self.language)
        records = read_records(path, self.title, self.data, shape)
        return [
            Problem(
                task_id=record["name"],
                prompt=record["prompt"],
                stops=tuple(record["stop_tokens"]),
                question=braced_question(record["prompt"], STYLES[self.language]),
                test=record["tests"],
            )
            for record in records
        ]

    def program(self, problem: Problem, answer: str) -> Program:
        """Prompt, answer, tests; the latter begin with the brace that ends the function, where a stop cut it off."""
        return Program(self.language, f"{problem.prompt}{answer}\n{problem.test}")

    def answer_of_chat(self, problem: Problem, message: str) -> str:
        """The body, or a body that calls the whole function of the message."""
        return fitted_to_braces(message, problem.prompt, STYLES[self.language])


def _multipl_e(language: str, problems: int, *notes: str) -> MultiPLE:
    data = DataFile(
        "https://github.com/nuprl/MultiPL-E",
        f"prompts/humaneval-{language}-reworded.json",
        "BSD 3-clause, and not to be used as training data",
        problems,
    )
    title = f"MultiPL-E {STYLES[language].title}"
    return MultiPLE(f"multipl-e-{language}", title, language, data, notes)


MULTIPL_E = (
    _multipl_e("cpp", 161),
    _multipl_e("java", 158),
    _multipl_e("php", 161, "HumanEval_23_strlen cannot pass: it defines a function that PHP has already."),
    _multipl_e("ts", 159),
    _multipl_e("cs", 158),
    _multipl_e("sh", 158),
    _multipl_e("js", 161),
)
