"""`codellama eval` with verdicts that are made up, in a process of its own: for signals that end it."""

from __future__ import annotations

import time
from typing import Any

from toy_task import Box, judged

from llama.cli import main
from llama.evaluation import evaluating, grader

__all__ = ["program"]


def program(arguments: list[str], seconds: float) -> int:
    """Run the command; each program takes so many seconds -> the exit code."""

    def slow(*given: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return judged(*given, **more)

    grader.judge = slow
    evaluating.sandbox_for = lambda *given, **more: Box()  # type: ignore[assignment,return-value]
    return main(["eval", *arguments])
