"""Mutants of the scores of texts, and of the adapter for lm-eval."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_SCORING = "tests/evaluation/test_scoring.py"
_HARNESS = "tests/evaluation/test_harness.py"

MUTANTS = [
    Mutant(
        name="windows overlap by one token",
        file="llama/evaluation/scoring.py",
        old="before = min(max_seq_len // 2, room - 1)",
        new="before = min(1, room - 1)",
        tests=(f"{_SCORING}::test_windows_score_every_token_once_with_half_a_window_before_it",),
    ),
    Mutant(
        name="a token of the overlap is scored twice",
        file="llama/evaluation/scoring.py",
        old="1 + scored - begin)",
        new="max(1, scored - begin))",
        tests=(f"{_SCORING}::test_windows_score_every_token_once_with_half_a_window_before_it",),
    ),
    Mutant(
        name="lines of a long text begin with a dummy space",
        file="llama/evaluation/scoring.py",
        old="tokenizer.encode_infilling(part) if begin else tokenizer.encode(part, bos=False, eos=False)",
        new="tokenizer.encode(part, bos=False, eos=False)",
        tests=(f"{_SCORING}::test_a_text_encoded_by_lines_has_the_ids_of_the_whole",),
    ),
    Mutant(
        name="score drops a byte order mark",
        file="llama/cli/score.py",
        old="keep_mark=True",
        new="keep_mark=False",
        tests=("tests/cli/test_score_verb.py::test_files_are_scored_as_they_are_in_the_order_given",),
    ),
    Mutant(
        name="blanks at the end of lm-eval's context count to it",
        file="llama/evaluation/harness.py",
        old="kept = context.rstrip()",
        new="kept = context",
        tests=(f"{_HARNESS}::test_a_continuation_is_what_the_context_does_not_hold",),
    ),
    Mutant(
        name="a long request of lm-eval loses its end",
        file="llama/evaluation/harness.py",
        old="[pair.ids[-most:] for pair in call]",
        new="[pair.ids[:most] for pair in call]",
        tests=(f"{_HARNESS}::test_a_long_context_loses_its_beginning_and_says_so",),
    ),
]
