"""The options of a run: `Settings`, which decide its samples, and the checks of what a caller gave.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import EvaluationError
from ..printable import shown
from ..values import integer, real, rows
from . import paper
from .problem import Order, Task

__all__ = [
    "Settings",
    "check_settings",
    "checked_ks",
    "checked_workers",
    "settings_of",
]

# Every sample's number is held in memory; the paper has 200 of a problem.
_LARGEST_N = 1_000_000
_DEFAULT_KS = (1, 10, 100)
_MOST_WORKERS = 1024


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


def settings_of(
    task: Task,
    *,
    n: int,
    temperature: float | None,
    top_p: float,
    order: str | None,
    seed: int,
    limit: int | None,
    max_gen_len: int,
    chat: bool,
) -> Settings:
    """The checked settings of a run, with the defaults of `evaluate`. Raises EvaluationError."""
    n = _checked_integer("n", n)
    if temperature is None:
        temperature = 0.0 if n == 1 else paper.TEMPERATURE
    if order is None:
        order = "psm" if task.is_infilling else "plain"
    settings = Settings(
        task=task.name,
        n=n,
        temperature=_checked_number("temperature", temperature),
        top_p=_checked_number("top_p", top_p),
        order=order,
        seed=_checked_integer("seed", seed),
        limit=None if limit is None else _checked_integer("limit", limit),
        max_gen_len=_checked_integer("max_gen_len", max_gen_len),
        chat=bool(chat),
    )
    check_settings(settings, infilling=task.is_infilling)
    return settings


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
    ks = sorted({_checked_integer("k", each) for each in asked})
    if ks[0] < 1:
        raise EvaluationError(f"k is {ks[0]}; it must be at least 1")
    if ks[-1] > n:
        raise EvaluationError(
            f"pass@{ks[-1]} needs at least {ks[-1]} samples of each problem, and n is {n}; raise n, or leave that k out"
        )
    return tuple(ks)


def checked_workers(workers: int) -> int:
    """How many programs run at the same time. Raises EvaluationError."""
    found = _checked_integer("workers", workers)
    if not 1 <= found <= _MOST_WORKERS:
        raise EvaluationError(f"workers is {found}; it must be from 1 to {_MOST_WORKERS:,}")
    return found


def _checked_integer(name: str, value: object) -> int:
    """An option that is a whole number. Raises EvaluationError."""
    found = integer(value)
    if found is None:
        raise EvaluationError(f"{name} is {shown(value)}; it must be an integer")
    return found


def _checked_number(name: str, value: object) -> float:
    """An option that is a number. Raises EvaluationError."""
    found = real(value)
    if found is None:
        raise EvaluationError(f"{name} is {shown(value)}; it must be a number")
    return found
