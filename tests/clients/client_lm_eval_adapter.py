"""`LlamaLM` within the real lm-eval, beside transformers with the same weights: every response is the same.

Pairs of ids and windows are lm-eval's own there.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asked import COMPLETION, MODEL, PREFIX, ROOT, environment, quiet_environment
from server_process import LIMIT

TASKS = Path(__file__).with_name("lm_eval_tasks")
TEXTS = [COMPLETION, PREFIX, "import os\n", PREFIX * 6]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `lm_eval_adapter.py` prints."""
    folder = tmp_path_factory.mktemp("lm_eval_adapter")
    for path in TASKS.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text().replace("DATA", str(folder)))
    (folder / "choose.jsonl").write_text((TASKS / "choose.jsonl").read_text())
    lines = (json.dumps({"text": text, "target": "none"}) + "\n" for text in TEXTS)
    (folder / "go_on.jsonl").write_text("".join(lines))
    programs = ROOT / ".venv" / "bin"
    run(folder, programs / "codellama", "convert", ROOT / MODEL, folder / "hf", "--to", "hf")
    (packages,) = environment("lm-eval").parent.glob("lib/python*/site-packages")
    script = Path(__file__).with_name("lm_eval_adapter.py")
    return json.loads(run(folder, programs / "python", script, folder, packages).splitlines()[-1])


def run(folder: Path, *command: object) -> str:
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [str(each) for each in command],
        env={**quiet_environment(), **offline},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_choices_have_the_log_probabilities_of_transformers(found) -> None:
    ours, theirs = found["ours"]["choose"], found["theirs"]["choose"]
    assert len(ours) == 4
    for sample, expected in zip(ours, theirs, strict=True):
        for ((score, greedy),), ((other, likeliest),) in zip(sample, expected, strict=True):
            assert score == pytest.approx(other, abs=1e-3)
            assert greedy == likeliest


def test_whole_texts_have_the_log_probabilities_of_transformers(found) -> None:
    """Also the one that is longer than the context."""
    ours, theirs = found["ours"]["read"], found["theirs"]["read"]
    assert len(ours) == len(TEXTS)
    for ((score,),), ((other,),) in zip(ours, theirs, strict=True):
        assert score == pytest.approx(other, abs=1e-3)
    assert ours[-1][0][0] < 2 * ours[1][0][0]


def test_answers_are_those_of_transformers(found) -> None:
    """But for the first space, which transformers' tokenizers drop."""
    ours, theirs = found["ours"]["go_on"], found["theirs"]["go_on"]
    assert [each[0][0].lstrip() for each in ours] == [each[0][0].lstrip() for each in theirs]
    assert len({each[0][0] for each in ours}) > 1


def test_a_second_run_takes_every_answer_from_the_cache(found) -> None:
    assert found["cached"] == found["ours"]


def test_dialogs_are_answered_as_the_library_answers_them(found) -> None:
    assert [each[0][0] for each in found["dialogs"]["go_on"][:3]] == found["answers"]
