"""Files of samples, and the values in them, as a run would leave them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama.evaluation.asking import Header, ModelInfo, Settings, problems_digest, seed_of
from llama.evaluation.problem import Order, Problem, Sample, Status, Verdict
from llama.evaluation.samples import header_line, sample_line

MODEL = ModelInfo("CodeLlama-7b", "5eed" * 16, "bfloat16", 4096, "7B", ("base",))
PASSED = Verdict(Status.PASSED)
FAILED = Verdict(Status.FAILED, "AssertionError")
TIMED_OUT = Verdict(Status.TIMED_OUT, "it used up 10 s of processor time")
NOT_RUN = Verdict(Status.NOT_RUN, "php (Debian's package php-cli) is missing")


def header(
    task: str = "humaneval",
    *,
    records: int = 164,
    digest: str = "d1" * 32,
    model: ModelInfo = MODEL,
    sandbox: str = "bubblewrap",
    **settings: Any,
) -> Header:
    """The header of a run; `settings` are fields of Settings."""
    versions = {"codellama": "1.0", "torch": "2.9", "python": "3.11.2"}
    return Header(Settings(task, **settings), model, digest, records, sandbox, versions)


def header_of(task: str, problems: Sequence[Problem], **more: Any) -> Header:
    """The header of a run over these problems."""
    return header(task, records=len(problems), digest=problems_digest(problems), **more)


def sample(
    task_id: str,
    number: int = 0,
    verdict: Verdict = PASSED,
    *,
    completion: str = "    return 1\n",
    order: Order = Order.PLAIN,
    finish_reason: str = "stop",
    exact: bool | None = None,
) -> Sample:
    seed = seed_of(0, task_id, order)
    return Sample(task_id, order, number, seed, completion, 5, finish_reason, verdict, exact)


def write(path: Path, head: Header, samples: Iterable[Sample]) -> Path:
    """A file of samples."""
    path.write_bytes(header_line(head) + b"".join(map(sample_line, samples)))
    return path
