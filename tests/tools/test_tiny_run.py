"""Laws of a training run: it goes on exactly where it stopped, obeys signals and the file `finish`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import train_tiny
from tiny_data import ROW, Position, TokenFiles
from tiny_model import TinyConfig
from tiny_plan import Plan
from tiny_run import Run, Settings
from torch.nn import functional

CONFIG = TinyConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """`train` sets handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def new_run(data: Path, plan: Plan | None = None, **settings: object) -> Run:
    kept = Settings(str(data), CONFIG, rows=1, **settings)  # type: ignore[arg-type]
    return Run(kept, plan or Plan.of(1e9, long=0, mix=1, decay=1), "cpu")


def stop_after(run: Run, steps: int, then: Callable[[], None]) -> None:
    """Call `then` within a step; the run's own loop has to notice."""
    advance, start = run.advance, run.step

    def counted(loops: tuple[torch.Tensor, torch.Tensor] | None = None) -> tuple[float, float]:
        if run.step == start + steps - 1:
            then()
        return advance(loops)

    run.advance = counted  # type: ignore[method-assign]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(data: Path, tmp_path: Path, optimizer: str) -> None:
    """Weights, optimizers, warm-up and place in the data, against a run that never stopped."""
    whole = new_run(data, optimizer=optimizer)
    losses = [whole.advance()[0] for _ in range(6)]
    first = new_run(data, optimizer=optimizer)
    assert [first.advance()[0] for _ in range(3)] == losses[:3]
    first.save(tmp_path / "state.pt")
    second = Run.load(tmp_path / "state.pt", "cpu")
    assert [second.advance()[0] for _ in range(3)] == losses[3:]
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(second)[name]), name
    assert second.tokens == {"plain": 6 * ROW, "mix": 0}


@pytest.mark.slow
def test_training_lowers_the_loss(data: Path) -> None:
    for optimizer in ("muon", "adamw"):
        run = new_run(data, optimizer=optimizer, learning_rate=0.05, other_rate=0.05)
        before = run.held_out_bits("held_out")
        for _ in range(20):
            run.advance()
        assert run.held_out_bits("held_out") < 0.9 * before, optimizer


def test_sigterm_saves_the_state_and_ends(data: Path, tmp_path: Path) -> None:
    run = new_run(data)
    stop_after(run, 4, terminate)
    train_tiny.train(run, tmp_path)
    again = Run.load(tmp_path / "state.pt", "cpu")
    assert (again.step, again.position) == (4, Position(plain=4))
    assert 0 < again.minutes_before <= run.minute()


def test_a_save_that_is_killed_leaves_the_last_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(data)
    run.advance()
    run.save(tmp_path / "state.pt")
    run.advance()

    def killed(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path / "state.pt")
    assert Run.load(tmp_path / "state.pt", "cpu").step == 1


def test_the_file_finish_starts_the_mix_and_keeps_the_plain_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_tiny, "LOG_STEPS", 2)
    for name in ("TEXTS", "WRITTEN"):  # what the model writes in the mix is not asked for here
        monkeypatch.setattr(f"tiny_loops.{name}", 4)
    run = new_run(data)
    (tmp_path / "finish").write_text("1000\n")
    stop_after(run, 5, terminate)
    train_tiny.train(run, tmp_path)
    assert not (tmp_path / "finish").exists()
    assert run.tokens == {"plain": 2 * ROW, "mix": 3 * ROW}
    assert run.plan.end_at == pytest.approx(1000, abs=1)
    assert Run.load(tmp_path / "plain.pt", "cpu").step == 2


def test_a_plan_that_is_over_ends_the_run(data: Path, tmp_path: Path) -> None:
    run = new_run(data, Plan(0, 0, 0, 0))
    train_tiny.train(run, tmp_path)
    assert Run.load(tmp_path / "state.pt", "cpu").step == 0


def test_resuming_changes_the_plan_only_if_asked(data: Path, tmp_path: Path) -> None:
    new_run(data, Plan(1, 2, 3, 4)).save(tmp_path / "state.pt")

    def opened(**changes: object) -> Plan:
        asked = {
            "minutes": None,
            "finish": None,
            "resume": True,
            "work": tmp_path,
            "device": "cpu",
            "data": None,
        }
        shares = {"long": 0.25, "mix": 0.5, "decay": 0.75}
        return train_tiny.open_run(SimpleNamespace(**asked | shares | changes)).plan

    assert opened() == Plan(1, 2, 3, 4)
    assert opened(minutes=80.0) == Plan(20, 40, 60, 80)
    finished = opened(finish=10.0)
    assert finished.mix_at < 0.1
    assert finished.end_at == pytest.approx(10, abs=0.1)


def test_a_new_run_does_not_write_over_an_old_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").touch()
    asked = {"minutes": None, "long": 0, "mix": 1, "decay": 1, "resume": False, "work": tmp_path}
    with pytest.raises(SystemExit, match=r"--resume goes on with it"):
        train_tiny.open_run(SimpleNamespace(**asked))  # type: ignore[arg-type]


def test_a_pass_over_the_plain_rows_shows_each_once_and_the_next_cuts_elsewhere(data: Path) -> None:
    files = TokenFiles(data, seed=3)
    per_pass = (len(files.plain) - 1) // ROW - 1
    position = Position()
    first = files.plain_rows(position, per_pass)[0]
    second = files.plain_rows(position, per_pass)[0]
    assert position == Position(plain=2 * per_pass)
    rows = {row.tobytes() for row in np.asarray(first)}
    assert len(rows) == per_pass
    assert not rows & {row.tobytes() for row in np.asarray(second)}
    again = files.plain_rows(Position(plain=per_pass), per_pass)[0]
    assert torch.equal(again, second)


def test_half_rows_hold_the_same_targets(data: Path) -> None:
    run = new_run(data)
    whole, _ = run.batch("plain")
    run.position = Position()
    halves, _ = run.batch("short")
    assert halves.shape == (2, ROW // 2 + 1)
    assert torch.equal(halves[:, 1:].flatten(), whole[0, 1:])


def test_only_prompts_of_holes_say_nothing_of_eot(data: Path) -> None:
    """Suffix first, the end of a middle looks like each line end of the prefix before it."""
    run = new_run(data)
    tokenizer = run.files.tokenizer
    hole = [*tokenizer.spm("a = 1\n", "\nb = 2"), 100, 101, tokenizer.eot]
    text = [tokenizer.bos, 100, 101]
    ids = torch.tensor([text + hole + text + hole])
    marks = torch.tensor([([0] * len(text) + [0] * (len(hole) - 3) + [1] * 3) * 2])
    prompt = [False] * len(text) + [False] + [True] * (len(hole) - 4) + [False] * 3
    without = run._without_eot(ids, marks)[0]
    assert without.tolist() == [tokenizer.eot if inside else -1 for inside in prompt * 2]


def test_a_middle_and_its_eot_count_more_in_the_loss(data: Path) -> None:
    """Against cross-entropy, a token at a time."""
    run = new_run(data, middle_weight=3.0, eot_weight=7.0)
    eot = run.files.tokenizer.eot
    ids = torch.tensor([[1, 50, 51, 52, eot, 53]])
    marks = torch.tensor([[0, 0, 0, 1, 1, 0]])
    counts = torch.tensor([1.0, 1.0, 3.0, 7.0, 1.0])
    each = functional.cross_entropy(run.model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
    torch.testing.assert_close(run.loss(ids, marks), (each * counts).sum() / counts.sum())
