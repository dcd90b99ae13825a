"""Mutants of what the server's doors share."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_ROOM = "llama/serving/http"
_FIELDS = "tests/serving/http/test_shared_fields.py"

MUTANTS = [
    Mutant(
        name="a signed seed loses its bits",
        file=f"{_ROOM}/bodies.py",
        old="return given % (1 << bits) if given < 0 else given",
        new="return abs(given)",
        tests=(_FIELDS,),
    ),
    Mutant(
        name="of two names that differ the first counts",
        file=f"{_ROOM}/bodies.py",
        old="if len({value for _, value in given}) > 1:",
        new="if len({value for _, value in given}) > 2:",
        tests=(_FIELDS,),
    ),
    Mutant(
        name="the end of a text does not count for best_of",
        file=f"{_ROOM}/outputs.py",
        old="(*self.scores, *(score for _, score in ended))",
        new="self.scores",
        tests=(_FIELDS,),
    ),
    Mutant(
        name="prompts are logged unasked",
        file=f"{_ROOM}/service.py",
        old="if self.settings.log_prompts:",
        new="if True:",
        tests=("tests/serving/http/test_log_prompts.py",),
    ),
    Mutant(
        name="parts of a message run into each other",
        file=f"{_ROOM}/messages.py",
        old='return "\\n".join(part["text"] for part in content)',
        new='return "".join(part["text"] for part in content)',
        tests=("tests/serving/http/test_llamacpp_props.py",),
    ),
]
