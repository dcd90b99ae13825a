"""The figures of a run, counted from its samples, and the paper's beside them. Never imports torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from . import paper
from .generator import NOT_ASKED
from .header import Header
from .problem import Order, Sample, Status
from .settings import Settings
from .statistics import Estimate, estimate, pass_at_k

__all__ = ["OrderFigures", "figures_of", "paper_differs"]


@dataclass(frozen=True)
class OrderFigures:
    """The samples of one order of a run.

    Args:
        samples: those that are there.
        expected: those of a run that has ended.
        counts: of each `Status`, by its value.
        cut: answers that the limit of tokens ended.
        not_asked: answers that could not be asked for, see `generator.NOT_ASKED`.
        pass_at: by k. Programs that were not run count for nothing; a k is absent if no problem has enough others.
        exact: the share of samples that are the removed text, both stripped; None of what is not infilling.
        published: the paper's pass@k, as a share of 1, by variant (base, instruct, python), then by k.
    """

    order: Order
    samples: int
    expected: int
    counts: dict[str, int]
    cut: int
    not_asked: int
    pass_at: dict[int, Estimate]
    exact: Estimate | None
    published: dict[str, dict[int, float]]


def figures_of(header: Header, order: Order, samples: Sequence[Sample], k: Sequence[int]) -> OrderFigures:
    """Count the samples of one order; those of others are left out.

    Args:
        k: of pass@k, in the order of the report.
    """
    settings = header.settings
    found = [sample for sample in samples if sample.order is order]
    counts = Counter(sample.verdict.status for sample in found)
    reasons = Counter(sample.finish_reason for sample in found)
    pass_at = _pass_at(found, settings, k)
    return OrderFigures(
        order=order,
        samples=len(found),
        expected=header.problems * settings.n,
        counts={status.value: counts[status] for status in Status},
        cut=reasons["length"],
        not_asked=sum(reasons[each] for each in NOT_ASKED),
        pass_at=pass_at,
        exact=_exact(found, settings),
        published=_published(header, order, pass_at),
    )


def _pass_at(samples: Sequence[Sample], settings: Settings, k: Sequence[int]) -> dict[int, Estimate]:
    judged: defaultdict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        if sample.verdict.status is not Status.NOT_RUN:
            judged[sample.task_id].append(sample.verdict.status is Status.PASSED)
    found = {}
    for each in k:
        enough = [passed for passed in judged.values() if len(passed) >= each]
        if enough:
            values = [pass_at_k(len(passed), sum(passed), each) for passed in enough]
            found[each] = estimate(values, single=settings.n == 1)
    return found


def _exact(samples: Sequence[Sample], settings: Settings) -> Estimate | None:
    groups: defaultdict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        if sample.exact is not None:
            groups[sample.task_id].append(sample.exact)
    values = [sum(group) / len(group) for group in groups.values()]
    return estimate(values, single=settings.n == 1) if values else None


def _published(header: Header, order: Order, pass_at: dict[int, Estimate]) -> dict[str, dict[int, float]]:
    member = header.model.member
    if member is None:
        return {}
    found = {}
    for variant in header.model.variants:
        figures = paper.published(member, variant, header.settings.task, order)
        shares = {k: round(percent / 100, 4) for k, percent in figures.items() if k in pass_at}
        if shares:
            found[variant] = shares
    return found


def paper_differs(k: int, settings: Settings) -> str:
    """How the paper came to its pass@k, as far as this run does otherwise; "" if it does the same."""
    if k == 1:
        return "" if settings.temperature == 0 else "greedy"
    parts = []
    if settings.temperature != paper.TEMPERATURE:
        parts.append(f"temperature {paper.TEMPERATURE}")
    if settings.top_p != paper.TOP_P:
        parts.append(f"top-p {paper.TOP_P}")
    if settings.n != paper.SAMPLES:
        parts.append(f"{paper.SAMPLES} samples")
    return ", ".join(parts)
