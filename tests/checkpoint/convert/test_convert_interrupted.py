"""Laws of a `convert` that is interrupted, killed or run twice: the target is complete or not there."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import convert_faults
import pytest
import torch
from conversions import (
    assert_shards,
    left_in,
    meta_folder,
    to,
    weights_of,
)
from forked import Forked
from ranks import HANGS

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import conversion
from llama.checkpoint.convert.output_folder import OutputFolder
from llama.errors import (
    CheckpointError,
    CheckpointWriteError,
)


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_an_interruption_between_weights_and_config_leaves_nothing(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    def stop(*_: Any) -> None:
        assert any((tmp_path / "out" / ".target.unfinished").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, {"meta": "_finish_meta", "hf": "config_of"}[layout], stop)
    with pytest.raises(KeyboardInterrupt):
        to(layout, meta, tmp_path / "out" / "target")
    assert left_in(tmp_path / "out") == []


@pytest.fixture
def slow(tmp_path: Path, meta: Path) -> Iterator[Callable[[str], Forked]]:
    """Starts a conversion that has written something when this returns, and has minutes to go."""
    started: list[Forked] = []

    def start(layout: str) -> Forked:
        arguments = ["convert", str(meta), str(tmp_path / "out" / "target"), "--to", layout]
        child = Forked(tmp_path / "child", convert_faults.slowly, arguments)
        started.append(child)
        folder, end = tmp_path / "out" / ".target.unfinished", time.monotonic() + HANGS
        while not [path for path in folder.glob("*") if path.name != ".lock"]:
            assert child.process.is_alive(), child.stderr
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.2)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "layout", "code"), [(signal.SIGTERM, "meta", 143), (signal.SIGINT, "hf", 130)], ids=str
)
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, meta: Path, slow: Callable[[str], Forked], number: int, layout: str, code: int
) -> None:
    child = slow(layout)
    before = time.monotonic()
    child.kill(number)
    assert child.wait() == code
    # A generous bound: it stopped at the signal, and did not finish, which takes many minutes.
    assert time.monotonic() - before < 60
    word = "interrupted" if code == 130 else "terminated"
    assert child.stderr == f"{word}: {tmp_path / 'out' / 'target'} was not written\n"
    assert left_in(tmp_path / "out") == []
    to(layout, meta, tmp_path / "out" / "target")


def assert_nothing_loads_then_convert(place: Path, meta: Path, layout: str) -> None:
    assert not (place / "target").exists()
    assert left_in(place) == [".target.unfinished"]
    with pytest.raises(CheckpointError):
        open_checkpoint(place / ".target.unfinished")
    to(layout, meta, place / "target")
    assert left_in(place) == ["target"]
    with Llama.build(place / "target", None, 16, 1, 1, device="cpu") as llama:
        state = llama.model.state_dict()
    for name, value in weights_of(4, torch.float32).items():
        assert torch.equal(state[name], value), name


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_loads(
    tmp_path: Path, meta: Path, slow: Callable[[str], Forked]
) -> None:
    """The next run succeeds; while it lived, it had its target for itself."""
    child = slow("meta")
    with pytest.raises(CheckpointWriteError, match=r"another conversion is writing .*target"):
        to("meta", meta, tmp_path / "out" / "target")
    assert child.process.is_alive()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert_nothing_loads_then_convert(tmp_path / "out", meta, "meta")


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "where"), [("hf", "config_of"), ("meta", "create")])
def test_a_conversion_killed_behind_its_weights_leaves_nothing_that_loads(
    tmp_path: Path, meta: Path, layout: str, where: str
) -> None:
    arguments = ["convert", str(meta), str(tmp_path / "out" / "target"), "--to", layout]
    child = Forked(tmp_path / "child", convert_faults.killed_at, where, arguments)
    assert child.wait() == -signal.SIGKILL, child.stderr
    assert_nothing_loads_then_convert(tmp_path / "out", meta, layout)


def test_a_second_conversion_to_the_same_target_is_refused(tmp_path: Path, meta: Path) -> None:
    target = tmp_path / "out" / "target"
    with OutputFolder(target, 0, force=False, source=meta) as first:
        (first.folder / "params.json").write_text("done")
        with pytest.raises(CheckpointWriteError, match="another conversion is writing"):
            to("meta", meta, target)
        assert left_in(first.folder) == [".lock", "params.json"]
        to("meta", meta, tmp_path / "out" / "other")
    assert left_in(tmp_path / "out") == ["other"]


def test_a_second_conversion_is_refused_while_the_first_gets_its_name(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not take the folder for one that a killed run left, and empty it."""
    target, rename, refusals = tmp_path / "target", Path.rename, []

    def beside(path: Path, new: Path) -> Path:
        if not refusals:
            with pytest.raises(CheckpointWriteError, match="another conversion is writing") as caught:
                OutputFolder(target, 0, force=False, source=meta).__enter__()
            refusals.append(caught.value)
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", beside)
    to("meta", meta, target)
    assert refusals
    assert_shards(target, weights_of(4, torch.float32), 2)
    assert left_in(target) == [
        "checklist.chk",
        "consolidated.00.pth",
        "consolidated.01.pth",
        "params.json",
        "tokenizer.model",
    ]


def test_a_lock_that_went_with_a_finished_folder_is_not_taken_for_ones_own(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock, left = fcntl.flock, tmp_path / ".target.unfinished"

    def late(handle: int, how: int) -> None:
        """Between the opening of the lock and this, one run ended and another began."""
        left.rename(tmp_path / "finished")
        left.mkdir()
        (left / ".lock").write_text("theirs")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(CheckpointWriteError, match="another conversion is writing"):
        to("meta", meta, tmp_path / "target")
    assert left_in(left) == [".lock"]


def test_force_replaces_a_folder_whose_run_was_killed_before_its_lock_was_removed(
    tmp_path: Path, meta: Path
) -> None:
    target = meta_folder(tmp_path / "target", 4)
    (target / ".lock").touch()
    to("meta", meta, target, force=True)
    assert ".lock" not in left_in(target)


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path, meta: Path) -> None:
    target = tmp_path / "target"
    with OutputFolder(target, 0, force=False, source=meta) as unfinished:
        target.mkdir()
        (target / "theirs").write_text("theirs")
        with pytest.raises(CheckpointWriteError, match="exists"):
            unfinished.publish()
    assert (target / "theirs").read_text() == "theirs"
    assert left_in(tmp_path) == ["source", "target"]


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_nothing_of_a_killed_run_gets_into_the_next(tmp_path: Path, meta: Path, layout: str) -> None:
    """It may have been one to more shards, or to the other layout."""
    left = tmp_path / "out" / ".target.unfinished"
    left.mkdir(parents=True)
    names = (
        "consolidated.00.pth",
        "consolidated.07.pth",
        "model.safetensors.index.json",
        "params.json",
        ".lock",
    )
    for name in names:
        (left / name).write_text("left by a killed run")
    done = to(layout, meta, tmp_path / "out" / "target")
    names_of = {
        "meta": {
            "checklist.chk",
            "consolidated.00.pth",
            "consolidated.01.pth",
            "params.json",
            "tokenizer.model",
        },
        "hf": {"config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json"}
        | {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"},
    }
    assert set(left_in(tmp_path / "out" / "target")) == names_of[layout] == set(done.files)
    assert left_in(tmp_path / "out") == ["target"]
    open_checkpoint(tmp_path / "out" / "target")


@pytest.mark.parametrize("kind", ["link", "folder of folders"])
def test_what_no_run_left_is_not_taken_for_it(tmp_path: Path, meta: Path, kind: str) -> None:
    left, theirs = tmp_path / "out" / ".target.unfinished", tmp_path / "theirs"
    (theirs / "thesis").mkdir(parents=True)
    left.parent.mkdir()
    if kind == "link":
        (theirs / "thesis").rmdir()
        (theirs / "thesis").write_text("mine")
        left.symlink_to(theirs)
    else:
        theirs.rename(left)
    with pytest.raises(CheckpointWriteError, match="is in the way"):
        to("meta", meta, left.with_name("target"))
    assert left_in(left) == ["thesis"]
    assert left_in(left.parent) == [left.name]


def test_a_run_that_was_killed_between_its_renames_is_undone_by_the_next(tmp_path: Path, meta: Path) -> None:
    to("meta", meta, tmp_path / "b", shards=4)
    (tmp_path / "b").rename(tmp_path / ".b.replaced")
    with pytest.raises(CheckpointWriteError, match="exists"):
        to("meta", meta, tmp_path / "b")
    assert_shards(tmp_path / "b", weights_of(4, torch.float32), 4)
