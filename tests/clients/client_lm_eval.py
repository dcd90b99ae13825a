"""lm-eval's local-completions in an environment of its own: it has no tokenizer, and asks the server for ids.

Tasks of its format on data that lie here; it would download the known ones.
"""

from __future__ import annotations

import json

import httpx
import pytest
from asked import COMPLETION, MODEL, ROOM, TOKENS, environment
from lm_eval_runs import run_offline, write_tasks
from server_process import LIMIT


@pytest.fixture(scope="module")
def results(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Task -> its samples as lm-eval wrote them, after one run of both tasks."""
    folder = tmp_path_factory.mktemp("lm_eval")
    write_tasks(folder, [{"text": COMPLETION, "target": go_on(url)}])
    run_offline(
        folder,
        *(environment("lm-eval") / "lm-eval", "run", "--model", "local-completions"),
        *("--model_args", f"model={MODEL},base_url={url}/v1/completions,max_length={ROOM},num_concurrent=2"),
        *("--tasks", "choose,go_on", "--include_path", folder, "--output_path", folder / "out"),
        "--log_samples",
    )
    found = {}
    for task in ("choose", "go_on"):
        (path,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def ids(url: str, text: str) -> list[int]:
    """As lm-eval asks for them."""
    body = {"prompt": text, "add_special_tokens": False}
    return httpx.post(f"{url}/tokenize", json=body, timeout=LIMIT).json()["tokens"]


def go_on(url: str) -> str:
    """What follows the text's ids. lm-eval sends none for the beginning, so it is not the library's answer."""
    body = {"prompt": ids(url, COMPLETION), "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=LIMIT)
    return answer.json()["choices"][0]["text"]


def test_it_finds_the_better_choices(results) -> None:
    samples = results["choose"]
    assert len(samples) == 4
    assert all(sample["acc"] == 1.0 for sample in samples)


def test_the_scores_are_sums_of_log_probabilities(url, results) -> None:
    """Beside another way to them: a prompt's scores minus those of its beginning."""

    def total(text: list[int]) -> float:
        body = {"prompt": text, "echo": True, "max_tokens": 0, "logprobs": 1, "temperature": 0}
        choice = httpx.post(f"{url}/v1/completions", json=body, timeout=LIMIT).json()["choices"][0]
        return sum(choice["logprobs"]["token_logprobs"][1:])

    for sample in results["choose"]:
        text = sample["doc"]["text"]
        for choice, ((score, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            if text:
                before, whole = ids(url, text), ids(url, text + choice)
            else:  # the beginning of a text is all that comes before
                before, whole = ids(url, "<s>"), ids(url, "<s>") + ids(url, choice)
            assert float(score) == pytest.approx(total(whole) - total(before), abs=1e-3)


def test_what_it_generates_is_what_the_server_answers(results) -> None:
    (sample,) = results["go_on"]
    assert sample["exact_match"] == 1.0
