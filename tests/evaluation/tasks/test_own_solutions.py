"""Own solutions pass and empty answers do not: of each task a spread. `make solutions`, which CI runs, tries all."""

from __future__ import annotations

import pytest
from eval_data import public_problems_path
from program_verdicts import failures, verdicts

from llama.evaluation.problem import Problem, Status
from llama.evaluation.sandbox import Sandbox
from llama.evaluation.tasks import TASKS

pytestmark = pytest.mark.slow

# Of each task every so many-th problem, from one on. MBPP's include 367, whose tests are set up behind the answer.
SPREADS = {
    "humaneval": slice(0, None, 8),
    "mbpp": slice(6, None, 25),
    "infilling-single": slice(0, None, 79),
    "infilling-multi": slice(0, None, 397),
    "infilling-random": slice(0, None, 109),
    "infilling-light": slice(0, None, 13),
}


def some(name: str) -> list[Problem]:
    return TASKS[name].problems(public_problems_path(name))[SPREADS[name]]


@pytest.mark.parametrize("name", SPREADS)
def test_own_solutions_pass(sandbox: Sandbox, name: str) -> None:
    assert failures(sandbox, TASKS[name], some(name)) == {}


def test_the_spread_of_mbpp_has_the_task_whose_tests_are_set_up() -> None:
    assert "MBPP/367" in [problem.task_id for problem in some("mbpp")]


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_empty_answers_pass_nothing(sandbox: Sandbox, name: str) -> None:
    judged = verdicts(sandbox, TASKS[name], some(name), lambda problem: "")
    assert {verdict.status for verdict in judged} == {Status.FAILED}


def test_an_empty_answer_passes_where_what_was_taken_out_is_not_missed(sandbox: Sandbox) -> None:
    """What the notes of the infilling tasks say."""
    task = TASKS["infilling-single"]
    problems = task.problems(public_problems_path(task.name))
    chosen = [problem for problem in problems if problem.task_id.endswith(("/20/L0", "/21/L0"))]
    judged = verdicts(sandbox, task, chosen, lambda problem: "")
    assert [verdict.status for verdict in judged] == [Status.PASSED, Status.FAILED]
