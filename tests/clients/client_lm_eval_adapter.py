"""`LlamaLM` within the real lm-eval, beside transformers with the same weights: every response is the same.

Pairs of ids and windows are lm-eval's own there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asked import COMPLETION, MODEL, PREFIX, ROOT, environment
from lm_eval_runs import run_offline, write_tasks

TEXTS = [COMPLETION, PREFIX, "import os\n", PREFIX * 6]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `lm_eval_adapter.py` prints."""
    folder = tmp_path_factory.mktemp("lm_eval_adapter")
    write_tasks(folder, ({"text": text, "target": "none"} for text in TEXTS))
    programs = ROOT / ".venv" / "bin"
    run_offline(folder, programs / "codellama", "convert", ROOT / MODEL, folder / "hf", "--to", "hf")
    (packages,) = environment("lm-eval").parent.glob("lib/python*/site-packages")
    script = Path(__file__).with_name("lm_eval_adapter.py")
    return json.loads(run_offline(folder, programs / "python", script, folder, packages).splitlines()[-1])


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
