"""The result of a run: pass@k with intervals, the paper's figures, and notes for the reader.

Never imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import paper
from .figures import OrderFigures, figures_of
from .header import Header
from .problem import Sample, Status
from .settings import Settings, checked_ks
from .statistics import Estimate
from .table import table
from .tasks import TASKS, count_note

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Args:
        header: how it was made.
        orders: the figures, of each order that problems were laid out in.
        notes: what a reader of the figures has to know, a sentence or two each, the gravest first.
    """

    header: Header
    orders: tuple[OrderFigures, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, header: Header, samples: Sequence[Sample], k: int | Iterable[int] | None = None) -> Report:
        """The report on a file of samples, whether or not the run has ended.

        Args:
            k: of pass@k, as in `evaluate`.

        Raises:
            EvaluationError: a k below 1 or above n: pass@k of fewer than k samples would be a guess.
        """
        ks = checked_ks(k, header.settings.n)
        orders = tuple(figures_of(header, order, samples, ks) for order in header.settings.orders)
        return cls(header, orders, tuple(_notes(header, samples, orders)))

    def pass_at(self, k: int, order: str | None = None) -> Estimate:
        """pass@k as a share of 1, with its interval.

        Args:
            order: psm or spm; needed where the run has both.

        Raises:
            KeyError: there is no such figure.
        """
        found = [each for each in self.orders if order is None or each.order.value == order]
        if len(found) != 1:
            raise KeyError(
                f"the orders of this run are {', '.join(each.order.value for each in self.orders)}"
            )
        return found[0].pass_at[k]

    def table(self) -> str:
        """The report as text of at most 100 columns."""
        return table(self.header, self.orders, self.notes)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON. All shares are of 1, the paper's too; k is a text where it is a key."""
        header = self.header
        return {
            "settings": asdict(header.settings),
            "model": {**asdict(header.model), "variants": list(header.model.variants)},
            "data": {"sha256": header.data_sha256, "problems": header.data_problems},
            "problems": header.problems,
            "sandbox": header.sandbox,
            "versions": dict(header.versions),
            "orders": [_order_dict(figures) for figures in self.orders],
            "notes": list(self.notes),
        }


def _order_dict(figures: OrderFigures) -> dict[str, Any]:
    published = {
        variant: {str(k): share for k, share in shares.items()}
        for variant, shares in figures.published.items()
    }
    return {
        **asdict(figures),
        "order": figures.order.value,
        "pass_at": {str(k): asdict(found) for k, found in figures.pass_at.items()},
        "published": published,
    }


def _notes(header: Header, samples: Sequence[Sample], orders: Sequence[OrderFigures]) -> Iterator[str]:
    done, expected = sum(each.samples for each in orders), sum(each.expected for each in orders)
    if done < expected:
        yield (
            f"The run has not ended: {done:,} of {expected:,} samples are there. Short answers come first, so these"
            " figures are not those of the whole."
        )
    yield from _program_notes(header, samples)
    yield from _answer_notes(header.settings, orders)
    if header.problems < header.data_problems:
        which = "This is the first" if header.problems == 1 else f"These are the first {header.problems:,}"
        yield f"{which} of {header.data_problems:,} problems; published figures are of all."
    yield from _task_notes(header)
    published = [each.published for each in orders if each.published]
    if published and len(header.model.variants) > 1:  # also where the paper has figures of one of them only
        names = " / ".join(dict.fromkeys(name for each in published for name in each))
        yield f"Shapes and vocabulary do not tell which variant this model is; the paper's figures are of {names}."
    if published:
        yield paper.PROTOCOL


def _program_notes(header: Header, samples: Sequence[Sample]) -> Iterator[str]:
    if header.sandbox == "limits":
        yield (
            "The sandbox 'limits' is none: the programs of the model ran with the rights of this user. They could read"
            " and change files, reach the network, and make up their own verdicts."
        )
    not_run = [sample.verdict.detail for sample in samples if sample.verdict.status is Status.NOT_RUN]
    for detail, count in Counter(not_run).most_common(3):
        yield (
            f"Not run, and not counted as failed: {count:,} of {len(samples):,} programs ({detail})."
            " eval --rescore runs them later."
        )


def _answer_notes(settings: Settings, orders: Sequence[OrderFigures]) -> Iterator[str]:
    answers = f"of {sum(each.samples for each in orders):,} answers"
    if not_asked := sum(each.not_asked for each in orders):
        yield (
            f"Not asked for, and counted as failed: {not_asked:,} {answers}. The prompt is too long for the model's"
            " context, or the question holds a tag of the chat format."
        )
    if cut := sum(each.cut for each in orders):
        yield f"Ended by the limit of {settings.max_gen_len:,} tokens: {cut:,} {answers}."


def _task_notes(header: Header) -> Iterator[str]:
    task = TASKS.get(header.settings.task)
    if task is None:
        return
    if note := count_note(task, header.data_problems):
        yield note
    yield from task.notes
    if header.model.url is not None and task.is_infilling:
        yield (
            "A server lays a hole out in an order of its own: PSM says only that no other could be asked for."
        )
