"""A figure of a run, and its bound: what the same device reached with copies and products alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Ceilings", "Cost", "Figure"]


@dataclass(frozen=True)
class Cost:
    """What one piece of work must do, however it is written.

    Attributes:
        bytes: moved between the device's memory and its cores.
        flops: of products of matrices; a multiplication and an addition are two.
        tokens: that it gives, where the figure is a rate.
    """

    bytes: float
    flops: float
    tokens: float = 1.0


@dataclass(frozen=True)
class Figure:
    """One measured thing.

    Attributes:
        unit: "tokens/s", where more is better; "ms", where less is; of others no bound is told.
        samples: one for each round.
        ceiling: "bandwidth" (in GB/s) or "matmul" (in TFLOP/s), if other figures are bounded by it.
        note: what a reader must know beside it.
    """

    name: str
    unit: str
    samples: list[float]
    cost: Cost | None = None
    ceiling: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Figure:
        """From what `as_json` gave."""
        cost = data.get("cost")
        return cls(**{**data, "cost": Cost(**cost) if cost else None})


@dataclass(frozen=True)
class Ceilings:
    """The best medians of a run's own copies (bytes/s) and products (flop/s); empty until they were measured."""

    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, figures: Iterable[Figure]) -> Ceilings:
        rates: dict[str, float] = {}
        for figure in figures:
            if figure.ceiling:
                scale = {"bandwidth": 1e9, "matmul": 1e12}[figure.ceiling]
                rates[figure.ceiling] = max(rates.get(figure.ceiling, 0.0), figure.median * scale)
        return cls(rates)

    def bound(self, figure: Figure) -> float | None:
        """The best that the figure could be, in its unit; None if that cannot be told."""
        cost, rates = figure.cost, self.rates
        if cost is None or not all(rates.get(name) for name in ("bandwidth", "matmul")):
            return None
        seconds = max(cost.bytes / rates["bandwidth"], cost.flops / rates["matmul"])
        return {"tokens/s": cost.tokens / seconds, "ms": 1000 * seconds}.get(figure.unit)

    def share(self, figure: Figure) -> float | None:
        """How much of the bound was reached: 1 is all of it."""
        bound = self.bound(figure)
        if bound is None or not figure.median:
            return None
        return bound / figure.median if figure.unit == "ms" else figure.median / bound
