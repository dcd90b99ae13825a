"""A small benchmark, and a judge that runs nothing: for laws of a run, which do not depend on what programs do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.evaluation.asking import Ask, Header, ModelInfo, Settings
from llama.evaluation.problem import Answer, DataFile, Order, Problem, Program, Sample, Status, Verdict

__all__ = ["TOY", "Box", "Scripted", "ToyTask", "header", "judged", "sample", "toy_problems"]


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


class Box:
    """Stands in for a sandbox where `judged` stands in for the judge."""

    level = "bubblewrap"

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
        self.asked: list[Ask] = []

    def generate(self, asks: Sequence[Ask], settings: Settings) -> Iterator[Answer]:
        self.asked += asks
        for ask in asks:
            for j in range(ask.first, ask.first + ask.count):
                text = f"{ask.problem.task_id} {ask.seed} {j}"
                if self.text is not None:
                    text = self.text(ask.problem, j)
                yield Answer(ask.problem, ask.order, j, ask.seed, text, j, "stop")


def header(**changes: Any) -> Header:
    """A header whose settings, model and other fields are changed by name."""
    settings = {"task": "toy", "n": 2, **_of(Settings, changes)}
    model = {
        "name": "m",
        "weights": "0" * 64,
        "dtype": "float32",
        "max_seq_len": 128,
        **_of(ModelInfo, changes),
    }
    rest = {"data_sha256": "1" * 64, "data_records": 4, "sandbox": "bubblewrap", "versions": {"python": "3"}}
    assert changes.keys() <= Header.__dataclass_fields__.keys(), changes
    return Header(Settings(**settings), ModelInfo(**model), **(rest | changes))


def _of(kind: Any, changes: dict[str, Any]) -> dict[str, Any]:
    return {name: changes.pop(name) for name in list(changes) if name in kind.__dataclass_fields__}


def sample(task_id: str = "Toy/0", number: int = 0, completion: str = "x", **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "order": Order.PLAIN,
        "seed": 7,
        "tokens": 1,
        "finish_reason": "stop",
        "verdict": Verdict(Status.PASSED),
    }
    return Sample(task_id=task_id, sample=number, completion=completion, **(fields | changes))
