"""Mutants of how an answer's program is compiled, run and judged."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_PYTHON = "tests/evaluation/programs/test_python_programs.py"
_LANGUAGES = "tests/evaluation/programs/test_languages.py"
_WRONG = f"{_LANGUAGES}::test_a_wrong_program_fails_by_its_test"
_LIMITS = f"{_LANGUAGES}::test_a_program_is_limited_as_the_page_says"

MUTANTS = [
    Mutant(
        name="a program passes that ends with 0 anywhere",
        file="llama/evaluation/programs/verdict.py",
        old="if outcome.token != token.encode():",
        new="if not token:",
        tests=(f"{_PYTHON}::test_no_program_passes_that_ends_with_0_before_its_tests_do",),
    ),
    Mutant(
        name="a program passes that wrote its token and failed then",
        file="llama/evaluation/programs/verdict.py",
        old="if outcome.exit_code != 0 or not last:",
        new="if not last:",
        tests=(f"{_PYTHON}::test_a_verdict_follows_from_how_the_program_ended",),
    ),
    Mutant(
        name="a program may know its token",
        file="llama/evaluation/programs/verdict.py",
        old="token = secrets.token_hex(16)",
        new="token = '0' * 32",
        tests=(f"{_PYTHON}::test_tokens_differ_from_run_to_run",),
    ),
    Mutant(
        name="a verdict tells this machine's folders",
        file="llama/evaluation/programs/verdict.py",
        old='_FOLDERS.sub("", text)',
        new="text",
        tests=(f"{_PYTHON}::test_a_failed_program_tells_its_error_in_one_line",),
    ),
    Mutant(
        name="a compiler's last line is told",
        file="llama/evaluation/programs/verdict.py",
        old="telling[-1 if last else 0]",
        new="telling[-1]",
        tests=(f"{_LANGUAGES}::test_how_a_compiler_ended_is_told_apart_from_how_the_program_did",),
    ),
    Mutant(
        name="a Python program is the main module",
        file="llama/evaluation/programs/python.py",
        old='type(sys)("problem")',
        new='type(sys)("__main__")',
        tests=(f"{_PYTHON}::test_a_program_whose_tests_all_hold_passes",),
    ),
    Mutant(
        name="a Python program can replace what writes its token",
        file="llama/evaluation/programs/python.py",
        old='write(3, b"{token}")',
        new='__import__("os").write(3, b"{token}")',
        tests=(f"{_PYTHON}::test_a_program_whose_tests_all_hold_passes",),
    ),
    Mutant(
        name="Java's asserts are off",
        file="llama/evaluation/programs/java.py",
        old='"-ea", ',
        new="",
        tests=(f"{_WRONG}[java]",),
    ),
    Mutant(
        name="C#'s asserts only report",
        file="llama/evaluation/programs/csharp.py",
        old="        Environment.Exit(1);\n",
        new="",
        tests=(f"{_WRONG}[cs]",),
    ),
    Mutant(
        name="a C++ program is not run",
        file="llama/evaluation/programs/cpp.py",
        old="    int code = __real_main(argc, argv);\n    static const",
        new="    int code = 0;\n    static const",
        tests=(f"{_WRONG}[cpp]",),
    ),
    Mutant(
        name="the heap of node is as large as it likes",
        file="llama/evaluation/programs/node.py",
        old='f"--max-old-space-size={heap}"',
        new='"--no-warnings"',
        tests=(f"{_LIMITS}[js]",),
    ),
]
