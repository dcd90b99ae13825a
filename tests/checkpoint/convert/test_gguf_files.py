"""Laws of a GGUF target: it appears complete or not at all, and replaces nothing but a GGUF that is not the source."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conversions import TINY, TINY_WEIGHTS, content
from tiny_models import save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import convert_to_gguf, output_folder
from llama.checkpoint.convert import gguf as writing
from llama.cli import main
from llama.errors import CheckpointError, CheckpointWriteError, ConfigError, LlamaError


@pytest.fixture
def done(tmp_path: Path, tiny: Path) -> Path:
    """A file that a conversion wrote, alone in its folder."""
    (tmp_path / "out").mkdir()
    convert_to_gguf(open_checkpoint(tiny), tmp_path / "out" / "x.gguf")
    return tmp_path / "out" / "x.gguf"


def refused(
    source: Path, target: Path, error: type[LlamaError] = CheckpointWriteError, **options: Any
) -> str:
    """The message. Nothing beside the target has changed."""
    before = content(target.parent)
    with pytest.raises(LlamaError) as caught:
        convert_to_gguf(open_checkpoint(source), target, **options)
    assert type(caught.value) is error, repr(caught.value)
    assert content(target.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_replaced_by_force_alone(tiny: Path, done: Path) -> None:
    assert "exists; choose another name, or pass --force" in refused(tiny, done)
    old = done.read_bytes()
    convert_to_gguf(open_checkpoint(tiny, quantize="int8"), done, force=True)
    assert [path.name for path in done.parent.iterdir()] == ["x.gguf"]
    assert done.read_bytes() != old
    assert open_checkpoint(done).quantization == "Q8_0"


def test_force_replaces_nothing_but_a_gguf(tiny: Path, done: Path) -> None:
    other = done.with_name("notes.gguf")
    other.write_text("GGU: my notes")
    assert "it is not a GGUF file; remove it yourself" in refused(tiny, other, force=True)
    link = done.with_name("link.gguf")
    link.symlink_to(done)
    assert "it is a symbolic link" in refused(tiny, link, force=True)
    link.unlink()
    link.symlink_to(done.with_name("nowhere"))
    assert "it is a symbolic link" in refused(tiny, link, force=True)
    folder = done.with_name("folder.gguf")
    folder.mkdir()
    assert "it is not a file" in refused(tiny, folder, force=True)


def test_the_source_is_never_replaced(done: Path) -> None:
    assert "is a file of the source" in refused(done, done, force=True)
    os.link(done, done.with_name("same.gguf"))
    assert "is a file of the source" in refused(done, done.with_name("same.gguf"), force=True)


def test_a_name_that_is_no_ggufs_is_refused(tiny: Path, tmp_path: Path) -> None:
    assert "give it a name that ends in .gguf" in refused(tiny, tmp_path / "x.bin", ConfigError)
    assert "pass --dtype" in refused(tiny, tmp_path / "x.gguf", ConfigError, dtype=torch.float64)


def test_a_value_that_the_dtype_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    weights = {name: value.clone() for name, value in TINY_WEIGHTS.items()}
    weights["tok_embeddings.weight"][1, 1] = 1e6
    folder = save_checkpoint(tmp_path / "source", TINY, weights, tiny_model_path())
    (tmp_path / "out").mkdir()
    told = refused(folder, tmp_path / "out" / "x.gguf", ConfigError, dtype=torch.float16)
    assert "tok_embeddings.weight holds values up to 1e+06" in told


def test_a_disk_that_is_too_small_or_full_leaves_nothing(
    tiny: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(output_folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
        assert "but its disk has 0.00 GB free" in refused(tiny, done.with_name("y.gguf"))

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "packed", full)
    before = content(done.parent)
    with pytest.raises(CheckpointWriteError, match="the disk or your quota is full"):
        convert_to_gguf(open_checkpoint(tiny, quantize="int8"), done, force=True)
    assert content(done.parent) == before


def test_what_does_not_read_back_or_open_is_not_kept(
    tiny: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_again = writing.open_checkpoint

    def damaged(path: Path) -> Any:
        with path.open("r+b") as file:
            file.write(b"GGUX")
        return open_again(path)

    monkeypatch.setattr(writing, "open_checkpoint", damaged)
    assert "cannot be opened" in refused(tiny, done.with_name("y.gguf"))
    monkeypatch.setattr(writing, "open_checkpoint", lambda _: open_again(tiny))
    assert "layout is Meta, not GGUF" in refused(tiny, done.with_name("y.gguf"))


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Calls a function before and after each step that changes names, and before the file is checked."""

    def watch(call: Callable[[str], None]) -> None:
        replace, unlink, check = Path.replace, Path.unlink, writing._check

        def replaced(path: Path, new: Path) -> Path:
            call("before the name")
            found = replace(path, new)
            call("behind the name")
            return found

        def unlinked(path: Path, *_: Any) -> None:
            call(f"before the removal of {path.name}")
            unlink(path)
            call(f"behind the removal of {path.name}")

        def checked(*arguments: Any) -> None:
            call("before the check")
            check(*arguments)
            call("behind the check")

        monkeypatch.setattr(Path, "replace", replaced)
        monkeypatch.setattr(Path, "unlink", unlinked)
        monkeypatch.setattr(writing, "_check", checked)

    return watch


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, tiny: Path, done: Path, moments: Any
) -> None:
    old, left = done.read_bytes(), tmp_path / "left"
    left.mkdir()
    watching = [True]

    def snapshot(_: str) -> None:
        if watching:
            shutil.copytree(done.parent, left / f"{len(list(left.iterdir())):03d}")

    moments(snapshot)
    convert_to_gguf(open_checkpoint(tiny, quantize="int8"), done, force=True)
    watching.clear()
    new, states = done.read_bytes(), []
    for place in sorted(left.iterdir()):
        found = (place / "x.gguf").read_bytes()
        assert found in (old, new)
        states.append("old" if found == old else "new")
        unfinished = place / ".x.gguf.unfinished"
        if unfinished.exists():
            with pytest.raises(CheckpointError):  # no loader takes it for a checkpoint
                open_checkpoint(unfinished)
        convert_to_gguf(open_checkpoint(tiny, quantize="int8"), place / "x.gguf", force=True)
        assert content(place) == {"x.gguf": new}
    assert {"old", "new"} == set(states)
    assert states == sorted(states, reverse=True)


def test_a_signal_leaves_the_old_file_and_says_so(
    tiny: Path, done: Path, moments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    old = done.read_bytes()
    at = ["before the check"]

    def strike(moment: str) -> None:
        if moment == at[0]:
            at[0] = ""
            signal.raise_signal(signal.SIGINT)

    moments(strike)
    run = ["convert", str(tiny), str(done), "--quantize", "int8", "--force"]
    assert main(run) == 130
    told = capsys.readouterr().err
    assert told == f"interrupted: {done} was not written; what was there is unchanged\n"
    assert content(done.parent) == {"x.gguf": old}
    at[0] = "before the name"  # the signal waits until the file has its name
    assert main(run) == 130
    assert capsys.readouterr().err == f"interrupted: {done} was already written, and is complete\n"
    assert [path.name for path in done.parent.iterdir()] == ["x.gguf"]
    assert open_checkpoint(done).quantization == "Q8_0"


def test_a_second_run_is_refused_while_one_writes(tiny: Path, done: Path, moments: Any) -> None:
    told: list[str] = []

    def again(moment: str) -> None:
        if moment == "before the check" and not told:
            with pytest.raises(CheckpointWriteError) as caught:
                convert_to_gguf(open_checkpoint(tiny), done, force=True)
            told.append(str(caught.value))

    moments(again)
    convert_to_gguf(open_checkpoint(tiny, quantize="int8"), done, force=True)
    assert "another conversion is writing" in told[0]
    assert open_checkpoint(done).quantization == "Q8_0"


def test_the_command_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.gguf"
    assert main(["convert", str(tiny), str(target), "--quantize", "int8"]) == 0
    told = capsys.readouterr().out
    assert "in Q8_0 (" in told
    assert str(target) in told
    for name, arguments, why in (
        ("x.gguf", ["--to", "hf"], "ends in .gguf, which is a file's name, but --to says hf"),
        ("x.gguf", ["--mp", "2"], "has no model-parallel shards"),
        ("y", ["--to", "gguf"], "does not end in .gguf, but --to says gguf"),
        ("y", ["--to", "meta", "--quantize", "int4"], "--to meta writes plain weights"),
        ("y", [], "name the layout of DST by --to"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["convert", str(tiny), str(tmp_path / name), *arguments])
        assert end.value.code == 2
        assert why in capsys.readouterr().err
    assert main(["convert", str(target), str(tmp_path / "z.gguf"), "--quantize", "int4"]) == 1
    assert f"{target} is quantized already (Q8_0)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "x.gguf"]
