"""Laws of the report: figures counted by hand, the paper's beside them, nothing that matters left unsaid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from evaluation_files import FAILED, MODEL, NOT_RUN, PASSED, TIMED_OUT, header, sample

from llama.errors import EvaluationError
from llama.evaluation.figures import paper_differs
from llama.evaluation.generator import PROMPT_TOO_LONG, UNSAFE_TAG, ModelInfo
from llama.evaluation.problem import Order, Sample, Verdict
from llama.evaluation.report import Report
from llama.evaluation.statistics import bootstrap, wilson
from llama.evaluation.tasks import TASKS

WIDTH = 100


def group(task_id: str, verdicts: Sequence[Verdict], **more: Any) -> list[Sample]:
    return [sample(task_id, number, verdict, **more) for number, verdict in enumerate(verdicts)]


def rows(report: Report) -> list[list[str]]:
    """The table's lines as words, without the lines around it."""
    _, table, _ = report.table().split("\n\n")
    return [line.split() for line in table.splitlines()[1:]]


def notes(report: Report) -> str:
    return " ".join(report.notes)


def of(samples: Sequence[Sample], problems: int, k: Sequence[int] = (1,), **more: Any) -> Report:
    return Report.of(header(**{"limit": problems, **more}), samples, k)


def test_one_sample_of_each_is_a_share_with_wilsons_interval() -> None:
    verdicts = [PASSED] * 55 + [FAILED] * 100 + [TIMED_OUT] * 9
    report = of([sample(f"HumanEval/{i}", 0, verdict) for i, verdict in enumerate(verdicts)], 164)
    found = report.pass_at(1)
    assert found.value == pytest.approx(55 / 164)
    assert (found.low, found.high) == pytest.approx(wilson(55, 164))
    assert rows(report) == [["pass@1", "33.5", "%", "26.8", "to", "41.1", "%", "33.5", "%"]]
    assert "164 samples: 55 passed, 100 failed, 9 timed out, 0 not run\n" in report.table()
    assert "Intervals of 95 %: Wilson's over the problems.\n" in report.table()
    assert "not ended" not in notes(report)


def test_many_samples_are_the_mean_over_all_choices_of_k() -> None:
    """By listing them; the interval is the bootstrap's over the problems' own figures."""
    passed = [0, 1, 4, 6]
    samples = [
        each for i, c in enumerate(passed) for each in group(str(i), [PASSED] * c + [FAILED] * (6 - c))
    ]
    report = of(samples[::-1], 4, (1, 3), n=6)
    for k in (1, 3):
        shares = [
            Fraction(
                sum(map(any, combinations([True] * c + [False] * (6 - c), k))),
                len([*combinations(range(6), k)]),
            )
            for c in passed
        ]
        found = report.pass_at(k)
        assert found.value == pytest.approx(float(sum(shares) / 4), abs=1e-15)
        assert (found.low, found.high) == pytest.approx(bootstrap([float(share) for share in shares]))
    assert "Intervals of 95 %: bootstrap over the problems.\n" in report.table()


@pytest.mark.parametrize(("k", "n"), [(2, 1), (21, 20)])
def test_more_than_there_are_samples_is_refused(k: int, n: int) -> None:
    with pytest.raises(EvaluationError, match=rf"pass@{k} needs at least {k} samples .* and n is {n}"):
        of([], 1, (1, k), n=n)


def test_programs_that_were_not_run_are_no_failures() -> None:
    samples = [sample("a", 0, PASSED), sample("b", 0, FAILED), sample("c", 0, NOT_RUN)]
    report = of(samples, 3, task="multipl-e-php")
    assert report.pass_at(1).value == 0.5
    assert "1 passed, 1 failed, 0 timed out, 1 not run" in report.table()
    assert "1 of 3 programs (php (Debian's package php-cli) is missing)" in notes(report)
    nothing = of([sample("a", 0, NOT_RUN)], 1, task="multipl-e-php")
    assert nothing.orders[0].pass_at == {}
    assert rows(nothing) == [["pass@k", "none"]]
    with pytest.raises(KeyError):
        nothing.pass_at(1)


def test_a_run_that_has_not_ended_says_so() -> None:
    samples = [*group("a", [PASSED, FAILED]), *group("b", [PASSED])]
    report = of(samples, 3, (1, 2), n=2)
    assert report.notes[0].startswith("The run has not ended: 3 of 6 samples are there.")
    assert report.pass_at(1).value == 0.75
    assert report.pass_at(2).value == 1.0, "of the problem that has two samples"
    assert of([], 3).orders[0].pass_at == {}
    assert "0 of 3 samples" in notes(of([], 3))


def test_samples_that_could_not_be_asked_for_count_as_failed_and_are_told() -> None:
    samples = [
        sample("a", 0, PASSED),
        sample("b", 0, FAILED, finish_reason=PROMPT_TOO_LONG),
        sample("c", 0, FAILED, finish_reason=UNSAFE_TAG),
        sample("d", 0, FAILED, finish_reason="length"),
    ]
    report = of(samples, 4)
    assert report.pass_at(1).value == 0.25
    assert "Not asked for, and counted as failed: 2 of 4 answers." in notes(report)
    assert "Ended by the limit of 512 tokens: 1 of 4 answers." in notes(report)
    assert "Not asked for" not in notes(of(samples[:1], 1))
    assert "Ended by" not in notes(of(samples[:1], 1))


def both_orders() -> list[Sample]:
    # An exact match counts whatever became of its program: on a busy machine it may have timed out.
    psm = [
        sample(str(i), 0, PASSED if i < 3 else TIMED_OUT, order=Order.PSM, exact=i in (0, 3))
        for i in range(4)
    ]
    spm = [sample(str(i), 0, PASSED if i < 1 else FAILED, order=Order.SPM, exact=False) for i in range(4)]
    return [*psm, *spm]


def test_each_order_of_infilling_has_its_figures() -> None:
    report = of(both_orders(), 4, task="infilling-single", order="both", limit=4, data_problems=1033)
    assert report.pass_at(1, "psm").value == 0.75
    assert report.pass_at(1, "spm").value == 0.25
    with pytest.raises(KeyError, match="psm, spm"):
        report.pass_at(1)
    assert [each.exact.value for each in report.orders if each.exact] == [0.5, 0.0]
    assert [(row[0], row[1], row[2 + (row[1] == "exact")]) for row in rows(report)] == [
        ("PSM", "pass@1", "75.0"),
        ("PSM", "exact", "50.0"),
        ("SPM", "pass@1", "25.0"),
        ("SPM", "exact", "0.0"),
    ]
    assert [row[-2] for row in rows(report) if row[1] == "pass@1"] == ["74.1", "83.3"]
    for note in TASKS["infilling-single"].notes:
        assert note in report.notes, "what an empty answer passes is told"
    assert "An empty answer passes" in notes(report)
    assert "These are the first 4 of 1,033 problems" in notes(report)
    one = of(both_orders()[:4], 4, task="infilling-single", order="psm")
    assert one.pass_at(1).value == 0.75
    assert rows(one)[0][:2] == ["PSM", "pass@1"]


def test_a_variant_that_the_shapes_do_not_tell_has_all_its_figures() -> None:
    model = replace(MODEL, variants=("base", "instruct"))
    report = of(group("a", [PASSED]), 1, model=model)
    assert " ".join(rows(report)[0][-4:]) == "33.5 / 34.8 %"
    assert "figures are of base / instruct" in notes(report)
    # Of these the paper has figures of the base model only.
    report = of(group("a", [PASSED]), 1, task="multipl-e-cpp", model=model)
    assert " ".join(rows(report)[0][-2:]) == "28.6 %"
    assert "Shapes and vocabulary do not tell" in notes(report)
    assert "figures are of base." in notes(report)
    report = of(group("a", [PASSED]), 1, task="multipl-e-js", model=model)
    assert "Shapes and vocabulary" not in notes(report), "there is no figure beside it"
    assert "Shapes" not in notes(of(group("a", [PASSED]), 1, model=replace(MODEL, variants=("base",))))


@pytest.mark.parametrize(
    "model",
    [
        replace(MODEL, member=None, variants=()),
        replace(MODEL, variants=()),
        ModelInfo("theirs", url="http://a"),
    ],
)
def test_a_model_of_no_member_has_no_figures_beside_it(model: ModelInfo) -> None:
    report = of(group("a", [PASSED]), 1, model=model)
    assert rows(report) == [["pass@1", "100.0", "%", "20.7", "to", "100.0", "%"]]
    assert "paper" not in report.table().lower()


@pytest.mark.parametrize(
    ("k", "changes", "said"),
    [
        (1, {}, ""),
        (1, {"temperature": 0.2}, "greedy"),
        (10, {"temperature": 0.8, "n": 200}, ""),
        (100, {"temperature": 0.8, "n": 100}, "200 samples"),
        (10, {"temperature": 0.2, "n": 200}, "temperature 0.8"),
        (10, {"temperature": 0.8, "n": 200, "top_p": 0.9}, "top-p 0.95"),
        (10, {"n": 20, "top_p": 1.0}, "temperature 0.8, top-p 0.95, 200 samples"),
    ],
)
def test_where_the_papers_protocol_differs_it_stands_beside_its_figure(
    k: int, changes: dict[str, Any], said: str
) -> None:
    head = header(**changes)
    assert paper_differs(k, head.settings) == said
    if k <= head.settings.n <= 20:
        table = Report.of(head, group("a", [PASSED] * head.settings.n), [k]).table()
        line = next(line for line in table.splitlines() if line.startswith(f"pass@{k}"))
        assert line.endswith(said or "%")
        assert "It gives neither stop strings nor a limit of tokens" in " ".join(table.split())


def test_the_sandbox_is_named_and_none_is_warned_of() -> None:
    for level in ("bubblewrap", "unshare", "sandbox-exec", "limits"):
        report = of(group("a", [PASSED]), 1, sandbox=level)
        assert f"sandbox: {level}\n" in report.table()
        assert ("The sandbox 'limits' is none" in notes(report)) == (level == "limits")


def test_another_number_of_problems_than_published_is_told() -> None:
    assert "163 problems" in notes(of([], 163, data_problems=163))
    assert "164 problems" not in notes(of([], 164))


def test_an_order_of_a_server_is_no_claim() -> None:
    server = ModelInfo("theirs", url="http://server:1")
    report = of(both_orders()[:4], 4, task="infilling-single", order="psm", model=server)
    assert "A server lays a hole out in an order of its own" in notes(report)
    assert "A server lays" not in notes(of(group("a", [PASSED]), 1, model=server))
    assert "theirs at http://server:1" in report.table()


def test_a_task_of_ones_own_is_called_by_its_name() -> None:
    report = of(group("a", [PASSED]), 1, task="my-task")
    assert report.table().startswith("my-task: CodeLlama-7b (7B)")
    assert "paper" not in report.table().lower()


def test_what_the_settings_say_stands_above() -> None:
    report = of(
        group("a", [PASSED] * 2), 1, n=2, temperature=0.8, top_p=0.9, seed=7, max_gen_len=256, data_problems=1
    )
    assert report.table().splitlines()[:2] == [
        "HumanEval: CodeLlama-7b (7B), 1 problem, 2 samples of each",
        "temperature 0.8, top-p 0.9, seed 7, at most 256 tokens, bfloat16; sandbox: bubblewrap",
    ]
    model = replace(MODEL, quantization="int4", cache_dtype="int8")
    small = of([], 1, model=model).table()
    assert "greedy, at most 512 tokens, int4, activations bfloat16, cache int8; sandbox: bubblewrap" in small
    chat = of([], 1, chat=True).table()
    assert "greedy, at most 512 tokens, bfloat16, asked in the chat format; sandbox: bubblewrap" in chat


def worst() -> Report:
    """Everything as wide as it can be."""
    model = ModelInfo(
        "a name\n" + "x" * 300,
        "00",
        "bfloat16",
        member="70B",
        variants=("base", "instruct", "python"),
        url="http://" + "h" * 200,
        quantization="GPTQ 4 bit, groups of 128, act-order",
        cache_dtype="int8",
    )
    missing = Verdict(NOT_RUN.status, "y" * 200)
    verdicts = [PASSED, FAILED, TIMED_OUT, missing] * 25 + [PASSED] * 20
    samples = [each for i in range(3) for each in group(f"t{i}", verdicts, finish_reason="length")]
    settings = {"n": 120, "temperature": 0.123456789, "top_p": 0.3333333333, "seed": 2**63 - 1, "limit": 4}
    return of(samples, 4, (1, 10, 100), model=model, sandbox="limits", **settings)


def test_every_line_fits_and_no_control_character_is_left() -> None:
    reports = [worst(), of(both_orders(), 4, task="infilling-single", order="both")]
    for report in reports:
        text = report.table()
        assert max(map(len, text.splitlines())) <= WIDTH
        assert text.replace("\n", "").isprintable()
        assert text.endswith("\n")
        assert str(report) == text


def test_the_dictionary_is_json_and_holds_the_same_figures() -> None:
    for report in (worst(), of(both_orders(), 4, task="infilling-single", order="both"), of([], 3)):
        found = report.to_dict()
        text = json.dumps(found, allow_nan=False)
        assert json.loads(text) == found
        for each, figures in zip(found["orders"], report.orders, strict=True):
            assert each["order"] == figures.order.value
            assert {int(k): value["value"] for k, value in each["pass_at"].items()} == {
                k: estimate.value for k, estimate in figures.pass_at.items()
            }
        assert found["notes"] == list(report.notes)
        assert found["settings"]["n"] == report.header.settings.n
        assert found["sandbox"] == report.header.sandbox
    first = of(group("a", [PASSED]), 1).to_dict()
    assert first["orders"][0]["published"] == {"base": {"1": 0.335}}
    assert first["model"]["weights"] == MODEL.weights
