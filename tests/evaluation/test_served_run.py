"""A run on a server's model from one end to the other: asked over HTTP, judged, kept, judged again.

The programs are HumanEval's own solutions and a wrong one of ours, so the level `limits` will do, which every machine
has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from remote_requests import Scripted, completion, refused

from llama.errors import EvaluationError
from llama.evaluation import evaluate
from llama.evaluation.problem import Status
from llama.evaluation.rescore import rescore
from llama.evaluation.samples import read_samples
from llama.evaluation.tasks import TASKS

PROBLEMS = TASKS["humaneval"].problems(None)[:3]
SOLUTIONS = {problem.prompt: problem.solution or "" for problem in PROBLEMS}
RUN: dict[str, Any] = {"limit": 3, "n": 2, "temperature": 0.8, "sandbox": "limits", "progress": False}


def solve(body: dict[str, Any]) -> httpx.Response:
    """The solution, and more than a stop lets through; the last problem is solved by one sample only."""
    text = SOLUTIONS[body["prompt"]]
    if body["prompt"] == PROBLEMS[2].prompt and body["seed"] % 2:
        text = "    return None\n"
    return completion(f"{text}\nprint(1 / 0)\n", usage={"completion_tokens": 9})


@pytest.mark.slow
def test_a_servers_answers_are_judged_kept_and_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    server = Scripted(solve)
    report = evaluate(server.generator, "humaneval", out=path, **RUN)
    odd = sum(body["seed"] % 2 for body in server.bodies if body["prompt"] == PROBLEMS[2].prompt)
    assert report.pass_at(1).value == pytest.approx((1 + 1 + (2 - odd) / 2) / 3)
    assert "theirs at http://server:1, 3 problems, 2 samples of each" in report.table()
    assert "The sandbox 'limits' is none" in " ".join(report.table().split())
    header, samples = read_samples(path)
    assert header == report.header
    assert {each.finish_reason for each in samples} == {"stop_sequence"}
    assert all("1 / 0" not in each.completion for each in samples)
    before = path.read_bytes()
    assert rescore(path, sandbox="limits", progress=False) == report
    assert path.read_bytes() == before, "the same programs have the same verdicts"
    idle = Scripted(solve)
    assert evaluate(idle.generator, "humaneval", out=path, **RUN) == report
    assert idle.bodies == [], "nothing is asked twice"


@pytest.mark.slow
def test_a_run_that_a_server_ends_goes_on_with_it(tmp_path: Path) -> None:
    """What is there is kept, and the samples are those of a run that was never stopped."""
    whole = evaluate(Scripted(solve).generator, "humaneval", out=tmp_path / "whole.jsonl", **RUN)
    path = tmp_path / "run.jsonl"
    left = [4]

    def fail_later(body: dict[str, Any]) -> httpx.Response:
        left[0] -= 1
        return solve(body) if left[0] >= 0 else refused(400, "odd")

    with pytest.raises(EvaluationError, match=r"refuses HumanEval/\d \(400\): odd"):
        evaluate(Scripted(fail_later, in_flight=1).generator, "humaneval", out=path, **RUN)
    rest = Scripted(solve)
    assert evaluate(rest.generator, "humaneval", out=path, **RUN) == whole
    done = {(each.task_id, each.sample): each for each in read_samples(path)[1]}
    assert done == {(each.task_id, each.sample): each for each in read_samples(tmp_path / "whole.jsonl")[1]}
    assert {each.verdict.status for each in done.values()} <= {Status.PASSED, Status.FAILED}
    assert 2 <= len(rest.bodies) <= 6
