"""results.md: of each figure its median and range, its bound, and the share of that which was reached."""

from __future__ import annotations

from collections.abc import Iterator

from .figures import Ceilings, Figure
from .parts import PARTS
from .results import Run

__all__ = ["markdown"]


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def _row(figure: Figure, ceilings: Ceilings) -> str:
    bound, share = ceilings.bound(figure), ceilings.share(figure)
    spread = f"{_number(min(figure.samples))} to {_number(max(figure.samples))}, {len(figure.samples)}"
    cells = [
        figure.name + (f" ({figure.note})" if figure.note else ""),
        f"{_number(figure.median)} {figure.unit}",
        spread if len(figure.samples) > 1 else "",
        "" if bound is None else f"{_number(bound)} {figure.unit}",
        "" if share is None else f"{share:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def _clocks(found: dict[str, object]) -> str:
    names = {"sm_mhz": "SM {} MHz", "memory_mhz": "memory {} MHz", "temperature_c": "{} C", "power_w": "{} W"}
    said = [form.format(f"{found[name]:.0f}") for name, form in names.items() if name in found]
    return ", ".join(said)


def _lines(run: Run) -> Iterator[str]:
    ceilings = Ceilings.of(run.figures("ceilings"))
    yield f"# {run.machine.get('device', 'GPU')}, code {run.tree}"
    yield ", ".join(
        f"{name} {value}" for name, value in run.machine.items() if name not in ("device", "pretended")
    )
    for part in PARTS:
        entry = run.parts.get(part.name)
        if entry is None:
            yield f"{part.name}: not run yet"
            continue
        seconds, reason = entry["seconds"], entry.get("reason", "")
        yield f"## {part.name}: {part.about}"
        said = f"{entry['status']} in {seconds:.0f} s" + (f": {reason}; see parts.log" if reason else "")
        yield "; ".join(filter(None, [said, _clocks(entry.get("clocks", {}))]))
        yield from (f"not measured: {text}" for text in entry.get("lacking", []))
        if rows := run.figures(part.name):
            yield "| figure | median | range, rounds | bound | share |\n|---|---|---|---|---|"
            yield "\n".join(_row(figure, ceilings) for figure in rows)
    if not ceilings.rates:
        yield "Bounds need the part `ceilings`."


def markdown(run: Run) -> str:
    """The page of a run. Of a pretended GPU each line says so, since none of its figures means anything."""
    text = "\n\n".join(_lines(run)).replace("|\n\n|", "|\n|") + "\n"
    if not run.pretended:
        return text
    lines = ["# pretended GPU: no figure on this page is to be quoted"]
    for line in text.splitlines():
        if line.startswith("|"):
            mark = "---" if line.startswith("|---") else "pretended"
            lines.append(f"| {mark} {line}")
        elif line.startswith("#"):
            lines.append(f"{line} (pretended)")
        else:
            lines.append(line and f"pretended: {line}")
    return "\n".join(lines) + "\n"
