"""The paper's figures (arXiv 2308.12950v3), number by number."""

from __future__ import annotations

import re

from llama.evaluation.paper import published
from llama.evaluation.problem import Order
from llama.evaluation.tasks import TASKS

# HumanEval at 1, 10, 100; MBPP at 1, 10, 100; of the base models C++ Java PHP TS C# Bash at 1. Then Instruct, Python.
TABLE = """
7B   33.5/59.6/85.9; 41.4/66.7/82.5; 28.6 34.2 24.2 33.3 25.3 12.0    34.8/64.3/88.1; 44.4/65.4/76.8    38.4/70.3/90.6; 47.6/70.3/84.8
13B  36.0/69.4/89.8; 47.0/71.7/87.1; 39.1 38.0 34.2 29.6 27.3 15.2    42.7/71.6/91.6; 49.4/71.2/84.1    43.3/77.4/94.1; 49.0/74.0/87.6
34B  48.8/76.8/93.0; 55.0/76.2/86.6; 47.8 45.6 44.1 33.3 30.4 17.1    41.5/77.2/93.5; 57.0/74.6/85.4    53.7/82.8/94.7; 56.2/76.4/88.2
70B  53.0/84.6/96.2; 62.4/81.1/91.9; 52.8 51.9 50.9 49.1 38.0 29.1    67.8/90.3/97.3; 62.2/79.6/89.2    57.3/89.3/98.4; 65.6/81.5/91.9
"""  # noqa: E501
# PSM and SPM.
HOLES = {
    "7B": {"single": (74.1, 83.3), "multi": (48.2, 50.8), "random": (59.7, 39.0)},
    "13B": {"single": (75.9, 85.6), "multi": (51.0, 56.1), "random": (63.6, 41.9)},
}
LANGUAGES = ("cpp", "java", "php", "ts", "cs", "sh")
VARIANTS = ("base", "instruct", "python")
PLAIN = Order.PLAIN


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"[\d.]+", text)]


def test_the_figures_are_the_papers() -> None:
    expected: dict[tuple[str, str, str, Order], dict[int, float]] = {}
    for line in TABLE.strip().splitlines():
        member, rest = line.split(maxsplit=1)
        for variant, cells in zip(VARIANTS, rest.split("    "), strict=True):
            humaneval, mbpp, *others = map(numbers, cells.split(";"))
            for task, figures in (("humaneval", humaneval), ("mbpp", mbpp)):
                for order in (PLAIN, Order.CHAT):
                    expected[member, variant, task, order] = dict(zip((1, 10, 100), figures, strict=True))
            for language, figure in zip(LANGUAGES, others[0] if others else (), strict=bool(others)):
                for order in (PLAIN, Order.CHAT):
                    expected[member, variant, f"multipl-e-{language}", order] = {1: figure}
    for member, tasks in HOLES.items():
        for task, pair in tasks.items():
            for order, figure in zip((Order.PSM, Order.SPM), pair, strict=True):
                expected[member, "base", f"infilling-{task}", order] = {1: figure}
    found = {
        (member, variant, task, order): figures
        for member in ("7B", "13B", "34B", "70B", "110M", "")
        for variant in VARIANTS
        for task in TASKS
        for order in ((Order.PSM, Order.SPM) if TASKS[task].is_infilling else (PLAIN, Order.CHAT))
        if (figures := published(member, variant, task, order))
    }
    assert found == expected
