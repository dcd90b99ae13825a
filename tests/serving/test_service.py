"""Ranks that are processes: their number changes no result, and what happens to one ends all, with the reason."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from async_engines import TOKENIZER
from ranks import HANGS, launched, run_ranks
from service_script import NAN_ID
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.engine import FinishReason

pytestmark = pytest.mark.slow
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every scenario of service_script.py, run once, in one launch."""
    folder = tmp_path_factory.mktemp("service")
    weights = random_weights(SHAPE, TOKENIZER.n_words)
    save_checkpoint(folder / "s2", SHAPE, weights, tiny_model_path(), 2)
    weights["tok_embeddings.weight"][NAN_ID] = torch.nan
    save_checkpoint(folder / "nan", SHAPE, weights, tiny_model_path(), 2)
    run_ranks(
        "service_script.py", folder, ranks=None, timeout=4 * HANGS, environment=ONE_THREAD, forked=True
    ).ok()
    return folder


class Ended:
    """How a scenario ended. A rank that did not end in time was killed: its exit code is -9."""

    def __init__(self, folder, name):
        self.folder = folder / name
        self.codes = json.loads((folder / f"{name}.json").read_text())

    def output(self, rank, kind="err"):
        return (self.folder / f"{rank}.{kind}").read_text()

    def found(self, rank=0):
        assert set(self.codes) == {0}, "".join(self.output(i) for i in range(len(self.codes)))
        return json.loads((self.folder / f"{rank}.json").read_text())


def test_two_ranks_give_what_one_gives(folder):
    one, two = Ended(folder, "alone").found(), Ended(folder, "together").found()
    assert one["service"]["results"] == one["service"]["again"]
    assert two["service"]["results"] == two["service"]["again"] == one["service"]["results"]
    assert two["afterwards"] == one["afterwards"]
    assert Ended(folder, "together").found(1)["afterwards"] == one["afterwards"]
    assert len({json.dumps(each) for each in one["service"]["results"]}) > 20


def test_logits_that_are_not_finite_leave_all_ranks_serving(folder):
    for name in ("alone", "together"):
        found = Ended(folder, name).found()["numerics"]
        assert "logits are not finite" in found["error"]
        assert found["same"] is True


@pytest.mark.parametrize(("name", "ranks"), [("alone", 1), ("together", 2)])
def test_an_idle_rank_does_not_run_at_all_and_wakes_for_a_request(folder, name, ranks):
    """Its thread is never scheduled, so there is no polling, however slow, and only an event can have woken it."""
    assert Ended(folder, name).found()["service"]["idle"] == 3 * [ranks * [0]]


def test_replicas_are_refused_on_every_rank(folder):
    for rank in range(2):
        assert "2 replicas of 1 rank(s)" in Ended(folder, "replicas").found(rank)


@pytest.mark.parametrize("when", ["idle", "busy"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other(folder, when, victim):
    ended, left = Ended(folder, f"{when}_without_{victim}"), 1 - victim
    assert ended.codes[victim] == -signal.SIGKILL
    assert ended.codes[left] == 1
    assert f"RankError: rank {victim} is gone" in ended.output(left)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_whose_step_fails_ends_all_with_its_reason(folder, broken):
    ended = Ended(folder, f"fails_on_{broken}")
    assert ended.codes == [1, 1]
    reason = (
        f"rank {broken} failed: ValueError: the device of rank {broken} fell off; this model cannot be used"
    )
    for rank in range(2):
        assert f"RankError: {reason}" in ended.output(rank)
    assert ended.output(0, "out").startswith(f"RankError {reason}")


def test_nobody_waits_for_the_end_of_a_rank_whose_step_failed(folder):
    ended = Ended(folder, "outlived")
    for rank in range(2):
        assert "rank 1 failed: ValueError" in ended.found(rank)


@pytest.mark.parametrize(("name", "ranks"), [("sigterm_alone", 1), ("sigterm", 2)])
def test_sigterm_ends_all_requests_with_a_reason(folder, name, ranks):
    ended = Ended(folder, name)
    assert ended.codes == ranks * [0]
    assert ended.output(0, "out").split() == ["cancelled"] * 20


def test_a_drain_lets_streams_run_to_their_end_and_takes_no_more(folder):
    """Every stream was still read when the signal came, and rank 1 waits as long as rank 0."""
    one, two = (Ended(folder, name).found() for name in ("drained_alone", "drained"))
    assert one == two
    assert "no more requests" in one["refused"]
    assert [(len(tokens), reason) for _, tokens, reason in one["found"]] == [(40, "length")] * 6


def test_sigterm_of_one_rank_ends_all_with_a_reason(folder):
    ended = Ended(folder, "sigterm_of_one")
    assert ended.codes == [1, 1]
    for rank in range(2):
        assert "RankError: rank 1 was told to end" in ended.output(rank)


def test_sigterm_does_not_wait_for_a_step_that_never_ends(folder):
    ended = Ended(folder, "stuck")
    assert ended.codes == [128 + signal.SIGTERM]
    assert "a step is still running 0.5 s after SIGTERM" in ended.output(0)


def test_a_program_that_never_closes_its_engine_ends(folder):
    assert Ended(folder, "unclosed").codes == [0]


def test_a_service_that_is_cancelled_leaves_no_rank_in_it(folder):
    ended = Ended(folder, "cancelled")
    for rank in range(2):
        assert ended.found(rank) == [Ended(folder, "alone").found()["afterwards"]] * 2


@pytest.mark.parametrize("way", ["sigterm", "killed"])
def test_under_torchrun(folder, way, tmp_path):
    """The service ends by itself. torchrun kills a rank that takes 30 s, and a rank that is killed is never `over`."""
    (tmp_path / "s2").symlink_to(folder / "s2")
    # A forked rank that has ended well waits for its launcher to see it, and one that was told to end never looks.
    given = {"ranks": 2, "environment": ONE_THREAD, "forked": way == "killed"}
    with launched("service_script.py", tmp_path, "endless", **given) as launch:
        launch.wait_for((tmp_path / "ready").exists)
        if way == "sigterm":
            launch.process.terminate()
        else:
            os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
        finished = launch.finish()
        assert not any(launch.runs(int(path.read_text())) for path in tmp_path.glob("*.pid"))
    assert finished.code != 0
    over = sorted(path.stem for path in tmp_path.glob("*.over"))
    assert over == (["0", "1"] if way == "sigterm" else ["0"])
    if way == "sigterm":
        assert finished.stdout.split() == [FinishReason.CANCELLED.value] * 20
