"""Data files of the benchmarks: the public ones where they are at hand, and small ones with the same keys."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import shared_data

from llama.evaluation.tasks import TASKS

__all__ = ["PUBLIC", "public_problems_path", "record", "write_records"]

# Of each task the public file's name; None where a package brings it.
PUBLIC = {
    "humaneval": None,
    "mbpp": "mbpp.jsonl.gz",
    "infilling-single": "HumanEval-SingleLineInfilling.jsonl.gz",
    "infilling-multi": "HumanEval-MultiLineInfilling.jsonl.gz",
    "infilling-random": "HumanEval-RandomSpanInfilling.jsonl.gz",
    "infilling-light": "HumanEval-RandomSpanInfillingLight.jsonl.gz",
    **{
        name: f"{name.replace('-e-', '-e-humaneval-')}.jsonl.gz"
        for name in TASKS
        if name.startswith("multipl")
    },
}
_KINDS = {
    "infilling-single": "SingleLineInfilling/HumanEval/{}/L0",
    "infilling-multi": "MultiLineInfilling/HumanEval/{}/L0_L0",
    "infilling-random": "RandomSpanInfilling/HumanEval/{}/1",
    "infilling-light": "RandomSpanInfillingLight/HumanEval/{}/1",
    "humaneval": "HumanEval/{}",
}


def public_problems_path(name: str) -> Path | None:
    """What `Task.problems` takes to read the public file; skips the test where that is not at hand."""
    file = PUBLIC[name]
    if file is None:
        return None
    folder = shared_data()
    if folder is None:
        pytest.skip("LLAMA_TEST_DATA is unset: the folder with the public data of the benchmarks")
    return folder / "eval" / file


def record(name: str, number: int = 0) -> dict[str, Any]:
    """A record of a task's file: double(x) returns 2 * x. `number` tells records apart."""
    if name == "mbpp":
        return {
            "text": f"Write a function that doubles, {number}.",
            "code": "def double(x):\r\n    return 2 * x",
            "task_id": number,
            "test_setup_code": "",
            "test_list": ["assert double(1) == 2", "assert double(2) == 4"],
            "challenge_test_list": [],
        }
    if name.startswith("multipl-e-"):
        return {
            "name": f"HumanEval_{number}_double",
            "language": name.removeprefix("multipl-e-"),
            "prompt": "# doubles\ndouble() {\n",
            "tests": "}\n[[ $(double 1) = 2 ]]\n",
            "stop_tokens": ["\n}"],
        }
    whole = {
        "task_id": _KINDS[name].format(number),
        "prompt": 'def double(x: int) -> int:\n    """ Twice x """\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "double",
    }
    if name == "humaneval":
        return whole
    return {**whole, "prompt": f"{whole['prompt']}    return 2 ", "canonical_solution": "*", "suffix": " x\n"}


def write_records(path: Path, records: Sequence[object], *, newline: str = "\n") -> Path:
    """Write JSON lines, compressed if the name says so."""
    content = "".join(json.dumps(line) + newline for line in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
