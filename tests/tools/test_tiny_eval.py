"""Laws of the figures: what counts as a line of code, a body, a repetition; and of the published folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_publish
from tiny_eval import code_lines, cut_at_dedent, repeats
from tiny_model import TinyConfig
from tiny_plan import Plan
from tiny_run import Run, Settings

from llama import Llama

FIGURES = (
    *("bits_per_byte", "package_bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte"),
    *(
        "xz_after_library_bits_per_byte",
        "lines",
        "psm_ended",
        "psm_exact",
        "psm_parses",
        "spm_ended",
        "spm_exact",
    ),
    *("spm_parses", "bodies", "bodies_that_parse", "answers", "answers_that_repeat"),
)


def test_lines_of_code_have_three_tokens_and_lie_in_no_string() -> None:
    text = 'import os\n"""a b c\nd = e + f\n"""\nx = 1\nelse_ = (\n    x,\n)\n# y = x + 1\npass\ny = x + 1\n'
    assert [text.split("\n")[line] for line in code_lines(text)] == ["x = 1", "else_ = (", "y = x + 1"]


@pytest.mark.parametrize(
    ("body", "is_cut_off", "kept"),
    [
        ("    return 1\n\ndef other():\n    pass", False, "    return 1\n"),
        ("    x = 1\n    retu", True, "    x = 1"),
        ("    x = 1\n    return x", False, "    x = 1\n    return x"),
        ("    x = 1\nclass", True, "    x = 1"),
    ],
)
def test_a_body_ends_at_the_next_text_in_column_0(body: str, is_cut_off: bool, kept: str) -> None:
    assert cut_at_dedent(body, is_cut_off) == kept


def test_an_answer_repeats_if_a_line_or_eight_tokens_come_three_times() -> None:
    assert repeats("a = 1\n  a = 1\nb\na = 1\n", [])
    assert not repeats("a = 1\na = 1\n\n\n\n", [])
    assert repeats("", list(range(8)) * 3)
    assert not repeats("", list(range(8)) * 2 + list(range(7)))
    assert not repeats("", [1] * 9)
    assert repeats("", [1] * 10)


def test_a_published_folder_loads_and_its_card_is_full(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With figures made up: those of the project's own checkpoint are measured when it is published."""
    monkeypatch.setattr(tiny_publish, "evaluate", lambda folder, samples: dict.fromkeys(FIGURES, 0.125))
    run = Run(Settings(str(data), TinyConfig(dim=64, n_layers=1)), Plan.of(1, 0, 1, 1), "cpu")
    target = tmp_path / "CodeLlama-tiny"
    target.mkdir()
    (target / "old").touch()
    tiny_publish.publish(run, target, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"CodeLlama-tiny"}
    assert {path.name for path in target.iterdir()} == {
        *tiny_publish.FILES,
        *("checklist.chk", "MODEL_CARD.md", "THIRD-PARTY-NOTICES.txt"),
    }
    text = (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| other 1.0 | MIT | 0.50 |" in text
    assert "**0.125**" in text
    assert not re.search(r"\$[a-z{]", text)
    with Llama.build(target, max_seq_len=32, device="cpu", dtype="float32") as llama:
        assert llama.generate([[1, 5]], 4, temperature=0)[0]
