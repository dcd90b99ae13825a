"""Whatever shape a chat answer has that means the right function, the program made of it passes the tests."""

from __future__ import annotations

import re
import textwrap
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.evaluation.problem import Problem
from llama.evaluation.tasks import TASKS
from llama.evaluation.tasks.fences import fenced_blocks

HUMANEVAL = TASKS["humaneval"]
PROBLEMS = HUMANEVAL.problems(None)
HELPERS = [problem for problem in PROBLEMS if problem.prompt.count("\ndef ") > 1]
IMPORTS = re.compile(r"^(?:import|from) .*\n", re.MULTILINE)

texts = st.sampled_from(
    [
        "",
        "Sure! Here is the function:\n\n",
        "It uses `math`, and import of it.\n",
        "  Sure! Here it is:\n\n",
        "1. First\n2. from the list\n\n",
    ]
)
examples = st.sampled_from(
    [
        "",
        "print(undefined_name)\n",
        "\nassert False, 'a test of its own'\n",
        "if __name__ == '__main__':\n    raise SystemExit(1)\n",
        "n, m = map(int, input().split())\nprint(n)\n",
    ]
)
others = st.sampled_from(
    [
        "",
        "```bash\npip install numpy\n```\n",
        "```\n>>> undefined_name(3)\n7\n```\n",
        "```python\nraise ValueError('an example')\n```\n",
        "```text\nTrue\n```\n",
    ]
)


def passes(source: str) -> bool:
    """Whether a program ends. Only for programs made of HumanEval's own solutions and of texts of this file."""
    try:
        exec(compile(source, "program", "exec", dont_inherit=True), {"__name__": "program"})
    except BaseException:
        return False
    return True


def solves(problem: Problem, message: str) -> bool:
    return passes(HUMANEVAL.program(problem, HUMANEVAL.answer_of_chat(problem, message)).source)


def whole(problem: Problem) -> str:
    """The function alone, with signature, docstring and body."""
    prompt = problem.prompt
    start = prompt.rindex(f"def {problem.entry_point}")
    return prompt[start:] + str(problem.solution)


def in_a_block(draw: Any, code: str) -> str:
    """A message with the code in a block, and other things around it."""
    language = draw(
        st.sampled_from(["", "python", "Python", "py", "python3", " python", "python title=a.py"])
    )
    fence = draw(st.sampled_from(["```", "````", "~~~"]))
    end = draw(st.sampled_from([f"\n{fence}\n", f"\n  {fence}\n", f"{fence}\n", "\n"]), label="end")
    block = textwrap.indent(
        f"{fence}{language}\n{code.rstrip()}{end}", draw(st.sampled_from(["", "   "]), label="indent")
    )
    before = draw(texts, label="before") + draw(others, label="block before")
    # Without an end all that follows is code.
    after = draw(texts, label="after") + draw(others, label="block after") if fence in end else ""
    message = before + block + after
    return message.replace("\n", "\r\n") if draw(st.booleans(), label="Windows lines") else message


@given(data=st.data())
def test_a_whole_function_in_a_block(data: st.DataObject) -> None:
    problem = data.draw(st.sampled_from(PROBLEMS), "problem")
    code = whole(problem) + data.draw(examples, "example")
    imports = data.draw(st.sampled_from(["", "".join(IMPORTS.findall(problem.prompt))]), "imports")
    future = data.draw(st.sampled_from(["", "from __future__ import annotations\n"]), "future")
    assert solves(problem, in_a_block(data.draw, future + imports + code))


@given(data=st.data())
def test_a_whole_function_without_a_block(data: st.DataObject) -> None:
    problem = data.draw(st.sampled_from(PROBLEMS), "problem")
    code = data.draw(st.sampled_from(["", problem.prompt[: problem.prompt.rindex("def ")]])) + whole(problem)
    message = data.draw(texts, "before") + code + data.draw(examples, "example")
    assert solves(problem, message + data.draw(st.sampled_from(["", "\nThis works since it is right.\n"])))


@settings(max_examples=40)
@given(data=st.data())
def test_a_body_alone(data: st.DataObject) -> None:
    problem = data.draw(st.sampled_from(PROBLEMS), "problem")
    # Some bodies define functions at several depths; all are moved as one.
    body = str(problem.solution).strip("\n")
    shape = data.draw(st.sampled_from(["as it is", "at the left edge", "stripped"]), "shape")
    if shape == "at the left edge":
        body = textwrap.dedent(body)
    if shape == "stripped":
        body = body.strip()
    assert solves(problem, body)
    # A block of another kind may only be left out if this one says what it is, or comes first.
    assert solves(
        problem, f"Sure!\n```python\n{body}\n```\nIt works.\n```python\nprint(undefined_name)\n```\n"
    )


@pytest.mark.parametrize("problem", HELPERS, ids=lambda problem: problem.task_id)
def test_what_else_the_prompt_defines_and_imports_stays(problem: Problem) -> None:
    assert solves(problem, f"```python\n{whole(problem)}```")


def test_every_solution_as_a_whole_function_and_as_a_body() -> None:
    for problem in PROBLEMS:
        assert solves(problem, f"Here:\n```python\n{problem.prompt}{problem.solution}```\nIt works."), (
            problem.task_id
        )
        assert solves(problem, f"```\n{problem.solution}```"), problem.task_id


def test_a_wrong_answer_does_not_pass() -> None:
    for problem in PROBLEMS[:40]:
        for message in (
            "",
            "I cannot.",
            "```python\n```",
            f"```python\n{problem.prompt}```",
            "```python\npass\n```",
        ):
            assert not solves(problem, message), (problem.task_id, message)


def test_code_in_several_blocks_is_joined() -> None:
    problem = PROBLEMS[0]
    code = "def has_close_elements(numbers, threshold):\n    return near(numbers, threshold)\n"
    helper = (
        "import itertools\n\nLIMIT = 2\n\n\ndef near(numbers, threshold):\n"
        "    return any(abs(a - b) < threshold for a, b in itertools.combinations(numbers, LIMIT))\n"
    )
    assert solves(problem, f"A helper:\n```python\n{helper}```\nThe function:\n```python\n{code}```\n")
    assert solves(problem, f"```python\n{code}```\nIt needs\n```python\n{helper}```\n")


def test_of_two_versions_the_first_counts_but_the_question_repeated_does_not() -> None:
    problem = PROBLEMS[0]
    right, wrong = whole(problem), "def has_close_elements(numbers, threshold):\n    return None\n"
    for gap in ("", "    pass\n", "    # Your code goes here\n    pass\n"):
        asked = f"```python\n{problem.prompt}{gap}```\n"
        assert solves(problem, f"{asked}```python\n{right}```\nOr:\n```python\n{wrong}```\n")
        assert not solves(problem, f"{asked}```python\n{wrong}```\nOr:\n```python\n{right}```\n")


def test_code_between_the_tags_of_the_models_training() -> None:
    problem = PROBLEMS[0]
    assert solves(problem, f"[PYTHON]\n{whole(problem)}[/PYTHON]\n[TESTS]\nassert False\n[/TESTS]")
    assert solves(problem, f" [PYTHON]\n{whole(problem)}")
    use = "```\nhas_close_elements([1.0], 0.5)\n```\n"
    assert solves(problem, f"[PYTHON]\n{whole(problem)}[/PYTHON]\nYou call it so:\n{use}")
    assert solves(problem, f"In [PYTHON] tags:\n[PYTHON]\n```python\n{whole(problem)}```\n[/PYTHON]\n{use}")
    assert solves(problem, f"```python\nTAG = '[PYTHON]'\n{whole(problem)}```\n{use}")


def test_mbpp_takes_the_code_that_defines_what_the_tests_call() -> None:
    task = TASKS["mbpp"]
    problem = Problem("MBPP/11", "", test="\nassert max(double(2), 3) == 4\nassert Pair(1).one == 1")
    double = "import math\n\n\ndef double(x):\n    return 2 * x\n"
    pair = "class Pair:\n    def __init__(self, one):\n        self.one = one\n"
    for message in (
        f"```python\n{double}\n{pair}```\n",
        f"```python\n{double}\n{pair}\nprint(double())\n```\n```python\nassert double(2) == 5\n```",
        f"```\n{double}```\nand\n```\n{pair}```\n```\n5\n```",
        f"Here you are:\n\n{double}\n\n{pair}\nThis works.",
        f"[PYTHON]\nfrom __future__ import annotations\n{double}{pair}[/PYTHON]",
    ):
        assert passes(task.program(problem, task.answer_of_chat(problem, message)).source), message
    for message in ("", "I cannot.", f"```\n{double}```"):
        assert not passes(task.program(problem, task.answer_of_chat(problem, message)).source)


def test_a_message_without_the_function_is_taken_as_it_is() -> None:
    problem = Problem("MBPP/11", "", test="assert double(2) == 4")
    message = "double = lambda x: 2 * x"
    assert TASKS["mbpp"].answer_of_chat(problem, message) == message
    assert TASKS["mbpp"].answer_of_chat(problem, f"So:\n```python\n{message}\n```\n") == f"{message}\n"


def test_the_blocks_of_a_message() -> None:
    message = (
        "a\n```python\nx = 1\n```\nb\n```sh\nls\n```\n- c\n  ```\n  y = '''\n  z'''\n  ```\n~~~py\nlast```\n"
    )
    assert fenced_blocks(message, {"python", "py"}) == ["x = 1\n", "y = '''\nz'''\n", "last```\n"]
    assert fenced_blocks("```sh\nls\n```", {"python"}) == ["ls\n"]
    assert fenced_blocks("```python\nreturn x```\nThat is it.", {"python"}) == ["return x\n"]
    assert fenced_blocks("use ```x``` and `y`", {"python"}) == []


@given(message=st.text(max_size=200), name=st.sampled_from(sorted(TASKS)))
def test_no_message_makes_an_error(message: str, name: str) -> None:
    prompt = "# a function\ndouble(int a, int b) {\n"
    problem = Problem("id", prompt, test="assert double(1) == 2", entry_point="double")
    for text in (
        message,
        f"```\n{message}",
        f"def double({message}",
        f"```\nint double(int a) {{{message}\n```",
    ):
        program = TASKS[name].program(problem, TASKS[name].answer_of_chat(problem, text))
        assert isinstance(program.source, str)


@pytest.mark.parametrize("piece", ["```x\n", "~~~\n", "int double(int a,\n", "class a ", "a: ", " "])
def test_a_long_text_takes_no_quadratic_time(piece: str) -> None:
    """It takes half a second; in quadratic time it would be hours, so the bound is generous."""
    problem = Problem("id", "# a function\nint double(int a) {\n", test="double(1)", entry_point="double")
    message = piece * (200_000 // len(piece))
    start = time.process_time()
    for name in ("humaneval", "multipl-e-cs"):
        for text in (message, f"```\n{message}", f"```\nint double(int a) {{{message}}}\n```"):
            TASKS[name].answer_of_chat(problem, text)
    assert time.process_time() - start < 120
