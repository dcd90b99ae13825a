"""Benchmarks of the model: problems, samples, programs that judge them, and the table of results.

`evaluate(llama, "humaneval", n=20).table()` is the whole of it; docs/evaluation.md explains. What is listed here is
imported on first use, so that a part which needs no model needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluating import evaluate
    from .remote import RemoteGenerator
    from .report import Report
    from .scoring import score

__all__ = ["RemoteGenerator", "Report", "evaluate", "score"]

# No name may be that of a file here: importing the file would put it in the name's place.
_HOMES = {"RemoteGenerator": "remote", "Report": "report", "evaluate": "evaluating", "score": "scoring"}


if not TYPE_CHECKING:  # type checkers would take any misspelled name for Any

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
