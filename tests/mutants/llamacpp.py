"""Mutants of the llama.cpp routes, and of infilling sent as text."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_ROOM = "llama/serving/http"
_LIMITS = "tests/serving/http/test_llamacpp_limits.py"
_PROMPTS = "tests/serving/http/test_llamacpp_prompts.py"
_ROUTES = "tests/serving/http/test_llamacpp_completion.py"
_FIM = "tests/serving/http/test_text_fim.py"

MUTANTS = [
    Mutant(
        name="an editor's missing spaces are taken for the markers'",
        file=f"{_ROOM}/text_fim.py",
        old='if before.startswith(" ") and before.endswith(" ") and after.endswith(" "):',
        new='if before.startswith(" ") or before.endswith(" "):',
        tests=(_FIM,),
    ),
    Mutant(
        name="a marker that stands twice is split at the first",
        file=f"{_ROOM}/text_fim.py",
        old="if (count := text.count(marker)) > 1:",
        new="if (count := text.count(marker)) > 2:",
        tests=(_FIM,),
    ),
    Mutant(
        name="text without the flag is split too",
        file=f"{_ROOM}/service.py",
        old="if text_fim or self.settings.text_fim:",
        new="if text_fim or True:",
        tests=(_FIM,),
    ),
    Mutant(
        name="a blank line with less indentation ends the text",
        file=f"{_ROOM}/llamacpp/limits.py",
        old="if blank or indentation >= self.n_indent",
        new="if indentation >= self.n_indent",
        tests=(_LIMITS,),
    ),
    Mutant(
        name="all white space is held back",
        file=f"{_ROOM}/llamacpp/limits.py",
        old="indentation >= self.n_indent or (final",
        new="(code and indentation >= self.n_indent) or (final",
        tests=(_LIMITS,),
    ),
    Mutant(
        name="the newest chunks go first",
        file=f"{_ROOM}/llamacpp/prompts.py",
        old="for chunk in reversed(chunks):",
        new="for chunk in chunks:",
        tests=(_PROMPTS,),
    ),
    Mutant(
        name="prefix and suffix get the same room",
        file=f"{_ROOM}/llamacpp/prompts.py",
        old="max(room // 4, room - ",
        new="max(room // 2, room - ",
        tests=(_PROMPTS,),
    ),
    Mutant(
        name="a warm-up computes nothing",
        file=f"{_ROOM}/llamacpp/bodies.py",
        old="return None if self.n_predict < 0 else max(1, self.n_predict)",
        new="return None if self.n_predict < 0 else self.n_predict",
        tests=(f"{_ROUTES}::test_a_warm_up_answers_nothing_and_fills_the_cache",),
    ),
    Mutant(
        name="ids of text that was cut off are told",
        file=f"{_ROOM}/llamacpp/answers.py",
        old="whole = reason is not None and not self.cut",
        new="whole = True",
        tests=(f"{_ROUTES}::test_less_indentation_ends_the_text_and_the_request",),
    ),
    Mutant(
        name="the engine goes on behind the cut",
        file=f"{_ROOM}/llamacpp/answers.py",
        old="self.run.cut(news.row, news.delta.sample)",
        new="pass",
        tests=(f"{_ROUTES}::test_less_indentation_ends_the_text_and_the_request",),
    ),
    Mutant(
        name="paths of response_fields lose their slash",
        file=f"{_ROOM}/response_fields.py",
        old="found[path] = here",
        new="found[path.split('/')[-1]] = here",
        tests=(f"{_ROUTES}::test_response_fields_keep_their_slash_and_leave_out_what_is_not_there",),
    ),
    Mutant(
        name="llama.cpp's infill sampler draws at random",
        file=f"{_ROOM}/llamacpp/bodies.py",
        old="return 0.0 if body.n_cmpl == 1 else _SEVERAL_MIDDLES",
        new="return _SEVERAL_MIDDLES",
        tests=(f"{_PROMPTS}::test_the_sampler_infill_is_greedy_unless_several_middles_are_wanted",),
    ),
]
