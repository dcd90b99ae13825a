"""Laws of training against loops: what counts as one, which texts are written, what a step then does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import train_tiny
from tiny_data import TokenFiles
from tiny_loops import BEFORE, KEPT, ROWS, WRITTEN, Loops, loop_marks, prompts
from tiny_model import TinyConfig
from tiny_plan import Plan
from tiny_run import Run, Settings

LINE_BREAK = 13
BLANK = frozenset({LINE_BREAK, 60})
RUN = [*range(100, 108)]


def mix_run(data: Path, **settings: object) -> Run:
    config = TinyConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1)
    kept = Settings(str(data), config, rows=1, **settings)  # type: ignore[arg-type]
    return Run(kept, Plan.of(1e9, long=0, mix=0, decay=1), "cpu")


def marked(ids: list[int]) -> list[int]:
    return [at for at, mark in enumerate(loop_marks(ids, LINE_BREAK, BLANK)) if mark]


def test_the_third_of_a_run_of_eight_is_a_loop() -> None:
    text = [*RUN, 1, *RUN, 2, *RUN, 3, *RUN[:7]]
    assert marked(text[:-9]) == []
    assert marked(text) == [len(text) - 9]


def test_a_third_line_is_a_loop_but_not_its_indent() -> None:
    line = [50, 51, LINE_BREAK]
    assert marked(line * 2) == []
    assert marked([*line, 9, LINE_BREAK, *line, *line, *line]) == [8, 9, 11, 12]
    assert marked([60, *line] * 3) == [9, 10]


def test_lines_of_blanks_and_a_third_empty_one_always_count() -> None:
    line = [50, 51, LINE_BREAK]
    assert marked([*line, LINE_BREAK, LINE_BREAK, *line]) == []
    assert marked([LINE_BREAK] * 4) == [2, 3]
    assert marked([*line, 60, LINE_BREAK, *line]) == [3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_marks_are_those_of_a_plain_count(seed: int) -> None:
    rng = random.Random(seed)
    ids = [rng.choice((1, 2, LINE_BREAK)) for _ in range(96)]
    expected = {
        end - 1
        for end in range(8, 97)
        if sum(ids[at - 8 : at] == ids[end - 8 : end] for at in range(8, end + 1)) >= 3
        and ids[end - 1] != LINE_BREAK
    }
    text = "".join("\n" if each == LINE_BREAK else str(each) for each in ids)
    lines, at = text.split("\n"), 0
    for number, line in enumerate(lines[:-1]):
        if line and lines[: number + 1].count(line) >= 3:
            expected |= set(range(at, at + len(line)))
        if lines[max(0, number - 2) : number + 1] == ["", "", ""]:
            expected.add(at)
        at += len(line) + 1
    assert set(marked(ids)) == expected


def test_prompts_are_whole_questions_and_plain_code(data: Path) -> None:
    files = TokenFiles(data, seed=1)
    tokenizer = files.tokenizer
    asked = prompts(files, 20, random.Random(0))
    assert all(ids[0] == tokenizer.bos and len(ids) <= BEFORE for ids in asked)
    for ids in asked[:10]:
        text = tokenizer.decode(ids[1:])
        assert text.startswith("[INST] ")
        assert text.endswith(" [/INST]")
        assert ids.count(tokenizer.bos) == 1
    plain = files.plain.tolist()
    for ids in asked[10:]:
        assert any(plain[at : at + len(ids) - 1] == ids[1:] for at in range(len(plain)))


def test_only_texts_with_loops_are_kept_and_only_what_was_written_counts(data: Path) -> None:
    loops = Loops(TokenFiles(data, seed=1), seed=1)
    assert loops.rows() is None
    line = [50, 51, LINE_BREAK]
    prompt = [1, *line * 4]
    assert loops.keep([prompt, prompt], [[7, 8], line * 3]) == 0.5
    rows = loops.rows()
    assert rows is not None
    ids, marks = rows
    assert ids.shape == marks.shape == (ROWS, BEFORE + WRITTEN)
    assert ids[0, : len(prompt) + 9].tolist() == prompt + line * 3
    assert marks[0].nonzero().flatten().tolist() == [len(prompt) + 6, len(prompt) + 7]
    assert loops.keep([prompt], [[7]]) == 0
    assert loops.rows() is not None
    loops.keep([[1]] * KEPT, [[*line * 2, 51, *line, *line]] * KEPT)
    assert loops._ids[:, 7].eq(51).all()


def test_the_loss_is_minus_log_of_one_minus_p(data: Path) -> None:
    run = mix_run(data)
    ids = torch.randint(3, 100, (2, 20), generator=torch.manual_seed(0))
    marks = torch.zeros_like(ids)
    marks[0, 5] = marks[1, 9] = 1
    logits = run.model(ids[:, :-1]).softmax(-1)
    expected = -sum((1 - logits[row, at - 1, ids[row, at]]).log() for row, at in ((0, 5), (1, 9))) / 2
    assert torch.allclose(run.loss_of_loops(ids, marks), expected)


def test_training_against_a_text_makes_it_unlikely(data: Path) -> None:
    ids = torch.randint(3, 100, (2, 20), generator=torch.manual_seed(0))
    marks = torch.zeros_like(ids)
    marks[:, 10:] = 1
    chances = {}
    for weight in (0.0, 10.0):
        run = mix_run(data, loop_weight=weight, learning_rate=0.02, other_rate=0.02)
        for _ in range(30):
            run.advance((ids, marks))
        chances[weight] = run.loss_of_loops(ids, marks).item()
    assert chances[10.0] < 0.5 * chances[0.0]


def test_a_run_writes_texts_in_the_mix(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tiny_loops.TEXTS", 4)
    run = mix_run(data)
    run.plan = Plan(0, 0, 0, 0.02)
    train_tiny.train(run, tmp_path)
    assert "texts of its own" in capsys.readouterr().out
    assert run.tokens["mix"] > 0
