"""A small benchmark, and a judge that runs nothing: for laws of a run, which do not depend on what programs do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.evaluation.generator import ModelInfo, SampleRequest
from llama.evaluation.problem import Answer, DataFile, Problem, Program, Status, Verdict
from llama.evaluation.settings import Settings

__all__ = ["TOY", "Box", "Scripted", "ToyTask", "judged", "toy_problems"]


def toy_problems(count: int = 4, suffix: str | None = None) -> list[Problem]:
    words = ["def", "return", "self", "value", "list", "index", "print", "range", "class", "import"]
    return [
        Problem(
            task_id=f"Toy/{i}",
            # Blanks around it, as in the benchmarks: they are part of what is to be continued.
            prompt=f"\n{' '.join(words[i % 5 : i % 5 + 3 + i % 3])} {chr(10) * (i % 2)}",
            suffix=suffix,
            stops=("import",),
            question=f"write {words[i % 10]}",
            solution="value",
        )
        for i in range(count)
    ]


@dataclass
class ToyTask:
    name: str = "toy"
    title: str = "Toy"
    language: str = "python"
    data: DataFile = field(default_factory=lambda: DataFile("nowhere", "toy.jsonl", "CC0-1.0", 4))
    is_infilling: bool = False
    notes: tuple[str, ...] = ()
    count: int = 4

    def problems(self, path: Path | None) -> list[Problem]:
        return toy_problems(self.count, " print" if self.is_infilling else None)

    def program(self, problem: Problem, answer: str) -> Program:
        return Program(self.language, problem.prompt + answer)

    def answer_of_chat(self, problem: Problem, message: str) -> str:
        return message.strip()


TOY = ToyTask()


@dataclass
class Box:
    """Stands in for a sandbox where something stands in for `judge`."""

    level: str = "bubblewrap"

    def run(self, job: Any) -> Any:
        raise AssertionError("nothing should run here")


def judged(sandbox: object, program: Program, **more: object) -> Verdict:
    """A verdict that depends on nothing but the program."""
    passed = len(program.source) % 3 == 0
    return Verdict(Status.PASSED) if passed else Verdict(Status.FAILED, f"{len(program.source)} characters")


class Scripted:
    """A generator whose answer to sample j of a problem is `text(problem, j)`; by default a text of both."""

    model = ModelInfo("scripted")

    def __init__(self, text: Callable[[Problem, int], str] | None = None) -> None:
        self.text = text
        self.asked: list[SampleRequest] = []

    def generate(self, requests: Sequence[SampleRequest], settings: Settings) -> Iterator[Answer]:
        self.asked += requests
        for request in requests:
            for j in request.samples:
                text = f"{request.problem.task_id} {request.seed} {j}"
                if self.text is not None:
                    text = self.text(request.problem, j)
                yield request.answer(j, text, j, "stop")
