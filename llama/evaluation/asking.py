"""What a run asks for: settings, the header of its file, and `Generator`, the interface of a model.

Never imports torch.

A `Generator` is a model in this process (local.py) or a server (remote.py). It gets all asks at once and gives
answers in whatever order they end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from ..errors import EvaluationError
from ..printable import shown
from ..values import integer, real, rows
from .problem import Answer, Order, Problem

__all__ = [
    "NOT_ASKED",
    "PROMPT_TOO_LONG",
    "UNSAFE_TAG",
    "Ask",
    "Generator",
    "Header",
    "ModelInfo",
    "Settings",
    "check_settings",
    "checked_integer",
    "checked_ks",
    "checked_number",
    "checked_workers",
    "problems_digest",
    "seed_of",
]

PROMPT_TOO_LONG = "prompt_too_long"
"""Finish reason of an answer without text: the prompt leaves no room for a token."""
UNSAFE_TAG = "unsafe_tag"
"""Finish reason of an answer without text: the question holds a tag of the model's chat format."""
NOT_ASKED = {
    PROMPT_TOO_LONG: "its prompt is too long for the model's max_seq_len",
    UNSAFE_TAG: "its question holds a tag of the model's chat format",
}
"""Finish reasons of answers that could not be asked for, and what their verdict says: they count as failed."""

# A seed stays below 2**63, the most that an OpenAI-compatible server takes.
_SEED_BITS = 63
# Every sample's number is held in memory; the paper has 200 of a problem.
_LARGEST_N = 1_000_000
_DEFAULT_KS = (1, 10, 100)
_MOST_WORKERS = 1024


@dataclass(frozen=True)
class Ask:
    """Samples `first` .. `first + count - 1` of one problem; sample j draws from (seed, j)."""

    problem: Problem
    order: Order
    seed: int
    first: int
    count: int


@dataclass(frozen=True)
class Settings:
    """The options of a run that decide its samples.

    Args:
        task: its name.
        n: samples of each problem, and of each order.
        temperature, top_p: 0 takes the likeliest token; top_p in [0, 1].
        order: plain, psm, spm, or both (psm and spm).
        seed: of the run; each problem and order has its own, see `seed_of`.
        limit: only the first so many problems; None for all.
        max_gen_len: most new tokens of an answer.
        chat: whether problems are put as questions in the chat format.
    """

    task: str
    n: int = 1
    temperature: float = 0.0
    top_p: float = 0.95
    order: str = "plain"
    seed: int = 0
    limit: int | None = None
    max_gen_len: int = 512
    chat: bool = False

    @property
    def orders(self) -> tuple[Order, ...]:
        """How each problem is laid out, one after the other."""
        if self.chat:
            return (Order.CHAT,)
        return (Order.PSM, Order.SPM) if self.order == "both" else (Order(self.order),)


@dataclass(frozen=True)
class ModelInfo:
    """Which model answers, as far as it is known; of a server only `name`, `max_seq_len` and its address, `url`.

    Args:
        name: the checkpoint folder's, or the server's model.
        weights: a digest of the weights, the same for any layout, number of files and ranks; None if unknown.
        dtype: that it computes in.
        max_seq_len: most tokens of prompt and answer together.
        member: its size in the family, such as 7B; None if no member has its shapes.
        variants: which of base, instruct and python it may be; shapes and vocabulary do not always tell.
    """

    name: str
    weights: str | None = None
    dtype: str | None = None
    max_seq_len: int | None = None
    member: str | None = None
    variants: tuple[str, ...] = ()
    url: str | None = None


@dataclass(frozen=True)
class Header:
    """The first line of a file of samples: how they were made.

    Args:
        data_sha256: see `problems_digest`.
        data_records: how many problems the data file has, whatever the limit.
        sandbox: the level that programs ran at.
        versions: of codellama, torch and python.
    """

    settings: Settings
    model: ModelInfo
    data_sha256: str
    data_records: int
    sandbox: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """How many problems the run has."""
        limit = self.settings.limit
        return self.data_records if limit is None else min(limit, self.data_records)


class Generator(Protocol):
    """Writes answers."""

    @property
    def model(self) -> ModelInfo: ...

    def generate(self, asks: Sequence[Ask], settings: Settings) -> Iterator[Answer]:
        """Answer all asks; each answer as it ends, in any order. Closing the iterator ends the generation.

        A problem that cannot be asked, since its prompt is too long, gives answers without text whose finish
        reason says so.

        Raises:
            LlamaError: no more answers can be had.
        """
        ...


def seed_of(seed: int, task_id: str, order: Order) -> int:
    """The seed of a problem's samples in one order, below 2**63.

    It depends on nothing else, so neither a limit nor the order of the problems changes a sample.
    """
    text = f"{seed}\n{order.value}\n{task_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> (64 - _SEED_BITS)


def problems_digest(problems: Sequence[Problem]) -> str:
    """A SHA-256 of the problems as they are asked: the same for a file and the same file compressed."""
    text = json.dumps([asdict(problem) for problem in problems], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_settings(settings: Settings, *, infilling: bool) -> None:
    """Refuse settings that no run can have.

    Args:
        infilling: whether the task is one.

    Raises:
        EvaluationError: says which and why.
    """
    for name, least in (("n", 1), ("max_gen_len", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise EvaluationError(f"{name} is {getattr(settings, name)}; it must be at least {least}")
    if settings.n > _LARGEST_N:
        raise EvaluationError(f"n is {settings.n:,}; at most {_LARGEST_N:,} samples of a problem can be made")
    if settings.limit is not None and settings.limit < 1:
        raise EvaluationError(
            f"limit is {settings.limit}; it must be at least 1, or left out for all problems"
        )
    if not 0 <= settings.temperature < float("inf"):
        raise EvaluationError(
            f"temperature is {settings.temperature}; it must be a finite number of at least 0"
        )
    if not 0 <= settings.top_p <= 1:
        raise EvaluationError(f"top_p is {settings.top_p}; it must be in [0, 1]")
    if infilling and settings.chat:
        raise EvaluationError(
            f"{settings.task} fills holes, which the chat format cannot ask for; leave chat out"
        )
    known = ("psm", "spm", "both") if infilling else ("plain",)
    if settings.order not in known:
        raise EvaluationError(
            f"order is {settings.order!r}; {settings.task} takes {', '.join(known)}"
            if infilling
            else f"order is {settings.order!r}, but {settings.task} has no holes to fill; leave it out"
        )


def checked_ks(k: int | Iterable[int] | None, n: int) -> tuple[int, ...]:
    """The k of pass@k, ascending. Raises EvaluationError for one that is below 1 or above n."""
    if k is None:
        return tuple(each for each in _DEFAULT_KS if each <= n)
    asked = [k] if integer(k) is not None else rows(k)
    if not asked:
        raise EvaluationError(f"k is {shown(k)}; it must be a number, or a list of them")
    ks = sorted({checked_integer("k", each) for each in asked})
    if ks[0] < 1:
        raise EvaluationError(f"k is {ks[0]}; it must be at least 1")
    if ks[-1] > n:
        raise EvaluationError(
            f"pass@{ks[-1]} needs at least {ks[-1]} samples of each problem, and n is {n}; raise n, or leave that k out"
        )
    return tuple(ks)


def checked_workers(workers: int) -> int:
    """How many programs run at the same time. Raises EvaluationError."""
    found = checked_integer("workers", workers)
    if not 1 <= found <= _MOST_WORKERS:
        raise EvaluationError(f"workers is {found}; it must be from 1 to {_MOST_WORKERS:,}")
    return found


def checked_integer(name: str, value: object) -> int:
    """An option that is a whole number. Raises EvaluationError."""
    found = integer(value)
    if found is None:
        raise EvaluationError(f"{name} is {shown(value)}; it must be an integer")
    return found


def checked_number(name: str, value: object) -> float:
    """An option that is a number. Raises EvaluationError."""
    found = real(value)
    if found is None:
        raise EvaluationError(f"{name} is {shown(value)}; it must be a number")
    return found
