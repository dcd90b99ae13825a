"""Files of samples, and the values in them, as a run would leave them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama.evaluation.generator import ModelInfo, seed_of
from llama.evaluation.header import Header, problems_digest
from llama.evaluation.problem import Order, Problem, Sample, Status, Verdict
from llama.evaluation.samples import header_line, sample_line
from llama.evaluation.settings import Settings

MODEL = ModelInfo("CodeLlama-7b", "5eed" * 16, "bfloat16", 4096, "7B", ("base",))
PASSED = Verdict(Status.PASSED)
FAILED = Verdict(Status.FAILED, "AssertionError")
TIMED_OUT = Verdict(Status.TIMED_OUT, "it used up 10 s of processor time")
NOT_RUN = Verdict(Status.NOT_RUN, "php (Debian's package php-cli) is missing")


def header(task: str = "humaneval", *, model: ModelInfo = MODEL, **changes: Any) -> Header:
    """The header of a run; `changes` are fields of Settings, ModelInfo or Header."""
    settings, of_model = (
        {name: changes.pop(name) for name in _names(kind, changes)} for kind in (Settings, ModelInfo)
    )
    fields = {
        "data_sha256": "d1" * 32,
        "data_problems": 164,
        "sandbox": "bubblewrap",
        "versions": {"codellama": "1.0", "torch": "2.9", "python": "3.11.2"},
    }
    return Header(Settings(task, **settings), replace(model, **of_model), **(fields | changes))


def _names(kind: type[Any], changes: dict[str, Any]) -> list[str]:
    return [name for name in changes if name in kind.__dataclass_fields__]


def header_of(task: str, problems: Sequence[Problem], **changes: Any) -> Header:
    """The header of a run over these problems."""
    return header(task, data_problems=len(problems), data_sha256=problems_digest(problems), **changes)


def sample(
    task_id: str = "HumanEval/0",
    number: int = 0,
    verdict: Verdict = PASSED,
    *,
    order: Order = Order.PLAIN,
    **changes: Any,
) -> Sample:
    """A sample; `changes` are its other fields."""
    fields: dict[str, Any] = {
        "seed": seed_of(0, task_id, order),
        "completion": "    return 1\n",
        "tokens": 5,
        "finish_reason": "stop",
    }
    return Sample(task_id=task_id, order=order, sample=number, verdict=verdict, **(fields | changes))


def write(path: Path, head: Header, samples: Iterable[Sample]) -> Path:
    """A file of samples."""
    path.write_bytes(header_line(head) + b"".join(map(sample_line, samples)))
    return path
