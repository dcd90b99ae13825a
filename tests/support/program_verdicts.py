"""Judges many programs of the benchmarks' own, on all cores, each distinct program once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from llama.errors import EvaluationError
from llama.evaluation.problem import Problem, Status, Task, Verdict
from llama.evaluation.programs import judge
from llama.evaluation.sandbox import Job, Outcome, Sandbox, open_sandbox

__all__ = ["Hurried", "best_sandbox", "failures", "verdicts"]


def best_sandbox() -> Sandbox:
    """The sandbox that runs use; where this machine has none, limits alone: the programs are no strangers'."""
    try:
        return open_sandbox()
    except EvaluationError:
        return open_sandbox("limits")


class Hurried:
    """A sandbox that gives programs less processor time. Their compilers have the time that they always have."""

    def __init__(self, sandbox: Sandbox, seconds: float) -> None:
        self._sandbox = sandbox
        self._seconds = seconds
        self.level = sandbox.level

    def run(self, job: Job) -> Outcome:
        *compilers, program = job.commands
        limits = dataclasses.replace(program.limits, cpu_seconds=self._seconds)
        commands = [*compilers, dataclasses.replace(program, limits=limits)]
        return self._sandbox.run(dataclasses.replace(job, commands=commands))


def verdicts(
    sandbox: Sandbox, task: Task, problems: Sequence[Problem], answer: Callable[[Problem], str]
) -> list[Verdict]:
    """What becomes of an answer to each problem."""
    programs = [task.program(problem, answer(problem)) for problem in problems]
    distinct = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = dict(zip(distinct, pool.map(lambda program: judge(sandbox, program), distinct), strict=True))
    return [found[program] for program in programs]


def failures(sandbox: Sandbox, task: Task, problems: Sequence[Problem]) -> dict[str, Verdict]:
    """The problems whose own solution does not pass."""
    judged = verdicts(sandbox, task, problems, lambda problem: str(problem.solution))
    return {
        problem.task_id: verdict
        for problem, verdict in zip(problems, judged, strict=True)
        if verdict.status is not Status.PASSED
    }
