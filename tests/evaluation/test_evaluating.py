"""Laws of `evaluate`: whatever interrupts a run, whatever was made before, it ends with the same samples."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ROOT
from toy_task import Box, Scripted, ToyTask, judged

import llama.evaluation
from llama.errors import EvaluationError
from llama.evaluation import Report, evaluate, grader
from llama.evaluation.problem import Answer, Order, Program, Sample, Status, Verdict
from llama.evaluation.samples import Key, key_of, read_samples
from llama.evaluation.settings import Settings
from llama.evaluation.worker_pool import WorkerPool
from llama.generation import Llama

OPTIONS: dict[str, Any] = {"n": 3, "temperature": 0.9, "max_gen_len": 8, "sandbox": Box()}


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "judge", judged)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def toy(model: Any, **changes: Any) -> Report:
    return evaluate(model, changes.pop("task", ToyTask()), **(OPTIONS | changes))


def samples(path: Path) -> dict[Key, Sample]:
    return {key_of(each): each for each in read_samples(path)[1]}


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have Ctrl-C end a run behind so many answers."""
    real, left = WorkerPool.put, [number]

    def put(pool: Any, answer: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(pool, answer)

    monkeypatch.setattr(WorkerPool, "put", put)


# ---- a run -----------------------------------------------------------------------------------------------


def test_a_run_in_memory_is_the_run_in_a_file(llama: Llama, path: Path) -> None:
    kept, written = toy(llama), toy(llama, out=path)
    assert kept == written
    assert kept.to_dict()["orders"][0]["samples"] == 12
    found = samples(path)
    passed = sum(each.verdict.status is Status.PASSED for each in found.values())
    assert passed
    assert kept.pass_at(1).value == pytest.approx(passed / 12)
    assert kept.table() == written.table()


def test_the_header_says_what_made_the_samples(path: Path) -> None:
    toy(Scripted(), out=path)
    header = read_samples(path)[0]
    assert header.versions.keys() == {"codellama", "torch", "python"}
    assert header.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (header.sandbox, header.data_problems) == (Box.level, 4)


def test_every_program_gets_the_jar_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[object] = []

    def spy(sandbox: object, program: Program, *, javatuples: object) -> Verdict:
        given.append(javatuples)
        return Verdict(Status.PASSED)

    monkeypatch.setattr(grader, "judge", spy)
    toy(Scripted(), javatuples=str(tmp_path / "a.jar"))
    assert given == [tmp_path / "a.jar"] * 12


@pytest.mark.parametrize("number", [0, 1, 5, 11])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    llama: Llama, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = tmp_path / "whole.jsonl"
    report = toy(llama, out=whole)
    with monkeypatch.context() as patch:
        interrupt(patch, number)
        with pytest.raises(KeyboardInterrupt):
            toy(llama, out=path)
    left = samples(path)
    assert len(left) <= number
    assert toy(llama, out=path) == report
    assert samples(path) == samples(whole)
    assert left.items() <= samples(whole).items()


def test_more_samples_more_problems_are_those_of_one_run(llama: Llama, path: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    last = toy(llama, out=whole, n=7)
    for n, limit in ((2, 2), (2, 3), (5, 3), (7, None)):
        found = toy(llama, out=path, n=n, limit=limit)
        assert len(samples(path)) == n * (limit or 4)
    assert found == last
    assert samples(path) == samples(whole)


def test_a_finished_run_asks_for_nothing(path: Path) -> None:
    first, second = Scripted(), Scripted()
    assert toy(first, out=path) == toy(second, out=path)
    assert sum(ask.count for ask in first.asked) == 12
    assert second.asked == []


def test_both_orders_are_laid_out(llama: Llama, path: Path) -> None:
    found = toy(llama, task=ToyTask(is_infilling=True), order="both", out=path)
    orders = [key[1] for key in samples(path)]
    assert (orders.count(Order.PSM), orders.count(Order.SPM)) == (12, 12)
    assert found.pass_at(1, "psm") != found.pass_at(1, "spm")
    alone = toy(llama, task=ToyTask(is_infilling=True))  # psm, by default
    assert alone.pass_at(1) == found.pass_at(1, "psm")


def test_one_sample_is_greedy_and_more_are_drawn_as_in_the_paper(path: Path) -> None:
    found = [evaluate(Scripted(), ToyTask(), n=n, sandbox=Box()).header.settings for n in (1, 2)]
    assert [(each.temperature, each.top_p, each.max_gen_len) for each in found] == [
        (0.0, 0.95, 512),
        (0.8, 0.95, 512),
    ]


def test_k_is_what_n_allows_unless_it_is_said(llama: Llama) -> None:
    def ks(**changes: Any) -> list[str]:
        return list(toy(Scripted(), **changes).to_dict()["orders"][0]["pass_at"])

    assert ks(n=1) == ks(n=9) == ["1"]
    assert ks(n=10) == ["1", "10"]
    assert ks(n=100) == ["1", "10", "100"]
    assert ks(n=3, k=2) == ["2"]
    assert ks(n=3, k=[3, 2, 3]) == ["2", "3"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 4}, "pass@4 needs at least 4 samples of each problem, and n is 3"),
        ({"k": [1, 0]}, "k is 0"),
        ({"k": []}, "k is []"),
        ({"k": "10"}, "k is '10'"),
        ({"n": 1.5}, "n is 1.5"),
        ({"n": True}, "n is True"),
        ({"n": 10**12}, "n is 1,000,000,000,000; at most 1,000,000"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 5000}, "workers is 5000"),
        ({"task": "humanevil"}, "there is no task 'humanevil'"),
        ({"order": "spm"}, "has no holes"),
    ],
    ids=str,
)
def test_impossible_options_are_refused_before_anything_is_asked(
    changes: Any, words: str, path: Path
) -> None:
    model = Scripted()
    with pytest.raises(EvaluationError) as caught:
        toy(model, out=path, **changes)
    assert words in str(caught.value)
    assert model.asked == []
    assert not path.exists()


def test_other_options_and_another_run_are_refused(path: Path) -> None:
    class Meanwhile(Scripted):
        def generate(self, requests: Any, settings: Settings) -> Iterator[Answer]:
            with pytest.raises(EvaluationError, match="another run is writing"):
                toy(Scripted(), out=path)
            yield from super().generate(requests, settings)

    toy(Meanwhile(), out=path)
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match=r"top_p is 0\.5 now, and was 0\.95"):
        toy(Scripted(), out=path, top_p=0.5)
    assert path.read_bytes() == before


def test_a_model_is_loaded_only_when_the_rest_is_there(path: Path, tmp_path: Path) -> None:
    loaded: list[int] = []

    def load() -> Any:
        loaded.append(1)
        return Scripted()

    with pytest.raises(EvaluationError):
        toy(load, task="mbpp", data=tmp_path / "nowhere.jsonl")
    with pytest.raises(EvaluationError):
        toy(load, sandbox="a box")
    toy(Scripted(), out=path)
    with pytest.raises(EvaluationError, match="top_p is 1"):
        toy(load, out=path, top_p=1)
    with pytest.raises(FileNotFoundError):
        toy(load, out=tmp_path / "none" / "out.jsonl")
    assert loaded == []
    assert toy(load) == toy(Scripted())
    assert loaded == [1]


def test_it_works_within_a_running_event_loop(llama: Llama) -> None:
    """As in a notebook, whose cells run in one."""

    async def cell() -> Report:
        return toy(llama)

    assert asyncio.run(cell()) == toy(llama)


def test_verdicts_of_a_missing_toolchain_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "judge", lambda *_, **__: Verdict(Status.NOT_RUN, "php is missing"))
    toy(Scripted(), out=path)
    assert {each.verdict.status for each in samples(path).values()} == {Status.NOT_RUN}
    assert samples(path).keys() == {(f"Toy/{i}", Order.PLAIN, j) for i in range(4) for j in range(3)}


# ---- what is said meanwhile ------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_tells_where_it_stands(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            toy(Scripted(), out=path)
    left = len(samples(path))
    said = f"{left} of 12 samples are in {path}; the same command goes on from there\n"
    assert capsys.readouterr().err == said
    path.write_bytes(path.read_bytes()[:-3])
    toy(Scripted(), out=path)
    assert capsys.readouterr().err == (
        f"the last line of {path} was incomplete; it is dropped\n{left - 1} of 12 samples are done already\n"
        if left
        else f"the last line of {path} was incomplete; it is dropped\n"
    )


def test_a_bar_counts_on_a_terminal_and_nothing_is_said_without_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    toy(Scripted(), progress=False)
    assert stream.getvalue() == ""
    toy(Scripted())
    assert " of 12, " in stream.getvalue()
    assert stream.getvalue().endswith("\r")


# ---- the package -----------------------------------------------------------------------------------------


def test_the_package_has_its_names_whatever_was_imported_before() -> None:
    code = (
        "import llama.evaluation.evaluating, llama.evaluation.report, llama.evaluation.rescore\n"
        "from llama.evaluation import evaluate, Report\n"
        "import sys; print(callable(evaluate), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    assert all(getattr(llama.evaluation, name) for name in llama.evaluation.__all__)
    assert set(llama.evaluation.__all__) <= set(dir(llama.evaluation))
    with pytest.raises(AttributeError):
        llama.evaluation.nothing  # noqa: B018
