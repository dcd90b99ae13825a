"""Laws of replacing a folder: a kill, a signal or a second run at any moment meets one complete folder."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversions import (
    content,
    refused,
    to,
)

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import (
    atomic_rename,
    conversion,
    output_folder,
)
from llama.checkpoint.convert.output_folder import OutputFolder
from llama.cli import main
from llama.errors import CheckpointWriteError


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As the system can, and as where it cannot exchange two names at once."""
    if request.param == "two steps":
        monkeypatch.setattr(atomic_rename, "_exchange", lambda *_: False)
        return str(request.param)
    for name in "ab":
        (tmp_path / "probe" / name).mkdir(parents=True)
    if not atomic_rename._exchange(tmp_path / "probe" / "a", tmp_path / "probe" / "b"):
        pytest.skip("this system does not exchange names")
    shutil.rmtree(tmp_path / "probe")
    return str(request.param)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Calls a function before and after each rename and each removal while a folder is published."""

    def watch(call: Callable[[str], None]) -> None:
        rename, swap, unlink = Path.rename, atomic_rename._exchange, Path.unlink

        def renamed(path: Path, new: Path) -> Path:
            call(f"before {path.name} -> {new.name}")
            done = rename(path, new)
            call(f"behind {path.name} -> {new.name}")
            return done

        def swapped(first: Path, second: Path) -> bool:
            call("before the exchange")
            done = swap(first, second)
            call("behind the exchange")
            return done

        def unlinked(path: Path, *_: Any) -> None:
            unlink(path)
            call(f"behind the removal of {path.name}")

        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Path, "unlink", unlinked)
        monkeypatch.setattr(atomic_rename, "_exchange", swapped)

    return watch


def layout_of(folder: Path) -> str:
    return open_checkpoint(folder).layout


def test_a_kill_at_any_moment_leaves_one_of_the_two(
    tmp_path: Path, tiny: Path, target: Path, steps: str, moments: Any
) -> None:
    """What a kill leaves is what is on the disk at that moment; the next run then replaces it."""
    old, left = content(target), tmp_path / "left"
    left.mkdir()
    watching = [True]

    def snapshot(_: str) -> None:
        if watching:
            shutil.copytree(target.parent, left / f"{len(list(left.iterdir())):03d}", symlinks=True)

    moments(snapshot)
    to("hf", tiny, target, force=True)
    watching.clear()
    new = content(target)
    assert content(target.parent).keys() == {"target", *(f"target/{name}" for name in new)}
    states = []
    for place in sorted(left.iterdir()):
        for name in (".lock", ".target.unfinished/.lock", ".target.replaced/.lock"):
            with contextlib.suppress(FileNotFoundError):
                (place / "target" / name).unlink()
        found = content(place / "target") if (place / "target").exists() else None
        states.append("old" if found == old else "new" if found == new else str(found))
        whole = place / (".target.replaced" if found is None else "target")
        assert {name: each for name, each in content(whole).items() if name != ".lock"} in (old, new)
        if found == new and (place / ".target.replaced").exists():
            # Cannot be told from one that is all there is of the old folder.
            with pytest.raises(CheckpointWriteError, match="in the way"):
                to("meta", tiny, place / "target", force=True)
            continue
        to("meta", tiny, place / "target", force=True)
        assert layout_of(place / "target") == "Meta"
        assert [path.name for path in place.iterdir()] == ["target"]
    assert (
        {"old", "new"} <= set(states) <= ({"old", "new"} if steps == "one step" else {"old", "new", "None"})
    )


def test_a_signal_while_names_change_waits_until_they_have_and_says_so(
    tmp_path: Path,
    tiny: Path,
    target: Path,
    steps: str,
    moments: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, word = ("SIGINT", "interrupted") if steps == "one step" else ("SIGTERM", "terminated")
    seen: list[str] = []
    at = [-1]

    def strike(moment: str) -> None:
        seen.append(moment)
        if len(seen) - 1 == at[0]:
            signal.raise_signal(getattr(signal, name))

    def run() -> int:
        return main(["convert", str(tiny), str(target), "--to", "hf", "--force"])

    moments(strike)
    assert run() == 0
    new, count = content(target), len(seen)
    for at[0] in range(count):
        to("meta", tiny, target, shards=1, force=True)
        seen.clear()
        capsys.readouterr()
        assert run() == {"SIGINT": 130, "SIGTERM": 143}[name], seen
        err = capsys.readouterr().err
        assert [path.name for path in target.parent.iterdir()] == ["target"], seen
        # Whoever came while the names changed hears of it when they have.
        assert content(target) == new, seen
        assert err == f"{word}: {target} was already written, and is complete\n"
    assert count >= 8


def test_a_signal_before_it_is_published_leaves_the_old_folder(
    tiny: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = content(target)

    def strike(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def again(*arguments: Any, **options: Any) -> None:
        """Ctrl-C once more, while it cleans up."""
        if next(calls):
            signal.raise_signal(signal.SIGINT)
        empty(*arguments, **options)

    empty, calls = output_folder._empty, iter([False, True])  # the claim, and the cleaning
    monkeypatch.setattr(conversion, "_check_opens", strike)
    for second in (False, True):
        if second:
            monkeypatch.setattr(output_folder, "_empty", again)
        assert main(["convert", str(tiny), str(target), "--to", "hf", "--force"]) == 130
        err = capsys.readouterr().err
        assert err == f"interrupted: {target} was not written; what was there is unchanged\n"
        assert content(target) == old
        assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_signals_come_when_it_is_over_and_handlers_are_put_back() -> None:
    came: list[int] = []

    def struck() -> None:
        with atomic_rename.uninterrupted():
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(each)
            came.append(0)

    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    ours = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            struck()
        assert came == [0, signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_run_is_refused_at_every_moment(
    tmp_path: Path, tiny: Path, target: Path, steps: str, moments: Any
) -> None:
    """It must neither empty the folder that is being published, nor the one that is being removed."""
    told: list[str] = []
    locks, inside = iter([1, 2]), [False]

    def second(moment: str) -> None:
        if inside[0]:
            return  # what the second run itself changes
        if moment.endswith("removal of .lock") and next(locks) == 2:
            return  # the old folder's, the last of its files
        inside[0] = True
        with pytest.raises(CheckpointWriteError) as caught, OutputFolder(target, 0, force=True, source=tiny):
            pytest.fail(f"it had the target for itself {moment}")
        inside[0] = False
        told.append(str(caught.value))

    moments(second)
    to("hf", tiny, target, force=True)
    assert layout_of(target) == "Hugging Face"
    assert len(told) >= 7
    assert any("another conversion is writing" in each for each in told)


def test_what_was_put_aside_is_kept_where_something_has_its_name(
    tmp_path: Path, tiny: Path, target: Path
) -> None:
    """It may be all that there is of the old folder; today's may be another program's."""
    shutil.copytree(target, target.parent / ".target.replaced")
    text = refused(CheckpointWriteError, "hf", tiny, target, tmp_path, force=True)
    assert ".target.replaced is in the way" in text
    shutil.rmtree(target)
    (target.parent / ".target.replaced").rename(tmp_path / "moved")
    (target.parent / ".target.replaced").symlink_to(tmp_path / "moved")
    refused(CheckpointWriteError, "hf", tiny, target, tmp_path, force=True)


def test_a_system_that_cannot_exchange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(atomic_rename.sys, "platform", "other")
        assert not atomic_rename._exchange(tmp_path / "a", tmp_path / "b")
    if atomic_rename.sys.platform == "linux":
        with pytest.raises(OSError, match="No such file"):
            atomic_rename._exchange(tmp_path / "a", tmp_path / "b")
