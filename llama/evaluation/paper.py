"""Figures that were published for Code Llama, to stand beside ours, and how they came about.

Source: Rozière et al., Code Llama: Open Foundation Models for Code, arXiv 2308.12950v3.
"""

from __future__ import annotations

from .problem import Order

__all__ = ["PROTOCOL", "SAMPLES", "TEMPERATURE", "TOP_P", "published"]

# Of pass@10 and pass@100.
TEMPERATURE, TOP_P, SAMPLES = 0.8, 0.95, 200
PROTOCOL = (
    f"Paper: arXiv 2308.12950v3. pass@1 greedy; pass@10 and pass@100 from {SAMPLES} samples at temperature"
    f" {TEMPERATURE}, top-p {TOP_P}; MBPP after three examples. It gives neither stop strings nor a limit of tokens."
)

# HumanEval at 1, 10, 100; MBPP at 1, 10, 100. In percent, as are all below.
_PYTHON: dict[tuple[str, str], tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    ("7B", "base"): ((33.5, 59.6, 85.9), (41.4, 66.7, 82.5)),
    ("7B", "instruct"): ((34.8, 64.3, 88.1), (44.4, 65.4, 76.8)),
    ("7B", "python"): ((38.4, 70.3, 90.6), (47.6, 70.3, 84.8)),
    ("13B", "base"): ((36.0, 69.4, 89.8), (47.0, 71.7, 87.1)),
    ("13B", "instruct"): ((42.7, 71.6, 91.6), (49.4, 71.2, 84.1)),
    ("13B", "python"): ((43.3, 77.4, 94.1), (49.0, 74.0, 87.6)),
    ("34B", "base"): ((48.8, 76.8, 93.0), (55.0, 76.2, 86.6)),
    ("34B", "instruct"): ((41.5, 77.2, 93.5), (57.0, 74.6, 85.4)),
    ("34B", "python"): ((53.7, 82.8, 94.7), (56.2, 76.4, 88.2)),
    ("70B", "base"): ((53.0, 84.6, 96.2), (62.4, 81.1, 91.9)),
    ("70B", "instruct"): ((67.8, 90.3, 97.3), (62.2, 79.6, 89.2)),
    ("70B", "python"): ((57.3, 89.3, 98.4), (65.6, 81.5, 91.9)),
}
# pass@1 of the base models.
_LANGUAGES = ("cpp", "java", "php", "ts", "cs", "sh")
_MULTIPL_E = {
    "7B": (28.6, 34.2, 24.2, 33.3, 25.3, 12.0),
    "13B": (39.1, 38.0, 34.2, 29.6, 27.3, 15.2),
    "34B": (47.8, 45.6, 44.1, 33.3, 30.4, 17.1),
    "70B": (52.8, 51.9, 50.9, 49.1, 38.0, 29.1),
}
# pass@1 of the base models, PSM and SPM.
_INFILLING = {
    "7B": {
        "infilling-single": (74.1, 83.3),
        "infilling-multi": (48.2, 50.8),
        "infilling-random": (59.7, 39.0),
    },
    "13B": {
        "infilling-single": (75.9, 85.6),
        "infilling-multi": (51.0, 56.1),
        "infilling-random": (63.6, 41.9),
    },
}


def published(member: str, variant: str, task: str, order: Order) -> dict[int, float]:
    """pass@k in percent, by k, of a member of the family; empty where the paper has no such figure.

    Args:
        member: `Member.name`, such as 7B.
        variant: base, instruct or python.
        task: `Task.name`.
        order: the infilling figures of the paper are of one order each; the others are not of any.
    """
    if task in ("humaneval", "mbpp"):
        humaneval, mbpp = _PYTHON.get((member, variant), ((), ()))
        return dict(zip((1, 10, 100), humaneval if task == "humaneval" else mbpp, strict=False))
    if variant != "base":
        return {}
    if task.startswith("multipl-e-"):
        figures = dict(zip(_LANGUAGES, _MULTIPL_E.get(member, ()), strict=False))
        figure = figures.get(task.removeprefix("multipl-e-"))
        return {} if figure is None else {1: figure}
    pair = _INFILLING.get(member, {}).get(task)
    if pair is None or order not in (Order.PSM, Order.SPM):
        return {}
    return {1: pair[0 if order is Order.PSM else 1]}
