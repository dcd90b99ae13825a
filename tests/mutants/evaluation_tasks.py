"""Mutants of the benchmarks: their files, prompts and programs, and what a chat answer comes to as code."""

from __future__ import annotations

from mutant import Mutant

_TASKS = "llama/evaluation/tasks"
_FILES = "tests/evaluation/tasks/test_task_files.py"
_PROGRAMS = "tests/evaluation/tasks/test_task_programs.py"
_CHAT = "tests/evaluation/tasks/test_chat_answers.py"
_BRACED = "tests/evaluation/tasks/test_braced_answers.py"

MUTANTS = [
    Mutant(
        name="another benchmark's file is taken",
        file=f"{_TASKS}/records.py",
        old="    if not re.fullmatch(shape.pattern, str(record[shape.mark])):",
        new="    if False:",
        tests=(f"{_FILES}::test_another_tasks_file_is_refused",),
    ),
    Mutant(
        name="a file may hold a problem twice",
        file=f"{_TASKS}/records.py",
        old="        if earlier != place:",
        new="        if False:",
        tests=(f"{_FILES}::test_two_records_with_one_id_are_refused",),
    ),
    Mutant(
        name="a line separator within a text ends the line",
        file=f"{_TASKS}/records.py",
        old='enumerate(text.split("\\n"), 1)',
        new="enumerate(text.splitlines(), 1)",
        tests=(f"{_FILES}::test_a_line_separator_within_a_text_ends_no_line",),
    ),
    Mutant(
        name="MBPP keeps its Windows lines",
        file=f"{_TASKS}/mbpp.py",
        old='    texts = {key: record[key].replace("\\r\\n", "\\n")',
        new="    texts = {key: record[key]",
        tests=(f"{_PROGRAMS}::test_mbpp",),
    ),
    Mutant(
        name="MBPP's examples come in the file's order",
        file=f"{_TASKS}/mbpp.py",
        old="for shot in _SHOTS)\n",
        new="for shot in by_id if shot in _SHOTS)\n",
        tests=(f"{_PROGRAMS}::test_mbpp",),
    ),
    Mutant(
        name="MBPP's set-up stands in front of the answer",
        file=f"{_TASKS}/mbpp.py",
        old='f"{answer}\\n{problem.setup}\\n{problem.test}\\n"',
        new='f"{problem.setup}\\n{answer}\\n{problem.test}\\n"',
        tests=(f"{_PROGRAMS}::test_mbpp",),
    ),
    Mutant(
        name="HumanEval's tests are defined and not called",
        file=f"{_TASKS}/humaneval.py",
        old="\\n{problem.test}\\ncheck({problem.entry_point})\\n",
        new="\\n{problem.test}\\n",
        tests=(f"{_PROGRAMS}::test_humaneval",),
    ),
    Mutant(
        name="an exact match may differ by any blanks",
        file=f"{_TASKS}/infilling.py",
        old="return answer.strip() == problem.solution.strip()",
        new="return answer.split() == problem.solution.split()",
        tests=(f"{_PROGRAMS}::test_an_exact_match_forgives_blanks_around_both_and_nothing_else",),
    ),
    Mutant(
        name="the question repeated counts as an answer",
        file=f"{_TASKS}/python_answers.py",
        old="chosen = (own or defining)[0]",
        new="chosen = defining[0]",
        tests=(f"{_CHAT}::test_of_two_versions_the_first_counts_but_the_question_repeated_does_not",),
    ),
    Mutant(
        name="an answer's own tests are run",
        file=f"{_TASKS}/python_answers.py",
        old="        if _USES.match(lines[number]):",
        new="        if False:",
        tests=(f"{_CHAT}::test_a_whole_function_in_a_block",),
    ),
    Mutant(
        name="an import from the future stays within the program",
        file=f"{_TASKS}/python_answers.py",
        old='    return _FUTURE.sub("", "\\n".join(kept))',
        new='    return "\\n".join(kept)',
        tests=(f"{_CHAT}::test_a_whole_function_in_a_block",),
    ),
    Mutant(
        name="a stripped body keeps its first line at the left edge",
        file=f"{_TASKS}/python_answers.py",
        old="    if len(lines[0]) - len(lines[0].lstrip()) < least and not opens:",
        new="    if False:",
        tests=(f"{_CHAT}::test_a_body_alone",),
    ),
    Mutant(
        name="blocks of a shell are code",
        file=f"{_TASKS}/fences.py",
        old="if not language or language in languages]",
        new="]",
        tests=(f"{_CHAT}::test_the_blocks_of_a_message",),
    ),
    Mutant(
        name="a body's closing brace is closed again by the tests",
        file=f"{_TASKS}/braced_answers.py",
        old='    if not closed and too_many == 1 and code.endswith("}"):',
        new="    if False:",
        tests=(f"{_BRACED}::test_a_body_is_taken_as_it_is_with_the_brace_that_the_tests_need",),
    ),
    Mutant(
        name="a comma within a type separates arguments",
        file=f"{_TASKS}/braced_answers.py",
        old='if depth == 0 and character in ",)":',
        new='if character in ",)":',
        tests=(f"{_BRACED}::test_the_prompts_function_passes_all_its_arguments_on",),
    ),
    Mutant(
        name="MBPP's tests keep their Windows lines",
        file="llama/evaluation/tasks/mbpp.py",
        old='[test.replace("\\r\\n", "\\n") for test in record["test_list"]]',
        new='record["test_list"]',
        tests=(f"{_PROGRAMS}::test_mbpp",),
    ),
    Mutant(
        name="a fence within tags is code",
        file="llama/evaluation/tasks/fences.py",
        old="if tagged is not None and _FENCE.search(tagged) is None:",
        new="if tagged is not None:",
        tests=(f"{_CHAT}::test_code_between_the_tags_of_the_models_training",),
    ),
    Mutant(
        name="a comment in the question repeated makes it an answer",
        file="llama/evaluation/tasks/python_answers.py",
        old=' if not line.lstrip().startswith("#")}',
        new="}",
        tests=(f"{_CHAT}::test_of_two_versions_the_first_counts_but_the_question_repeated_does_not",),
    ),
    Mutant(
        name="words behind a blank are code",
        file="llama/evaluation/tasks/python_answers.py",
        old="    while lines[first][:1].isspace():",
        new="    while False:",
        tests=(f"{_CHAT}::test_a_whole_function_without_a_block",),
    ),
    Mutant(
        name="the class around a C++ function hides it",
        file="llama/evaluation/tasks/braced_answers.py",
        old='alias = f"using {around} = Answer;\\n" if around else ""',
        new='alias = ""',
        tests=(f"{_BRACED}::test_a_whole_answer_passes",),
    ),
]
