"""The laws of tests/gpu, on the real device; of a pretended one a few, since `make test` has them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..figures import Figure

__all__ = ["options", "run"]

_TESTS = Path(__file__).resolve().parents[3] / "tests" / "gpu"
_FEW = "results_are_those_of_the_cpu or greedy"


class _Counter:
    """A plugin of pytest: how many tests ended how."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1


def options(tiny: bool) -> list[str]:
    """Of pytest. Not the project's own: xdist may be absent, and another torch may warn of what is to come."""
    found = [
        "-o",
        "addopts=",
        "-o",
        "filterwarnings=default",
        "-p",
        "no:cacheprovider",
        "-q",
        "--durations=10",
    ]
    found += ["-k", _FEW] if tiny else []
    return [*found, "--rootdir", str(_TESTS.parents[1]), str(_TESTS)]


def run(emit: Callable[[Figure], None], tiny: bool) -> None:
    """Run them. Raises SystemExit with pytest's code if one failed, or if there were none."""
    counter = _Counter()
    code = pytest.main(options(tiny), plugins=[counter])
    for name, count in counter.counts.items():
        emit(
            Figure(
                f"tests that were {name}" if name != "failed" else "tests that failed",
                "tests",
                [float(count)],
            )
        )
    if code:
        raise SystemExit(int(code))
