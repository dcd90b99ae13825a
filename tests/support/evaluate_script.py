"""What the ranks of test_run_on_ranks.py do: `evaluate_script.py CHECKPOINT FOLDER NAME SIZE HOW=FILE...`.

For each HOW they evaluate the toy task on a model of SIZE ranks that is built anew, into FOLDER/FILE. `whole` does
nothing else, `refused` makes calls before that which the first rank refuses; the others are ways in which the first
rank ends behind its seventh sample. Rank N writes to FOLDER/NAME.N.json the reports that it got, or the errors.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toy_task import Box, ToyTask, judged

from llama import Llama
from llama.distributed import world
from llama.errors import RankError
from llama.evaluation import evaluate, evaluating, grader

# A rank that waits for a failed one at the end should be seen to hang.
world._MEETING_SECONDS = world._ERROR_SECONDS = 3600.0
RANK = int(os.environ["RANK"])
N = 5
MAKE = evaluating.make_samples


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sandbox() -> None:
    raise RuntimeError("a defect of the sandbox")


ENDS: dict[str, Callable[[], None]] = {"killed": kill, "full": fill, "sandbox": sandbox}


def ending(keep: Any, end: Callable[[], None]) -> Any:
    """`keep`, but the eighth sample ends this process."""
    left = [7]

    def kept(sample: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            end()
        keep(sample)

    return kept


def interrupt_at(answers: Any, number: int) -> Any:
    """Answers, and Ctrl-C behind so many."""
    for i, answer in enumerate(answers):
        if i == number:
            raise KeyboardInterrupt
        yield answer


def first_ends(how: str) -> Any:
    """`make_samples`, but the first rank ends in this way."""
    if RANK or how not in (*ENDS, "interrupted"):
        return MAKE

    class Interrupted:
        def __init__(self, generator: Any) -> None:
            self.generator = generator

        def generate(self, requests: Any, settings: Any) -> Any:
            return interrupt_at(self.generator.generate(requests, settings), 7)

    def ends(generator: Any, *given: Any) -> None:
        *rest, keep = given
        if how == "interrupted":
            MAKE(Interrupted(generator), *given)  # type: ignore[arg-type]
        else:
            MAKE(generator, *rest, ending(keep, ENDS[how]))

    return ends


def call(llama: Llama, out: Path, **changes: Any) -> list[Any]:
    options: dict[str, Any] = {"n": N, "temperature": 0.9, "max_gen_len": 12, "out": out, "progress": False}
    try:
        report = evaluate(llama, ToyTask(count=6), sandbox=Box(), **(options | changes))
    except BaseException as error:
        return [type(error).__name__, str(error), isinstance(error, RankError)]
    return ["report", report.to_dict()]


def main() -> None:
    checkpoint, folder, name, size, *jobs = sys.argv[1:]
    grader.judge = judged  # type: ignore[assignment]
    found: dict[str, Any] = {}
    for job in jobs:
        how, file = job.split("=")
        evaluating.make_samples = first_ends(how)
        llama = Llama.build(checkpoint, None, 96, 4, int(size), device="cpu", dtype="float32")
        out = Path(folder, file)
        calls: list[Any] = []
        if how == "refused":  # by the first rank alone, before anything is generated: then all go on together
            calls += [
                call(llama, out, seed=1),
                call(llama, Path(folder, "nowhere", "out")),
                call(llama, out, k=9),
            ]
        calls.append(call(llama, out))
        found[how] = calls
        # As after an error, so that no rank waits for the others.
        llama.close(RankError("the scenario is over"))
    Path(folder, f"{name}.{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
