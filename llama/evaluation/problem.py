"""Problems, a model's answers to them, and the verdicts. Never imports torch.

A `Task` reads problems from its file and turns an answer into a program; `programs/` runs that in a sandbox and
gives the `Verdict`; a `Sample` is one line of the file of results.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Answer", "DataFile", "Order", "Problem", "Program", "Sample", "Status", "Task", "Verdict"]


class Order(str, enum.Enum):
    """How a prompt is laid out."""

    PLAIN = "plain"  # a text to continue
    PSM = "psm"  # infilling: prefix, suffix, middle
    SPM = "spm"  # infilling: suffix, prefix, middle
    CHAT = "chat"  # a question in the model's chat format


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Args:
        task_id: the file's id, such as HumanEval/0; a bare number gets the task's name in front, as in MBPP/11.
        prompt: the text to continue; of infilling the text before the hole. Never stripped.
        suffix: the text after the hole; None if the task has no holes.
        stops: strings that end the answer and are cut off.
        question: what a chat model is asked (--chat).
        solution: the file's own answer, where it has one.
        test: the task's own tests, as its file has them.
        setup: what has to run between the answer and the tests.
        entry_point: the function that they call, where the file names it.
    """

    task_id: str
    prompt: str
    suffix: str | None = None
    stops: tuple[str, ...] = ()
    question: str = ""
    solution: str | None = None
    test: str = ""
    setup: str = ""
    entry_point: str = ""


@dataclass(frozen=True)
class Program:
    """A source text that judges an answer by how it ends, in a language of `programs.LANGUAGES`."""

    language: str
    source: str


@dataclass(frozen=True)
class DataFile:
    """Where a task's problems come from; the message says so when the file is missing.

    project: its address. file: its name there. licence: of the data. problems: how many of the task's are in it;
    published figures are of as many.
    """

    project: str
    file: str
    licence: str
    problems: int


class Task(Protocol):
    """A benchmark."""

    @property
    def name(self) -> str:
        """As on the command line, such as humaneval."""
        ...

    @property
    def title(self) -> str:
        """As people write it, such as HumanEval."""
        ...

    @property
    def language(self) -> str:
        """Of its programs; a key of `programs.LANGUAGES`."""
        ...

    @property
    def data(self) -> DataFile: ...

    @property
    def is_infilling(self) -> bool:
        """Whether the orders psm and spm apply (and plain does not)."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures has to know of this task, a sentence each."""
        ...

    def problems(self, path: Path | None) -> list[Problem]:
        """All problems, in the file's order.

        Args:
            path: the data file, .jsonl or .jsonl.gz; None for the one that a package brings.

        Raises:
            EvaluationError: there is none, or it is not this task's file; the message names project, file, licence.
        """
        ...

    def program(self, problem: Problem, answer: str) -> Program:
        """What is run to judge an answer to `problem.prompt`."""
        ...

    def answer_of_chat(self, problem: Problem, message: str) -> str:
        """The part of a chat answer that `program` takes: the fenced code, fitted to the prompt."""
        ...


class Status(str, enum.Enum):
    """What became of a program."""

    PASSED = "passed"
    FAILED = "failed"  # it ended otherwise than a program whose tests all hold
    TIMED_OUT = "timed out"
    NOT_RUN = "not run"  # its toolchain is not on this machine


@dataclass(frozen=True)
class Verdict:
    """`detail`: one printable line of at most 200 characters, such as the last of stderr; "" if it passed."""

    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    """What a model wrote. `sample` counts from 0 for each problem and order; `seed`: it drew from (seed, sample)."""

    problem: Problem
    order: Order
    sample: int
    seed: int
    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Sample:
    """One line of the file of results: an answer and its verdict.

    `completion`: what `Task.program` was given. `exact`: of infilling, whether it is the removed text, both stripped.
    """

    task_id: str
    order: Order
    sample: int
    seed: int
    completion: str
    tokens: int
    finish_reason: str
    verdict: Verdict
    exact: bool | None = None
