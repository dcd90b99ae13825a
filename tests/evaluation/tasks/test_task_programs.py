"""Prompts, stops and programs are those of the benchmarks, character by character."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_data import public_problems_path, record, write_records

from llama.evaluation.problem import Problem
from llama.evaluation.tasks import TASKS, exact_match
from llama.prompts import SPECIAL_TAGS

INFILLING = [name for name in TASKS if name.startswith("infilling-")]
MULTIPL_E = [name for name in TASKS if name.startswith("multipl-e-")]


def only_problem(name: str, folder: Path, **values: object) -> Problem:
    path = write_records(folder / "data.jsonl", [{**record(name), **values}])
    return TASKS[name].problems(path)[0]


def test_humaneval(tmp_path: Path) -> None:
    prompt = '\n\ndef double(x):\n    """ Twice\n    """ \n\n'
    problem = only_problem("humaneval", tmp_path, prompt=prompt)
    assert problem.prompt == prompt
    assert problem.stops == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert (problem.task_id, problem.suffix, problem.solution) == ("HumanEval/0", None, "    return 2 * x\n")
    program = TASKS["humaneval"].program(problem, "    return x + x ")
    assert program.language == "python"
    assert program.source == f"{prompt}    return x + x \n{problem.test}\ncheck(double)\n"


SHOT = (
    "You are an expert Python programmer, and here is your task: Write a function that doubles, {}."
    " Your code should pass these tests:\n\nassert double(1) == 2\nassert double(2) == 4\n[BEGIN]\n"
)
CODE = "def double(x):\n    return 2 * x"


def test_mbpp(tmp_path: Path) -> None:
    setup = {
        "test_setup_code": "root = double\r\nroot(3)",
        "test_list": ["assert double(1) == 2", "assert double(2\r\n) == 4"],
    }
    # Not in order, as a file may be: the examples come in the order 2, 3, 4 all the same.
    path = write_records(
        tmp_path / "data.jsonl",
        [
            {**record("mbpp", number), **(setup if number == 12 else {})}
            for number in (12, 4, 3, 2, 511, 11, 10)
        ],
    )
    problems = TASKS["mbpp"].problems(path)
    assert [problem.task_id for problem in problems] == ["MBPP/12", "MBPP/11"]
    shots = "".join(f"{SHOT.format(number)}{CODE}\n[DONE]\n\n" for number in (2, 3, 4))
    assert problems[0].prompt == shots + SHOT.format(12).replace("double(2)", "double(2\n)")
    assert problems[0].stops == ("[DONE]",)
    assert problems[0].solution == CODE
    program = TASKS["mbpp"].program(problems[0], "def double(x): return 2 * x\n")
    assert program.language == "python"
    tests = "assert double(1) == 2\nassert double(2\n) == 4"
    assert program.source == f"def double(x): return 2 * x\n\nroot = double\nroot(3)\n{tests}\n"


def test_the_public_mbpp_has_no_windows_lines_left() -> None:
    for problem in TASKS["mbpp"].problems(public_problems_path("mbpp")):
        for text in (problem.prompt, problem.solution, problem.test, problem.question):
            assert "\r\n" not in str(text)
        assert problem.prompt.count("[BEGIN]\n") == 4
        assert problem.prompt.count("\n[DONE]\n\n") == 3


@pytest.mark.parametrize("name", INFILLING)
def test_infilling(name: str, tmp_path: Path) -> None:
    problem = only_problem(name, tmp_path, prompt="\n def double(x):", suffix="\n  return y \n\n")
    assert TASKS[name].is_infilling
    assert (problem.prompt, problem.suffix, problem.stops) == ("\n def double(x):", "\n  return y \n\n", ())
    assert problem.question == ""
    source = TASKS[name].program(problem, "\n  y = 2 * x").source
    assert source == f"\n def double(x):\n  y = 2 * x\n  return y \n\n\n{problem.test}\ncheck(double)\n"


def test_an_exact_match_forgives_blanks_around_both_and_nothing_else(tmp_path: Path) -> None:
    problem = only_problem("infilling-single", tmp_path, canonical_solution="    y = 2 *  x\n")
    for answer in ("    y = 2 *  x\n", "y = 2 *  x", "\n\n\ty = 2 *  x  \n    "):
        assert exact_match(problem, answer) is True
    for answer in ("", "y = 2 * x", "y = 2 *  x\n    return y", "y  = 2 *  x"):
        assert exact_match(problem, answer) is False
    assert exact_match(only_problem("humaneval", tmp_path), "    return 2 * x\n") is None


@pytest.mark.parametrize("name", MULTIPL_E)
def test_multipl_e(name: str, tmp_path: Path) -> None:
    stops = ["\n    }\n", "\nfunction "]
    problem = only_problem(name, tmp_path, prompt="\n# doubles \ndouble() {\n", stop_tokens=stops)
    assert problem.prompt == "\n# doubles \ndouble() {\n"
    assert problem.stops == tuple(stops)
    assert not TASKS[name].is_infilling
    program = TASKS[name].program(problem, "    echo $((2 * $1))")
    assert program.language == name.removeprefix("multipl-e-")
    assert program.source == f"{problem.prompt}    echo $((2 * $1))\n{problem.test}"


@pytest.mark.parametrize("name", TASKS)
def test_no_public_question_holds_a_tag_of_a_chat_format(name: str) -> None:
    for problem in TASKS[name].problems(public_problems_path(name)):
        assert not any(tag in problem.question for tag in SPECIAL_TAGS)
        assert bool(problem.question) != TASKS[name].is_infilling
