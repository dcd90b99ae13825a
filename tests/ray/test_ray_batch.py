"""Laws of `codellama batch --ray`: the same lines as without it, in the same order, whatever dies meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_server import LIMIT, ROOT, TINY

FLAGS = ("--device", "cpu", "--dtype", "float32", "--in-flight", "4")


def batch(*words: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llama", "batch", TINY, *words, *FLAGS]
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it said; it must have ended well."""
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    return said


def answers(path: Path) -> list[Any]:
    """(id, custom_id, status, text or error) of each line."""
    found = []
    for record in map(json.loads, path.read_text().splitlines()):
        response = record["response"]
        told = record["error"]["message"] if response is None else response["body"]["choices"][0]["text"]
        found.append((record["id"], record["custom_id"], response and response["status_code"], told))
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batch") / "in.jsonl"
    body = {"max_tokens": 120, "temperature": 0, "ignore_eos": True}
    lines = []
    for i in range(120):
        request = {"custom_id": str(i), "method": "POST", "url": "/v1/completions"}
        lines.append(json.dumps({**request, "body": {"prompt": f"def f{i}(", **body}}))
    lines.insert(7, "no JSON")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def alone(given: Path) -> list[Any]:
    """The answers of one model without Ray."""
    finish(batch(given, given.with_name("alone.jsonl")))
    return answers(given.with_name("alone.jsonl"))


def test_the_answers_are_those_of_one_model_also_if_a_replica_is_killed(
    given: Path, alone: list[Any]
) -> None:
    """One of them is killed once it has a model."""
    out = given.with_name("killed.jsonl")
    process = batch(given, out, "--ray", "--replicas", 2)
    end, victim = time.monotonic() + LIMIT, None
    while victim is None and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        working = [each for each in children if "MapWorker" in " ".join(each.cmdline()[:1])]
        victim = next((each for each in working if each.memory_info().rss > 3e8), None)
    assert victim is not None, "nothing ran"
    victim.kill()
    finish(process)
    assert answers(out) == alone


def test_a_run_goes_on_behind_what_is_there(given: Path, alone: list[Any]) -> None:
    out = given.with_name("resumed.jsonl")
    whole = given.with_name("alone.jsonl").read_text().splitlines(keepends=True)
    out.write_text("".join(whole[:100]) + whole[100][:30])
    said = finish(batch(given, out, "--ray", "--replicas", 2))
    assert "100 of 121 requests are done already" in said
    assert answers(out) == alone
