"""A report as text of at most 100 columns. Never imports torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from ..printable import printable
from .figures import OrderFigures, paper_differs
from .header import Header
from .problem import Order, Status
from .statistics import Estimate
from .tasks import TASKS

__all__ = ["WIDTH", "table"]

WIDTH = 100
_LONGEST_NAME = 200  # characters of a model's name or a server's address
_METHODS = {"wilson": "Wilson's over the problems", "bootstrap": "bootstrap over the problems"}


def table(header: Header, orders: Sequence[OrderFigures], notes: Sequence[str]) -> str:
    """What was run, the figures with the paper's beside them, and the notes; each line ends with a newline."""
    lines = [*_wrapped(_title(header)), *_wrapped(_sampling(header)), ""]
    lines += _columns(list(_rows(header, orders)))
    lines.append("")
    for figures in orders:
        lines += _wrapped(_counts(figures))
    if methods := _methods(orders):
        lines += _wrapped(f"Intervals of 95 %: {methods}.")
    for note in notes:
        lines += _wrapped(note, "- ")
    return "".join(f"{line}\n" for line in lines)


def _title(header: Header) -> str:
    settings, model = header.settings, header.model
    task = TASKS.get(settings.task)
    member = f" ({model.member})" if model.member is not None else ""
    where = f" at {model.url}" if model.url is not None else ""
    problems = f"{header.problems:,} problem{'s' * (header.problems != 1)}"
    samples = "one sample" if settings.n == 1 else f"{settings.n:,} samples"
    name = printable(f"{model.name}{member}{where}", _LONGEST_NAME)
    title = settings.task if task is None else task.title
    return f"{title}: {name}, {problems}, {samples} of each"


def _sampling(header: Header) -> str:
    settings = header.settings
    parts = ["greedy"]
    if settings.temperature != 0:
        parts = [
            f"temperature {settings.temperature:g}",
            f"top-p {settings.top_p:g}",
            f"seed {settings.seed}",
        ]
    parts.append(f"at most {settings.max_gen_len:,} tokens")
    model = header.model
    if model.dtype is not None:
        parts.append(
            model.dtype if model.quantization is None else f"{model.quantization}, activations {model.dtype}"
        )
    if model.cache_dtype is not None:
        parts.append(f"cache {model.cache_dtype}")
    if settings.chat:
        parts.append("asked in the chat format")
    return f"{', '.join(parts)}; sandbox: {header.sandbox}"


def _rows(header: Header, orders: Sequence[OrderFigures]) -> Iterator[list[str]]:
    """The table's cells: measure, ours, its interval, the paper's, and the paper's protocol where it differs."""
    yield ["", "ours", "95 % interval", "paper", "the paper's protocol, where it differs"]
    for figures in orders:
        name = _name(figures)
        for k, found in figures.pass_at.items():
            shares = [f"{100 * share[k]:.1f}" for share in figures.published.values() if k in share]
            theirs = [f"{' / '.join(shares)} %", paper_differs(k, header.settings)] if shares else ["", ""]
            yield [f"{name}pass@{k}", *_cells(found), *theirs]
        if not figures.pass_at:
            yield [f"{name}pass@k", "none", "", "", ""]
        if figures.exact is not None:
            yield [f"{name}exact match", *_cells(figures.exact), "", ""]


def _cells(found: Estimate) -> list[str]:
    return [f"{100 * found.value:.1f} %", f"{100 * found.low:.1f} to {100 * found.high:.1f} %"]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines; the first row is the heads, and a column with nothing below its head is left out."""
    columns = []
    for head, *cells in zip(*rows, strict=True):
        if any(cells):
            width = max(map(len, (head, *cells)))
            to_left = not any(cell.endswith("%") for cell in cells)
            columns.append([each.ljust(width) if to_left else each.rjust(width) for each in (head, *cells)])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _counts(figures: OrderFigures) -> str:
    counts = ", ".join(f"{figures.counts[status.value]:,} {status.value}" for status in Status)
    name = f"{_name(figures).rstrip()}, " if _name(figures) else ""
    return f"{name}{figures.samples:,} sample{'s' * (figures.samples != 1)}: {counts}"


def _name(figures: OrderFigures) -> str:
    """The prefix of a figure's name: the order, for infilling."""
    return f"{figures.order.value.upper()} " if figures.order in (Order.PSM, Order.SPM) else ""


def _methods(orders: Sequence[OrderFigures]) -> str:
    """How the intervals were made; where they differ, of which figure each is."""
    found: dict[str, str] = {}
    for figures in orders:
        name = _name(figures)
        found |= {f"{name}pass@{k}": each.method for k, each in figures.pass_at.items()}
        if figures.exact is not None:
            found[f"{name}exact match"] = figures.exact.method
    methods = sorted(set(found.values()))
    if len(methods) < 2:
        return "".join(_METHODS[method] for method in methods)
    return "; ".join(
        f"{_METHODS[method]} ({', '.join(name for name, each in found.items() if each == method)})"
        for method in methods
    )


def _wrapped(text: str, mark: str = "") -> list[str]:
    """`text` in lines of at most `WIDTH`; control characters are escaped."""
    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False
    )
