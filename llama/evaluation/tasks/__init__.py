"""The benchmarks: where their problems come from, how a model is asked, and the program that judges an answer.

To add one: a class with the members of `problem.Task` in a file of this folder, and its line in `TASKS`.
"""

from __future__ import annotations

from ...errors import EvaluationError
from ...printable import shown
from ..problem import Task
from .humaneval import HumanEval
from .infilling import INFILLING, exact_match
from .mbpp import MBPP
from .multipl_e import MULTIPL_E

__all__ = ["TASKS", "count_note", "exact_match", "find_task"]

_ALL: tuple[Task, ...] = (HumanEval(), MBPP(), *INFILLING, *MULTIPL_E)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        EvaluationError: there is none; the message lists those there are.
    """
    if name not in TASKS:
        raise EvaluationError(f"there is no task {shown(name)}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def count_note(task: Task, problems: int) -> str:
    """A sentence where a file has another number of problems than the published one; "" where it has not."""
    if problems == task.data.problems:
        return ""
    return (
        f"The data file has {problems:,} problems, the published one {task.data.problems:,}:"
        " figures of others do not compare."
    )
