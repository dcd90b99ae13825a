"""One run: which samples are missing, and making them. Never imports torch. It knows neither ranks nor command lines.

A generator gets all asks at once. Each answer becomes a program that a thread judges while the next ones are written;
its sample is kept as soon as its verdict is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import EvaluationError
from ..printable import shown
from .asking import PROMPT_TOO_LONG, UNSAFE_TAG, Ask, Generator, Settings, seed_of
from .judges import Judges
from .problem import Answer, Order, Problem, Sample, Status, Task, Verdict
from .programs import judge
from .samples import Key
from .sandbox import Sandbox
from .tasks import exact_match

__all__ = ["Judging", "asks_of", "limited", "make_samples"]

# Most samples of one ask: the engine takes no more of a prompt at once.
_MOST_SAMPLES = 4096
# Verdicts on answers that could not be asked for.
_NOT_ASKED = {
    PROMPT_TOO_LONG: "its prompt is too long for the model's max_seq_len",
    UNSAFE_TAG: "its question holds a tag of the model's chat format",
}


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
        detail = _NOT_ASKED.get(answer.finish_reason)
        if detail is not None:
            verdict = Verdict(Status.FAILED, detail)
        else:
            program = self.task.program(problem, completion)
            verdict = judge(self.sandbox, program, javatuples=self.javatuples)
        exact = exact_match(problem, completion)
        if exact and detail is not None:
            exact = False  # 51 random spans are blanks alone, which the text of no answer would match
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
