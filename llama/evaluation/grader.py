"""How an answer becomes a sample: its program is run, and its text compared with the one that was removed.

Never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .generator import NOT_ASKED
from .problem import Answer, Order, Problem, Sample, Status, Task, Verdict
from .programs import judge
from .sandbox import Sandbox
from .tasks import exact_match

__all__ = ["Grader"]


@dataclass(frozen=True)
class Grader:
    """How an answer becomes a sample.

    javatuples: the jar of Java's programs; None for Debian's place.
    """

    task: Task
    sandbox: Sandbox
    javatuples: Path | None = None

    def grade(self, answer: Answer) -> Sample:
        """The sample of an answer, whose program is run.

        Raises:
            EvaluationError: the sandbox could not do its part.
        """
        problem, completion = answer.problem, answer.text
        if answer.order is Order.CHAT:
            completion = self.task.answer_of_chat(problem, completion)
        exact = exact_match(problem, completion)
        if answer.finish_reason in NOT_ASKED:
            verdict = Verdict(Status.FAILED, NOT_ASKED[answer.finish_reason])
            # 51 random spans are blanks alone, which the empty text of such an answer would match.
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
        """Run the program that a completion makes. Raises as `grade`."""
        program = self.task.program(problem, completion)
        return judge(self.sandbox, program, javatuples=self.javatuples)
