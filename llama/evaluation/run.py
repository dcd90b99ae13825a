"""One run: which samples are missing, and making them. Never imports torch. It knows neither ranks nor command lines.

A generator gets all requests at once. Each answer becomes a program that a thread runs while the next ones are
written; its sample is kept as soon as its verdict is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from ..engine.request import MOST_SAMPLES
from ..errors import EvaluationError
from ..printable import shown
from .generator import Generator, SampleRequest, seed_of
from .grader import Grader
from .header import Header, problems_digest
from .problem import Problem, Sample
from .samples import Key
from .settings import Settings
from .tasks import find_task
from .worker_pool import WorkerPool

__all__ = ["answered_problems", "limited", "make_samples", "missing_requests"]


def limited(problems: Sequence[Problem], settings: Settings) -> Sequence[Problem]:
    """The problems of a run.

    Raises:
        EvaluationError: two have the same task_id, so that their samples could not be told apart.
    """
    seen: set[str] = set()
    for problem in problems:
        if problem.task_id in seen:
            raise EvaluationError(f"{settings.task}: two problems have the task_id {shown(problem.task_id)}")
        seen.add(problem.task_id)
    return problems[: settings.limit]


def answered_problems(
    path: Path, header: Header, samples: Iterable[Sample], data: Path | None
) -> dict[str, Problem]:
    """The problems that the samples of a file answer, by task_id, in the task's order.

    Args:
        path: the file of samples, for the message.
        data: the file of the problems; None for the one that a package brings.

    Raises:
        EvaluationError: it is not there, or holds other problems.
    """
    every = find_task(header.settings.task).problems(data)
    if problems_digest(every) != header.data_sha256:
        raise EvaluationError(
            f"{path} answers other problems than these ({header.data_problems:,} then, {len(every):,} now, with another"
            " digest); name the data file that it was made with by --data"
        )
    found = {problem.task_id: problem for problem in limited(every, header.settings)}
    for sample in samples:
        if sample.task_id not in found:
            raise EvaluationError(
                f"{path} has a sample of {shown(sample.task_id)}, which is not among its problems; remove that line"
            )
    return found


def missing_requests(
    problems: Sequence[Problem], settings: Settings, done: Collection[Key]
) -> list[SampleRequest]:
    """The samples that are not done; of a problem each unbroken run of numbers is one request."""
    requests: list[SampleRequest] = []
    for problem in problems:
        for order in settings.orders:
            seed = seed_of(settings.seed, problem.task_id, order)
            missing = [j for j in range(settings.n) if (problem.task_id, order, j) not in done]
            requests += [SampleRequest(problem, order, seed, first, count) for first, count in _runs(missing)]
    return requests


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers -> (first, how many) of each unbroken run; the engine takes no more than 4,096 at once."""
    first = count = 0
    for number in numbers:
        if count and (number != first + count or count == MOST_SAMPLES):
            yield first, count
            count = 0
        if not count:
            first = number
        count += 1
    if count:
        yield first, count


def make_samples(
    generator: Generator,
    requests: Sequence[SampleRequest],
    settings: Settings,
    grader: Grader,
    workers: int,
    keep: Callable[[Sample], None],
) -> None:
    """Have all requests answered and graded; `keep` is given each sample, one at a time, in any order.

    However this ends, the generation ends too, and no sample is kept afterwards.

    Raises:
        LlamaError: no more answers can be had, or the sandbox could not do its part.
        OSError: of `keep`.
    """
    answers = cast("Any", generator.generate(requests, settings))
    with closing(answers), WorkerPool(workers, grader.grade, keep) as pool:
        for answer in answers:
            pool.put(answer)
        pool.finish()
