"""Laws of a run apart from models and files: what is asked for, and how answers become samples."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import HANGS
from toy_task import TOY, Box, Scripted, ToyTask, judged, toy_problems

from llama.errors import EvaluationError
from llama.evaluation import grader, worker_pool
from llama.evaluation.generator import PROMPT_TOO_LONG, seed_of
from llama.evaluation.grader import Grader
from llama.evaluation.header import problems_digest
from llama.evaluation.problem import Answer, Order, Problem, Sample, Status, Verdict
from llama.evaluation.run import limited, make_samples, missing_requests
from llama.evaluation.settings import Settings, check_settings
from llama.evaluation.worker_pool import WorkerPool

PROBLEMS = toy_problems()


def answer(number: int = 0, **changes: Any) -> Answer:
    fields = {"problem": PROBLEMS[0], "order": Order.PLAIN, "seed": 1, "text": "t", "tokens": 1}
    return Answer(sample=number, **{"finish_reason": "stop", **fields, **changes})


def numbered(number: int) -> Sample:
    return Sample("Toy/0", Order.PLAIN, number, 1, "", 0, "stop", Verdict(Status.PASSED))


# ---- what is asked for -----------------------------------------------------------------------------------


@given(
    st.integers(1, 12),
    st.sampled_from(["psm", "spm", "both"]),
    st.sets(st.tuples(st.integers(0, 3), st.sampled_from([Order.PSM, Order.SPM]), st.integers(0, 11))),
)
def test_what_is_missing_is_asked_for_in_as_few_requests_as_can_be(
    n: int, order: str, done: set[Any]
) -> None:
    settings = Settings("toy", n=n, order=order)
    requests = missing_requests(PROBLEMS, settings, {(f"Toy/{i}", each, j) for i, each, j in done})
    found = [(a.problem.task_id, a.order, j) for a in requests for j in a.samples]
    wanted = {(f"Toy/{i}", each, j) for i in range(4) for each in settings.orders for j in range(n)}
    assert len(found) == len(set(found))
    assert set(found) == wanted - {(f"Toy/{i}", each, j) for i, each, j in done}
    for one, two in itertools.pairwise(requests):
        touching = (
            one.problem is two.problem and one.order is two.order and one.first + one.count == two.first
        )
        assert not touching


def test_from_20_to_200_samples_makes_180() -> None:
    done = {(problem.task_id, Order.PLAIN, j) for problem in PROBLEMS for j in range(20)}
    requests = missing_requests(PROBLEMS, Settings("toy", n=200), done)
    assert [(request.first, request.count) for request in requests] == [(20, 180)] * 4


def test_more_samples_than_the_engine_takes_are_several_requests() -> None:
    requests = missing_requests(PROBLEMS[:1], Settings("toy", n=10_000), ())
    assert [(request.first, request.count) for request in requests] == [(0, 4096), (4096, 4096), (8192, 1808)]


def test_a_seed_depends_on_run_problem_and_order_alone() -> None:
    seeds = {seed_of(seed, f"Toy/{i}", order) for seed in range(3) for i in range(3) for order in Order}
    assert len(seeds) == 3 * 3 * len(Order)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "\ud800", Order.PLAIN) == seed_of(0, "\ud800", Order.PLAIN)
    whole, part = (missing_requests(some, Settings("toy"), ()) for some in (PROBLEMS, PROBLEMS[:1:-1]))
    assert {request.problem.task_id: request.seed for request in part}.items() <= {
        request.problem.task_id: request.seed for request in whole
    }.items()
    # Written into files: a release that changed it could not continue them.
    assert seed_of(0, "HumanEval/0", Order.PLAIN) == SEED


SEED = int.from_bytes(hashlib.sha256(b"0\nplain\nHumanEval/0").digest()[:8], "big") // 2


def test_a_digest_of_the_problems_sees_all_of_them() -> None:
    """A file of samples must not go on, nor be judged again, with other tests or stops."""
    changed = {
        "stops": ("other",),
        **{each.name: "other" for each in fields(Problem) if each.name != "stops"},
    }
    others = [[*PROBLEMS[:-1], replace(PROBLEMS[-1], **{name: value})] for name, value in changed.items()]
    assert len(
        {problems_digest(each) for each in [PROBLEMS, PROBLEMS[:-1], PROBLEMS[::-1], *others]}
    ) == 3 + len(others)
    assert problems_digest(toy_problems()) == problems_digest(PROBLEMS)


def test_problems_of_one_name_are_refused() -> None:
    with pytest.raises(EvaluationError, match="'Toy/1'"):
        limited([*PROBLEMS, PROBLEMS[1]], Settings("toy"))
    assert limited(PROBLEMS, Settings("toy", limit=3)) == PROBLEMS[:3]


@pytest.mark.parametrize(
    ("changes", "infilling", "words"),
    [
        ({"n": 0}, False, "n is 0"),
        ({"max_gen_len": 0}, False, "max_gen_len is 0"),
        ({"seed": -1}, False, "seed is -1"),
        ({"limit": 0}, False, "limit is 0"),
        ({"temperature": -0.1}, False, "temperature is -0.1"),
        ({"temperature": float("nan")}, False, "temperature is nan"),
        ({"top_p": 1.1}, False, "top_p is 1.1"),
        ({"order": "psm"}, False, "order is 'psm', but toy has no holes"),
        ({"order": "plain"}, True, "order is 'plain'; toy takes psm, spm, both"),
        ({"order": "psm", "chat": True}, True, "fills holes"),
    ],
    ids=str,
)
def test_settings_that_no_run_can_have_are_refused(changes: Any, infilling: bool, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        check_settings(Settings("toy", **changes), infilling=infilling)


# ---- grading ---------------------------------------------------------------------------------------------


def test_every_answer_is_graded_once_and_kept_one_at_a_time() -> None:
    kept: list[int] = []
    busy = threading.Lock()

    def keep(each: Sample) -> None:
        assert busy.acquire(blocking=False)
        kept.append(each.sample)
        busy.release()

    with WorkerPool(5, lambda given: numbered(given.sample), keep) as pool:
        for number in range(500):
            pool.put(answer(number))
        pool.finish()
        assert sorted(kept) == list(range(500))


def test_programs_run_while_the_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model writes its second answer only when the first has been judged."""
    first = threading.Event()

    class Waiting(Scripted):
        def generate(self, requests: Any, settings: Settings) -> Iterator[Answer]:
            for number, each in enumerate(super().generate(requests, settings)):
                assert number == 0 or first.wait(HANGS)
                yield each

    monkeypatch.setattr(grader, "judge", judged)
    kept: list[Sample] = []
    settings = Settings("toy")

    def keep(each: Sample) -> None:
        kept.append(each)
        first.set()

    make_samples(Waiting(), missing_requests(PROBLEMS, settings, ()), settings, Grader(TOY, Box()), 2, keep)
    assert {each.task_id for each in kept} == {problem.task_id for problem in PROBLEMS}


def test_the_model_waits_while_too_many_answers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_MOST_WAITING", 3)
    written, many, seen = [0], threading.Event(), []

    class Counting(Scripted):
        def generate(self, requests: Any, settings: Settings) -> Iterator[Answer]:
            for each in super().generate(requests, settings):
                written[0] += 1
                if written[0] == 4:
                    many.set()
                yield each

    def slow(*_: object, **more: object) -> Verdict:
        if not seen:
            assert many.wait(HANGS)
            time.sleep(0.05)  # time to write more, if nothing holds the model back
            seen.append(written[0])
        return Verdict(Status.PASSED)

    monkeypatch.setattr(grader, "judge", slow)
    kept: list[Sample] = []
    settings = Settings("toy", n=10)
    requests = missing_requests(PROBLEMS, settings, ())
    make_samples(Counting(), requests, settings, Grader(TOY, Box()), 1, kept.append)
    assert len(kept) == 40
    assert seen[0] <= 5  # one is judged, three wait, and one is on its way


@pytest.mark.parametrize("where", ["judge", "keep"])
def test_a_failure_ends_the_run_and_nothing_is_kept_behind_it(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Closing(Scripted):
        closed = 0

        def generate(self, requests: Any, settings: Settings) -> Iterator[Answer]:
            try:
                yield from super().generate(requests, settings)
                threading.Event().wait(0.01)  # no answer comes any more, and the failure is seen all the same
            finally:
                self.closed += 1

    kept: list[Sample] = []

    def keep(each: Sample) -> None:
        if where == "keep" and len(kept) == 3:
            raise OSError("disk full")
        kept.append(each)

    def failing(*_: object, **more: object) -> Verdict:
        if where == "judge" and len(kept) == 3:
            raise EvaluationError("no sandbox any more")
        return Verdict(Status.PASSED)

    monkeypatch.setattr(grader, "judge", failing)
    settings, generator = Settings("toy", n=5), Closing()
    requests = missing_requests(PROBLEMS, settings, ())
    with pytest.raises((OSError, EvaluationError), match=r"disk full|no sandbox"):
        make_samples(generator, requests, settings, Grader(TOY, Box()), 1, keep)
    assert len(kept) == 3
    assert generator.closed == 1


def test_an_interrupt_does_not_wait_for_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_LAST_SECONDS", 0.0)
    runs, go, ended = threading.Event(), threading.Event(), threading.Event()
    kept: list[Sample] = []

    def endless(given: Answer) -> Sample:
        runs.set()
        assert go.wait(HANGS)
        ended.set()
        return numbered(given.sample)

    pool = WorkerPool(1, endless, kept.append)

    def interrupted() -> None:
        with pool:
            pool.put(answer())
            assert runs.wait(HANGS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    go.set()
    assert ended.wait(HANGS)
    for thread in pool._threads:
        thread.join(HANGS)
    assert kept == []


def test_what_could_not_be_asked_fails_without_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **more: object) -> Verdict:
        raise AssertionError

    monkeypatch.setattr(grader, "judge", never)
    found = Grader(TOY, Box()).grade(answer(finish_reason=PROMPT_TOO_LONG, text=""))
    assert (found.completion, found.finish_reason) == ("", PROMPT_TOO_LONG)
    assert found.verdict.status is Status.FAILED
    assert "too long" in found.verdict.detail
    blank = replace(toy_problems(1, " print")[0], solution="\n  ")
    holes = Grader(ToyTask(is_infilling=True), Box())
    assert holes.grade(answer(problem=blank, finish_reason=PROMPT_TOO_LONG, text="")).exact is False


def test_a_sample_has_what_its_program_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(sandbox: object, program: Any, **more: object) -> Verdict:
        seen.append(program.source)
        return Verdict(Status.PASSED)

    monkeypatch.setattr(grader, "judge", spy)
    chat = Grader(TOY, Box()).grade(answer(order=Order.CHAT, text="  fenced \n"))
    assert chat.completion == "fenced"
    assert seen == [PROBLEMS[0].prompt + "fenced"]
    assert chat.exact is None


def test_an_exact_match_is_told_of_infilling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "judge", judged)
    hole = toy_problems(1, " print")[0]
    holes = Grader(ToyTask(is_infilling=True), Box())
    texts = {" value\n": True, "value": True, "values": False, "": False}
    found = {text: holes.grade(answer(problem=hole, order=Order.SPM, text=text)).exact for text in texts}
    assert found == texts
