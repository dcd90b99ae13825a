"""One run: which samples are missing, and making them. Never imports torch. It knows neither ranks nor command lines.

A generator gets all asks at once. Each answer becomes a program that a thread judges while the next ones are written;
its sample is kept as soon as its verdict is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import EvaluationError
from ..printable import shown
from .asking import NOT_ASKED, Ask, Generator, Header, Settings, problems_digest, seed_of
from .judges import Judges
from .problem import Answer, Order, Problem, Sample, Status, Task, Verdict
from .programs import judge
from .samples import Key
from .sandbox import Sandbox
from .tasks import exact_match, find_task

__all__ = ["Judging", "answered_problems", "asks_of", "limited", "make_samples"]

# Most samples of one ask: the engine takes no more of a prompt at once.
_MOST_SAMPLES = 4096


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
            f"{path} answers other problems than these ({header.data_records:,} then, {len(every):,} now, with another"
            " digest); name the data file that it was made with by --data"
        )
    found = {problem.task_id: problem for problem in limited(every, header.settings)}
    for sample in samples:
        if sample.task_id not in found:
            raise EvaluationError(
                f"{path} has a sample of {shown(sample.task_id)}, which is not among its problems; remove that line"
            )
    return found


def asks_of(problems: Sequence[Problem], settings: Settings, done: Collection[Key]) -> list[Ask]:
    """The samples that are not done; of a problem each unbroken run of numbers is one ask."""
    asks: list[Ask] = []
    for problem in problems:
        for order in settings.orders:
            seed = seed_of(settings.seed, problem.task_id, order)
            missing = [j for j in range(settings.n) if (problem.task_id, order, j) not in done]
            asks += [Ask(problem, order, seed, first, count) for first, count in _runs(missing)]
    return asks


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers -> (first, how many) of each unbroken run."""
    first = count = 0
    for number in numbers:
        if count and (number != first + count or count == _MOST_SAMPLES):
            yield first, count
            count = 0
        if not count:
            first = number
        count += 1
    if count:
        yield first, count


@dataclass(frozen=True)
class Judging:
    """How an answer becomes a sample.

    javatuples: the jar of Java's programs; None for Debian's place.
    """

    task: Task
    sandbox: Sandbox
    javatuples: Path | None = None

    def sample(self, answer: Answer) -> Sample:
        """Run the program of an answer.

        Raises:
            EvaluationError: the sandbox could not do its part.
        """
        problem, completion = answer.problem, answer.text
        if answer.order is Order.CHAT:
            completion = self.task.answer_of_chat(problem, completion)
        exact = exact_match(problem, completion)
        if answer.finish_reason in NOT_ASKED:
            verdict = Verdict(Status.FAILED, NOT_ASKED[answer.finish_reason])
            # 51 random spans are blanks alone, which the text of no answer would match.
            exact = None if exact is None else False
        else:
            verdict = self.verdict(problem, completion)
        return Sample(
            task_id=problem.task_id,
            order=answer.order,
            sample=answer.sample,
            seed=answer.seed,
            completion=completion,
            tokens=answer.tokens,
            finish_reason=answer.finish_reason,
            verdict=verdict,
            exact=exact,
        )

    def verdict(self, problem: Problem, completion: str) -> Verdict:
        """Run the program that a completion makes. Raises as `sample`."""
        program = self.task.program(problem, completion)
        return judge(self.sandbox, program, javatuples=self.javatuples)


def make_samples(
    generator: Generator,
    asks: Sequence[Ask],
    settings: Settings,
    judging: Judging,
    workers: int,
    keep: Callable[[Sample], None],
) -> None:
    """Have all asks answered and judged; `keep` is given each sample, one at a time, in any order.

    However this ends, the generation ends too, and no sample is kept afterwards.

    Raises:
        LlamaError: no more answers can be had, or the sandbox could not do its part.
        OSError: of `keep`.
    """
    answers = cast("Any", generator.generate(asks, settings))
    with closing(answers), Judges(workers, judging.sample, keep) as judges:
        for answer in answers:
            judges.put(answer)
        judges.finish()
