"""Judge the benchmarks' own solutions, all of them, and empty answers.

    LLAMA_TEST_DATA=... python tests/solutions/run.py [--floors]

Exit code 1 if an own solution of HumanEval (164), MBPP (500) or infilling (8,652) does not pass, or an empty answer
of HumanEval or MBPP does. With `--floors` empty answers of infilling are counted too, and compared with the number
in the task's note; many of these programs never end, so it takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from eval_data import public_problems_path
from program_verdicts import Hurried, best_sandbox, failures, verdicts
from tiny_tokenizers import shared_data

from llama.evaluation.problem import Status
from llama.evaluation.tasks import TASKS
from llama.evaluation.tasks.infilling import INFILLING

# Processor time of an empty answer: HumanEval's slowest own program needs half a second.
SECONDS = 3
SANDBOX = best_sandbox()


def own_solutions(name: str) -> bool:
    """Whether all own solutions of a task pass."""
    task, start = TASKS[name], time.monotonic()
    problems = task.problems(public_problems_path(name))
    failed = failures(SANDBOX, task, problems)
    passed = len(problems) - len(failed)
    print(
        f"{name}: {passed:,} of {len(problems):,} own solutions pass, {time.monotonic() - start:.0f} s",
        flush=True,
    )
    for task_id, verdict in failed.items():
        print(f"    {task_id}: {verdict.status.value}, {verdict.detail}")
    return not failed


def empty_answers(name: str, expected: int) -> bool:
    """Whether as many empty answers pass as expected."""
    task, start = TASKS[name], time.monotonic()
    problems = task.problems(public_problems_path(name))
    judged = verdicts(Hurried(SANDBOX, SECONDS), task, problems, lambda problem: "")
    passed = sum(verdict.status is Status.PASSED for verdict in judged)
    print(
        f"{name}: {passed:,} of {len(problems):,} empty answers pass, expected {expected:,},"
        f" {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return passed == expected


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--floors", action="store_true", help="count empty answers of infilling too")
    options = parser.parse_args()
    print(f"sandbox: {SANDBOX.level}")
    names = ["humaneval"]
    if shared_data() is None:
        print("LLAMA_TEST_DATA is unset: HumanEval alone, which a package brings")
    else:
        names += ["mbpp", *(task.name for task in INFILLING)]
    held = [own_solutions(name) for name in names]
    held += [empty_answers(name, 0) for name in names if not TASKS[name].is_infilling]
    if options.floors:
        held += [empty_answers(task.name, task.empty_passes) for task in INFILLING if task.name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
