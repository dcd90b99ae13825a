"""The benchmarks' own solutions pass, and empty answers do not. `make solutions` tries all of them.

In the large infilling files a solution in its hole is always one of some 300 programs, of which each is run once.
"""

from __future__ import annotations

import pytest
from eval_data import public_problems_path
from judging import best_sandbox, failures, verdicts

from llama.evaluation.problem import Problem, Status
from llama.evaluation.sandbox import Sandbox
from llama.evaluation.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return best_sandbox()


def some(name: str, step: int = 1) -> list[Problem]:
    return TASKS[name].problems(public_problems_path(name))[::step]


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "infilling-light"])
def test_all_own_solutions_pass(sandbox: Sandbox, name: str) -> None:
    assert failures(sandbox, TASKS[name], some(name)) == {}


@pytest.mark.parametrize(
    ("name", "step"), [("infilling-single", 29), ("infilling-multi", 197), ("infilling-random", 41)]
)
def test_own_solutions_of_the_large_infilling_files_pass(sandbox: Sandbox, name: str, step: int) -> None:
    assert failures(sandbox, TASKS[name], some(name, step)) == {}


@pytest.mark.parametrize(("name", "step"), [("humaneval", 1), ("mbpp", 10)])
def test_empty_answers_pass_nothing(sandbox: Sandbox, name: str, step: int) -> None:
    judged = verdicts(sandbox, TASKS[name], some(name, step), lambda problem: "")
    assert {verdict.status for verdict in judged} == {Status.FAILED}


def test_an_empty_answer_passes_where_what_was_taken_out_is_not_missed(sandbox: Sandbox) -> None:
    """What the notes of the infilling tasks say."""
    problems = [
        problem for problem in some("infilling-single") if problem.task_id.endswith(("/20/L0", "/21/L0"))
    ]
    judged = verdicts(sandbox, TASKS["infilling-single"], problems, lambda problem: "")
    assert [verdict.status for verdict in judged] == [Status.PASSED, Status.FAILED]
