"""Laws of a run on several ranks: the samples are those of one, killed or not, and no rank waits for another.

A launch takes seconds, so one runs all scenarios of evaluate_script.py.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from ranks import run_forked

from llama.evaluation.problem import Sample
from llama.evaluation.samples import Key, key_of, read_samples

pytestmark = pytest.mark.slow

# (ranks, ranks of one model): one, a model on two, two replicas, and two replicas on two each.
LAUNCHES = [(1, 1), (2, 2), (2, 1), (4, 2)]
MANY = LAUNCHES[1:]
FAILURES = {
    "full": ("OSError", "No space left"),
    "sandbox": ("RuntimeError", "a defect of the sandbox"),
    "interrupted": ("KeyboardInterrupt", ""),
}
# Each failure costs seconds: a model on two ranks tries all of them, replicas try one.
FAILED = [(launch, how) for launch in MANY for how in FAILURES if launch == (2, 2) or how == "full"]


def named(launch: tuple[int, int]) -> str:
    return f"{launch[0]}-{launch[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Where every launch has run, in every way."""
    folder = tmp_path_factory.mktemp("runs")

    def job(launch: tuple[int, int], name: str, *jobs: str) -> tuple[Any, ...]:
        return (launch[0], "evaluate_script.py", tiny_checkpoint, folder, name, launch[1], *jobs)

    jobs = [job((1, 1), "1-1", "whole=1-1-whole")]
    for launch in MANY:
        ways = ["whole", "refused", *(how for each, how in FAILED if each == launch)]
        jobs.append(job(launch, named(launch), *(f"{how}={named(launch)}-{how}" for how in ways)))
    # One file, which each of them is killed at, and the last one ends.
    jobs += [job(launch, f"{named(launch)}-killed", "killed=moved") for launch in MANY]
    jobs += [job((1, 1), "moved", "whole=moved")]

    reports = run_forked(folder / "reports", *jobs)
    for (ranks, *_, last), report in zip(jobs, reports, strict=True):
        # A killed launch: the others go on to write what they were told, which is no error of theirs.
        expected = [-signal.SIGKILL if last == "killed=moved" else 0, *[0] * (ranks - 1)]
        assert report["codes"] == expected, report
    return folder


def samples(folder: Path, name: str) -> dict[Key, Sample]:
    return {key_of(each): each for each in read_samples(folder / name)[1]}


def told(folder: Path, name: str, how: str) -> list[list[Any]]:
    """What each rank that lived found, call by call."""
    paths = sorted(folder.glob(f"{name}.?.json"))
    return [json.loads(path.read_text())[how] for path in paths]


@pytest.mark.parametrize("launch", MANY, ids=str)
def test_the_samples_are_those_of_one_rank(folder: Path, launch: tuple[int, int]) -> None:
    one = samples(folder, "1-1-whole")
    assert len(one) == 6 * 5
    assert len({each.completion for each in one.values()}) > 15
    assert samples(folder, f"{named(launch)}-whole") == one


def test_a_run_that_was_killed_three_times_has_the_same_samples(folder: Path) -> None:
    """Each time on other ranks, seven samples later."""
    assert samples(folder, "moved") == samples(folder, "1-1-whole")


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_every_rank_gets_the_report(folder: Path, launch: tuple[int, int]) -> None:
    reports = told(folder, named(launch), "whole")
    assert len(reports) == launch[0]
    assert all(each == reports[0] for each in reports)
    assert reports[0][0][1]["orders"][0]["samples"] == 30


@pytest.mark.parametrize(("launch", "how"), FAILED, ids=str)
def test_a_first_rank_that_fails_alone_ends_the_others(
    folder: Path, launch: tuple[int, int], how: str
) -> None:
    """That they ended at all is what the fixture saw; here, that each was told why. What was done is in the file."""
    error, words = FAILURES[how]
    first, *others = [calls[-1] for calls in told(folder, named(launch), how)]
    assert first[0] == error
    assert words in first[1]
    assert len(others) == launch[0] - 1
    for _, text, of_ranks in others:
        assert of_ranks
        assert f"has left with {error}" in text
        assert words in text
    one, left = samples(folder, "1-1-whole"), samples(folder, f"{named(launch)}-{how}")
    assert left.items() <= one.items()
    assert len(left) < 30


@pytest.mark.parametrize("launch", MANY, ids=str)
def test_a_first_rank_that_is_killed_ends_the_others(folder: Path, launch: tuple[int, int]) -> None:
    others = [calls[-1] for calls in told(folder, f"{named(launch)}-killed", "killed")]
    assert len(others) == launch[0] - 1
    assert all(of_ranks for _, _, of_ranks in others)


@pytest.mark.parametrize("launch", MANY, ids=str)
def test_what_the_first_rank_refuses_all_refuse_and_go_on(folder: Path, launch: tuple[int, int]) -> None:
    everyone = told(folder, named(launch), "refused")
    assert len(everyone) == launch[0]
    for rank, (fresh, missing, k, again) in enumerate(everyone):
        assert fresh[0] == "report"
        assert k[0] == "EvaluationError"
        assert missing[0] == ("RankError" if rank else "FileNotFoundError")
        assert "No such file" in missing[1]
        # Of another seed: the file of the first call.
        assert again[:1] == ["EvaluationError"]
        assert "seed is 0 now, and was 1" in again[1]
