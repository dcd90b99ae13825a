"""A chat answer in MultiPL-E's languages: a whole function with what stands around it, or a body, does as it says."""

from __future__ import annotations

import pytest
from braced_answers_data import BODIES, PROBLEMS, WHOLE
from eval_data import public_problems_path

from llama.evaluation.problem import Problem, Program, Status, Verdict
from llama.evaluation.programs import LANGUAGES, judge, missing
from llama.evaluation.sandbox import Sandbox
from llama.evaluation.tasks import TASKS


@pytest.fixture(params=PROBLEMS)
def language(request: pytest.FixtureRequest) -> str:
    if missing(request.param):
        pytest.skip(f"no toolchain of {LANGUAGES[request.param].title}")
    return request.param


def program(language: str, message: str) -> Program:
    task = TASKS[f"multipl-e-{language}"]
    return task.program(PROBLEMS[language], task.answer_of_chat(PROBLEMS[language], message))


@pytest.mark.slow
def test_a_whole_answer_passes(sandbox: Sandbox, language: str) -> None:
    message = f"Here it is:\n```{language}\n{WHOLE[language]}```\nRun it by\n```text\n./scale\n```\n"
    assert judge(sandbox, program(language, message)) == Verdict(Status.PASSED)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["php", "cs", "sh", "js"], indirect=True)  # others compile for seconds
def test_a_whole_answer_that_is_wrong_fails(sandbox: Sandbox, language: str) -> None:
    wrong = WHOLE[language].replace(" * ", " - ")
    assert wrong != WHOLE[language]
    assert judge(sandbox, program(language, f"```\n{wrong}```\n")).status is Status.FAILED


@pytest.mark.parametrize("language", BODIES)
def test_a_body_is_taken_as_it_is_with_the_brace_that_the_tests_need(language: str) -> None:
    body, problem = BODIES[language], PROBLEMS[language]
    brace = "" if problem.test.lstrip().startswith("}") else "}\n"
    expected = f"{problem.prompt}{body}{brace}\n{problem.test}"
    for block in (body.rstrip(), f"{body}}}", f"\n{body}}}\n\n"):
        found = program(language, f"Sure!\n```{language}\n{block}\n```\nThat is all.").source
        assert "".join(found.split()) == "".join(expected.split())


@pytest.mark.parametrize("language", WHOLE)
def test_without_a_fence_the_code_is_found_all_the_same(language: str) -> None:
    expected = program(language, f"```\n{WHOLE[language]}```").source
    found = program(language, f"Sure!\n\n{WHOLE[language]}\n\nThis is the function.").source
    lines = set(expected.splitlines())
    assert all(line in lines for line in found.splitlines())
    assert "This is the function" not in found


@pytest.mark.parametrize("language", WHOLE)
def test_the_prompt_repeated_in_front_is_not_the_answer(language: str) -> None:
    comment = "#" if language == "sh" else "//"
    asked = f"{PROBLEMS[language].prompt}    {comment} your code here\n}}\n"
    answer = f"```\n{WHOLE[language]}```"
    assert program(language, f"```\n{asked}```\n{answer}") == program(language, answer)


@pytest.mark.parametrize(
    ("language", "signature", "call"),
    [
        ("cpp", "bool f(std::vector<std::vector<long>> a, std::map<std::string,long> b) {", "f(a, b)"),
        ("cpp", "std::tuple<long, long> f() {", "f()"),
        (
            "cpp",
            "long f(std::optional<std::string> a, std::tuple<long, std::string> b, long c) {",
            "f(a, b, c)",
        ),
        (
            "java",
            "    public static Pair<Long, Long> f(Optional<String> a, HashMap<String,Long> b) {",
            "(a, b)",
        ),
        ("java", "    public static long f(long a) {", "(a)"),
        (
            "cs",
            "    public static Tuple<long, long> F(Nullable<long> a, Dictionary<string,long> b) {",
            "(a, b)",
        ),
        ("php", "function f($a, $b = array(1, 2)) {", "($a, $b)"),
        ("ts", "function f(a: [number, string][], b: {[key: string]: number}): [number, number] {", "(a, b)"),
        ("ts", "function f(a: (x: number, y: number) => string, b?: string | undefined): void {", "(a, b)"),
        ("js", "function f(a, b = [1, 2]){", "(a, b)"),
        ("sh", "f() {", 'f "$@"'),
    ],
)
def test_the_prompts_function_passes_all_its_arguments_on(language: str, signature: str, call: str) -> None:
    problem = Problem("f", f"// A comment (of words, and more)\n{signature}\n")
    task = TASKS[f"multipl-e-{language}"]
    answer = task.answer_of_chat(problem, f"```\n{signature}\n    ;\n}}\n```")
    assert f"{call};\n" in answer or f"{call}\n" in answer


@pytest.mark.parametrize("language", PROBLEMS)
def test_the_function_of_every_public_problem_is_found(language: str) -> None:
    task = TASKS[f"multipl-e-{language}"]
    for problem in task.problems(public_problems_path(task.name)):
        body = task.answer_of_chat(problem, "```\n    a body\n```")
        whole = task.answer_of_chat(problem, f"```\n{problem.prompt}    a body\n}}\n```")
        assert body.removesuffix("}\n") == "a body\n"
        assert whole != body
        assert "a body" in whole
