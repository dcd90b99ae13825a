"""Mutants of a run of a benchmark: what is asked for, kept and continued."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_FILE = "tests/evaluation/test_samples_file.py"
_RUN = "tests/evaluation/test_run.py"
_EVALUATE = "tests/evaluation/test_evaluating.py"
_LOCAL = "tests/evaluation/test_local_generator.py"

MUTANTS = [
    Mutant(
        name="a half line stays in front of the next sample",
        file="llama/evaluation/samples.py",
        old="        self._end = content.end\n",
        new="        self._end = os.fstat(self._handle).st_size\n",
        tests=(f"{_FILE}::test_a_file_that_was_cut_anywhere_goes_on_and_ends_the_same",),
    ),
    Mutant(
        name="two runs write one file of samples",
        file="llama/evaluation/samples.py",
        old="fcntl.LOCK_EX | fcntl.LOCK_NB",
        new="fcntl.LOCK_SH | fcntl.LOCK_NB",
        tests=(f"{_FILE}::test_two_runs_do_not_write_one_file",),
    ),
    Mutant(
        name="a full disk leaves a half line",
        file="llama/evaluation/samples.py",
        old="                os.ftruncate(self._handle, self._end)\n                os.lseek",
        new="                os.lseek",
        tests=(f"{_FILE}::test_a_full_disk_leaves_whole_lines",),
    ),
    Mutant(
        name="a limit changes the seeds of the problems",
        file="llama/evaluation/run.py",
        old="seed = seed_of(settings.seed, problem.task_id, order)",
        new="seed = seed_of(settings.seed, f'{problem.task_id} of {len(problems)}', order)",
        tests=(f"{_EVALUATE}::test_more_samples_more_problems_are_those_of_one_run",),
    ),
    Mutant(
        name="samples that are there are made again",
        file="llama/evaluation/run.py",
        old="if (problem.task_id, order, j) not in done]",
        new="]",
        tests=(f"{_RUN}::test_from_20_to_200_samples_makes_180",),
    ),
    Mutant(
        name="a sample is kept behind the end of its run",
        file="llama/evaluation/worker_pool.py",
        old="if sample is not None and not self._closed:",
        new="if sample is not None:",
        tests=(f"{_RUN}::test_an_interrupt_does_not_wait_for_a_program",),
    ),
    Mutant(
        name="the samples of a request begin at 0",
        file="llama/evaluation/local.py",
        old="            first_sample=request.first,\n",
        new="",
        tests=(f"{_LOCAL}::test_samples_are_the_same_in_any_parts",),
    ),
    Mutant(
        name="a prompt without room ends the run",
        file="llama/evaluation/local.py",
        old="        if room < 1:\n",
        new="        if room < -10_000:\n",
        tests=(f"{_LOCAL}::test_a_long_prompt_gets_the_room_there_is_and_one_without_room_is_told",),
    ),
    Mutant(
        name="samples are drawn with another top-p",
        file="llama/evaluation/local.py",
        old="SamplingParams(settings.temperature, settings.top_p)",
        new="SamplingParams(settings.temperature)",
        tests=(f"{_LOCAL}::test_answers_are_those_of_the_librarys_calls",),
    ),
    Mutant(
        name="a prompt loses the line break at its end",
        file="llama/evaluation/local.py",
        old="formats.completion_prompt(tokenizer, problem.prompt)",
        new="formats.completion_prompt(tokenizer, problem.prompt.rstrip())",
        tests=(f"{_LOCAL}::test_answers_are_those_of_the_librarys_calls",),
    ),
    Mutant(
        name="an answer runs on behind a stop",
        file="llama/evaluation/generator.py",
        old="return () if self.order is Order.CHAT else self.problem.stops",
        new="return ()",
        tests=(f"{_LOCAL}::test_answers_are_those_of_the_librarys_calls",),
    ),
    Mutant(
        name="a chat's answer ends at the stops of a continued text",
        file="llama/evaluation/generator.py",
        old="return () if self.order is Order.CHAT else self.problem.stops",
        new="return self.problem.stops",
        tests=(f"{_LOCAL}::test_answers_are_those_of_the_librarys_calls",),
    ),
    Mutant(
        name="a hole does not end at EOT",
        file="llama/evaluation/local.py",
        old="stop_ids=prompt.stop_ids",
        new="stop_ids=frozenset({self._llama.tokenizer.eos_id})",
        tests=(f"{_LOCAL}::test_a_hole_ends_at_eot_too",),
    ),
    Mutant(
        name="other tests have the same digest",
        file="llama/evaluation/header.py",
        old="[asdict(problem) for problem in problems]",
        new="[(each.task_id, each.prompt) for each in problems]",
        tests=(f"{_RUN}::test_a_digest_of_the_problems_sees_all_of_them",),
    ),
    Mutant(
        name="an answer that was not asked for is an exact match",
        file="llama/evaluation/grader.py",
        old="exact = None if exact is None else False",
        new="pass",
        tests=(f"{_RUN}::test_what_could_not_be_asked_fails_without_a_program",),
    ),
    Mutant(
        name="the jar that was named is not used",
        file="llama/evaluation/grader.py",
        old="judge(self.sandbox, program, javatuples=self.javatuples)",
        new="judge(self.sandbox, program, javatuples=None)",
        tests=(
            f"{_EVALUATE}::test_every_program_gets_the_jar_that_was_named",
            "tests/evaluation/test_rescore.py::test_every_program_that_runs_again_gets_the_jar",
        ),
    ),
]
