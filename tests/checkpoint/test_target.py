"""Laws of what `convert` replaces, follows and says: only a conversion's own files go, at every moment there is a whole
folder or none, no link leads out of a folder, and what is published has been opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import (
    Converted,
    atomic_rename,
    companion_files,
    conversion,
    convert,
    output_folder,
    plan,
)
from llama.checkpoint.convert.file_names import CONFIG, is_written
from llama.checkpoint.convert.output_folder import OutputFolder
from llama.checkpoint.layouts.hf_config import config_of, params_of
from llama.checkpoint.layouts.hugging_face import COMPANION_FILES, hf_name
from llama.checkpoint.weight_files.output_file import OutputFile, create
from llama.cli import main
from llama.errors import CheckpointError, CheckpointFormatError, CheckpointWriteError
from llama.printable import printable

TINY: dict[str, Any] = {**SHAPE, "dim": 32, "n_layers": 1, "n_heads": 4}
WEIGHTS = random_weights(TINY, tiny_tokenizer().n_words)
EMBEDDING = "tok_embeddings.weight"


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "source" / "meta", TINY, WEIGHTS, tiny_model_path(), 2)


@pytest.fixture
def target(tmp_path: Path, meta: Path) -> Path:
    """A checkpoint that a conversion wrote, in one shard."""
    to("meta", meta, tmp_path / "out" / "target", shards=1)
    return tmp_path / "out" / "target"


def to(layout: str, source: Path, target: Path, **options: Any) -> Converted:
    return convert(open_checkpoint(source), target, layout=layout, **options)


def content(folder: Path) -> dict[str, Any]:
    """Everything below a folder: bytes of files, where links lead, None for folders and what else there is."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def refused(
    error: type[CheckpointError], layout: str, source: Path, target: Path, everything: Path, **options: Any
) -> str:
    """Everything stays as it was, and nothing is added."""
    before = content(everything)
    with pytest.raises(CheckpointError) as caught:
        to(layout, source, target, **options)
    assert type(caught.value) is error, repr(caught.value)
    assert content(everything) == before
    return str(caught.value)


# ---- what may go ---------------------------------------------------------------------------------------

FOREIGN = (
    "model-notes.json",
    "consolidated.backup.pth",
    "consolidated.pth",
    "consolidated.0.pth",
    "consolidated.000.pth",
    "consolidated.00.pth.bak",
    "consolidated.00.pth~",
    "consolidated.00 copy.pth",
    "my consolidated.00.pth",
    "consolidated.\u0660\u0660.pth",
    "model.safetensors.bak",
    "model-1-of-2.safetensors",
    "model-00000-of-00002.safetensors",
    "model-00003-of-00002.safetensors",
    "model-00001-of-00001.safetensors",
    "model-00001-of-00002.safetensors.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "params.json\n",
    "PARAMS.JSON",
    "params.json.orig",
    "xparams.json",
    "tokenizer-old.json",
    "tokenizer_v2.model",
    "README.md",
    "LICENSE",
    ".gitattributes",
    ".DS_Store",
    ".env",
    ".lock2",
    "thesis.tex",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_name_that_no_conversion_writes_keeps_a_folder(
    tmp_path: Path, meta: Path, target: Path, name: str
) -> None:
    (target / name).write_text("mine")
    text = refused(CheckpointWriteError, "hf", meta, target, tmp_path, force=True)
    assert printable(name) in printable(text)
    assert "does not look like a checkpoint folder" in text
    assert not is_written(name)


@pytest.mark.parametrize("kind", ["folder", "full folder", "link", "link to nowhere", "fifo"])
@pytest.mark.parametrize("name", ["tokenizer.json", ".lock", "consolidated.01.pth"])
def test_what_is_no_file_keeps_a_folder(
    tmp_path: Path, meta: Path, target: Path, name: str, kind: str
) -> None:
    path = target / name
    (tmp_path / "elsewhere").write_text("mine")
    if kind.endswith("folder"):
        path.mkdir()
        if kind == "full folder":
            (path / "thesis.tex").write_text("mine")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere" if kind == "link" else tmp_path / "nowhere")
    assert name in refused(CheckpointWriteError, "hf", meta, target, tmp_path, force=True)


def with_everything(hf: Path) -> Path:
    """All files that go along from one Hugging Face folder to the next."""
    for name in COMPANION_FILES:
        if not (hf / name).exists():
            (hf / name).write_text("{}")
    return hf


def test_whatever_a_conversion_writes_it_may_replace(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layout over every other; each leaves just its own files."""
    hf = tmp_path / "hf"
    to("hf", meta, hf)
    with_everything(hf)
    alone = {}
    for turn in range(2):
        for layout, source, limit in (
            ("meta", meta, 10**9),
            ("hf", hf, 10**9),
            ("hf", meta, 20_000),
            ("hf", hf, 1),
        ):
            monkeypatch.setattr(plan, "_LARGEST_FILE", limit)
            done = to(layout, source, tmp_path / "over", force=turn > 0 or (tmp_path / "over").exists())
            found = sorted(path.name for path in (tmp_path / "over").iterdir())
            assert list(done.files) == found
            assert all(map(is_written, found)), found
            assert found == alone.setdefault((layout, source, limit), found)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "over", "source"]
    assert len({tuple(each) for each in alone.values()}) == 4


def test_a_writer_whose_name_is_not_in_the_list_publishes_nothing(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or --force would refuse, some day, what a conversion wrote."""
    monkeypatch.setattr(conversion, "CHECKLIST", "sums.txt")
    with pytest.raises(AssertionError):
        to("meta", meta, tmp_path / "out" / "b")
    assert not (tmp_path / "out" / "b").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "model-notes.json"])
@pytest.mark.parametrize("beside", [".target.unfinished", ".target.replaced"])
def test_a_folder_beside_the_target_keeps_what_no_conversion_wrote(
    tmp_path: Path, meta: Path, target: Path, beside: str, name: str
) -> None:
    (target.parent / beside).mkdir()
    (target.parent / beside / name).write_text("mine")
    text = refused(CheckpointWriteError, "hf", meta, target, tmp_path, force=True)
    assert f"{beside} is in the way" in text


def test_a_file_that_comes_in_the_last_moment_is_kept_and_told(
    tmp_path: Path, meta: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(new: Path, old: Path, aside: Path) -> Path:
        (old / "thesis.tex").write_text("mine")
        return atomic_rename.take_name(new, old, aside)

    monkeypatch.setattr(output_folder, "take_name", late)
    with pytest.raises(
        CheckpointWriteError, match="is written and complete; but the folder that it replaced"
    ) as caught:
        to("hf", meta, target, force=True)
    assert open_checkpoint(target).layout == "Hugging Face"
    left = target.parent / ".target.unfinished"
    assert str(left) in str(caught.value)
    assert content(left) == {"thesis.tex": b"mine"}
    assert ".lock" not in content(target)


def test_a_folder_of_another_user_is_not_worked_in(
    tmp_path: Path, meta: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target.parent / ".target.unfinished").mkdir()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "another user" in refused(CheckpointWriteError, "hf", meta, target, tmp_path, force=True)


# ---- at every moment, whole ------------------------------------------------------------------------------


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
    """Calls a function before and behind each change of a name in the publishing of a folder, and each removal."""

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
    tmp_path: Path, meta: Path, target: Path, steps: str, moments: Any
) -> None:
    """What a kill leaves is what is on the disk at that moment; the next run then replaces it."""
    old, left = content(target), tmp_path / "left"
    left.mkdir()
    watching = [True]

    def snapshot(_: str) -> None:
        if watching:
            shutil.copytree(target.parent, left / f"{len(list(left.iterdir())):03d}", symlinks=True)

    moments(snapshot)
    to("hf", meta, target, force=True)
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
                to("meta", meta, place / "target", force=True)
            continue
        to("meta", meta, place / "target", force=True)
        assert layout_of(place / "target") == "Meta"
        assert [path.name for path in place.iterdir()] == ["target"]
    assert (
        {"old", "new"} <= set(states) <= ({"old", "new"} if steps == "one step" else {"old", "new", "None"})
    )


def test_a_signal_while_names_change_waits_until_they_have_and_says_so(
    tmp_path: Path,
    meta: Path,
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
        return main(["convert", str(meta), str(target), "--to", "hf", "--force"])

    moments(strike)
    assert run() == 0
    new, count = content(target), len(seen)
    for at[0] in range(count):
        to("meta", meta, target, shards=1, force=True)
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
    meta: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        assert main(["convert", str(meta), str(target), "--to", "hf", "--force"]) == 130
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
    tmp_path: Path, meta: Path, target: Path, steps: str, moments: Any
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
        with pytest.raises(CheckpointWriteError) as caught, OutputFolder(target, 0, force=True, source=meta):
            pytest.fail(f"it had the target for itself {moment}")
        inside[0] = False
        told.append(str(caught.value))

    moments(second)
    to("hf", meta, target, force=True)
    assert layout_of(target) == "Hugging Face"
    assert len(told) >= 7
    assert any("another conversion is writing" in each for each in told)


def test_what_was_put_aside_is_kept_where_something_has_its_name(
    tmp_path: Path, meta: Path, target: Path
) -> None:
    """It may be all that there is of the old folder; today's may be another program's."""
    shutil.copytree(target, target.parent / ".target.replaced")
    text = refused(CheckpointWriteError, "hf", meta, target, tmp_path, force=True)
    assert ".target.replaced is in the way" in text
    shutil.rmtree(target)
    (target.parent / ".target.replaced").rename(tmp_path / "moved")
    (target.parent / ".target.replaced").symlink_to(tmp_path / "moved")
    refused(CheckpointWriteError, "hf", meta, target, tmp_path, force=True)


def test_a_system_that_cannot_exchange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(atomic_rename.sys, "platform", "other")
        assert not atomic_rename._exchange(tmp_path / "a", tmp_path / "b")
    if atomic_rename.sys.platform == "linux":
        with pytest.raises(OSError, match="No such file"):
            atomic_rename._exchange(tmp_path / "a", tmp_path / "b")


# ---- links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".lock", "params.json", "model.safetensors"])
@pytest.mark.parametrize("there", [False, True])
def test_a_link_in_an_unfinished_folder_creates_and_changes_nothing_elsewhere(
    tmp_path: Path, meta: Path, name: str, there: bool
) -> None:
    left = tmp_path / "out" / ".b.unfinished"
    left.mkdir(parents=True)
    if there:
        (tmp_path / "elsewhere").write_text("mine")
    (left / name).symlink_to(tmp_path / "elsewhere")
    text = refused(CheckpointWriteError, "meta", meta, tmp_path / "out" / "b", tmp_path)
    assert f"{name}, which" in text or f"it holds {name}" in text


def test_a_lock_is_not_opened_through_a_link(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came behind the look at the folder."""
    left = tmp_path / "out" / ".b.unfinished"
    left.mkdir(parents=True)
    (left / ".lock").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(output_folder, "_strange", lambda _: [])
    refused(CheckpointWriteError, "meta", meta, tmp_path / "out" / "b", tmp_path)


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_nothing_is_written_through_a_link(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """One that comes while it writes, in place of each file that it makes."""
    files = to(layout, meta, tmp_path / "sound").files
    claim = OutputFolder._claim
    for name in files:

        def planted(self: OutputFolder, name: str = name) -> None:
            claim(self)
            (self.folder / name).symlink_to(tmp_path / "elsewhere")

        monkeypatch.setattr(OutputFolder, "_claim", planted)
        with pytest.raises(CheckpointWriteError):
            to(layout, meta, tmp_path / "out" / "b")
        assert not (tmp_path / "elsewhere").exists(), name


def test_a_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for make in (OutputFile, lambda path: create(path, b"x")):
        with pytest.raises(FileExistsError):
            make(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"
    assert create(tmp_path / "b", b"x") == "9dd4e461268c8034f5c8564e155c67a6"


@pytest.fixture
def hf(tmp_path: Path, meta: Path) -> Path:
    to("hf", meta, tmp_path / "source" / "hf")
    return with_everything(tmp_path / "source" / "hf")


@pytest.mark.parametrize("name", ["config.json", *COMPANION_FILES])
def test_a_link_out_of_the_source_is_not_followed_into_the_copy(tmp_path: Path, hf: Path, name: str) -> None:
    (hf / name).rename(tmp_path / "secret")
    (hf / name).symlink_to(tmp_path / "secret")
    text = refused(CheckpointFormatError, "hf", hf, tmp_path / "b", tmp_path)
    assert f"{hf / name} is a link to {tmp_path / 'secret'}" in text


def hub(folder: Path, hf: Path) -> Path:
    """A model as the hub's cache holds it: a snapshot of links to blobs."""
    snapshot = folder / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "models--a--b" / "blobs").mkdir()
    for number, path in enumerate(sorted(hf.iterdir())):
        shutil.copy(path, folder / "models--a--b" / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_and_links_within_a_folder_are_followed(
    tmp_path: Path, hf: Path
) -> None:
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    to("hf", hf, tmp_path / "plain")
    snapshot = hub(tmp_path / "cache", hf)
    to("hf", snapshot, tmp_path / "b")
    assert content(tmp_path / "b") == content(tmp_path / "plain")
    (tmp_path / "link").symlink_to(snapshot)
    to("hf", tmp_path / "link", tmp_path / "c")
    (hf / "chat_template.jinja").rename(hf / "other.jinja")
    (hf / "chat_template.jinja").symlink_to("other.jinja")
    to("hf", hf, tmp_path / "d")
    assert content(tmp_path / "b") == content(tmp_path / "c") == content(tmp_path / "d")


def test_a_model_in_a_folder_of_a_snapshot_is_one_too(tmp_path: Path, hf: Path) -> None:
    snapshot = hub(tmp_path / "cache", hf)
    (snapshot / "sub").mkdir()
    for path in [path for path in snapshot.iterdir() if path.is_symlink()]:
        (snapshot / "sub" / path.name).symlink_to(Path("..") / os.readlink(path))
    to("hf", snapshot / "sub", tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_bytes()


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell that stands in it would be in a folder without a name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = refused(CheckpointWriteError, "meta", meta, Path("."), tmp_path, force=True)
    assert "the current folder" in text


def test_a_vocab_size_that_config_json_leaves_out_is_written(tmp_path: Path, hf: Path) -> None:
    """Transformers takes 32,000 where it is missing."""
    config = json.loads((hf / "config.json").read_text())
    rows = config.pop("vocab_size")
    (hf / "config.json").write_text(json.dumps(config))
    to("hf", hf, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config | {"vocab_size": rows}


@pytest.mark.parametrize("kind", ["blobs are a link", "link beside the blobs", "no snapshot"])
def test_a_folder_that_looks_like_the_hubs_cache_leads_nowhere_else(
    tmp_path: Path, hf: Path, kind: str
) -> None:
    snapshot = hub(tmp_path / "cache", hf)
    model = snapshot.parent.parent
    if kind == "blobs are a link":
        (model / "blobs").rename(tmp_path / "secrets")
        (model / "blobs").symlink_to(tmp_path / "secrets")
    elif kind == "link beside the blobs":
        (model / "blobs").rename(model / "blobs2")
        for path in snapshot.iterdir():
            target = model / "blobs2" / Path(os.readlink(path)).name
            path.unlink()
            path.symlink_to(target)
    else:
        (model / "snapshots").rename(model / "folders")
        snapshot = model / "folders" / "0123"
    assert "is a link to" in refused(CheckpointFormatError, "hf", snapshot, tmp_path / "b", tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", b"root:x:0:0"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}'),
        ("generation_config.json", b"[1]"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("added_tokens.json", b"x" * 2000),
    ],
)
def test_what_is_not_what_its_name_says_does_not_go_along(
    tmp_path: Path, hf: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: bytes
) -> None:
    (hf / name).write_bytes(text)
    if name == "added_tokens.json":
        (hf / name).write_bytes(b" " * 2_000_000 + b"{}")
        monkeypatch.setattr(companion_files, "_MOST", 1_000_000)
    assert str(hf / name) in refused(CheckpointFormatError, "hf", hf, tmp_path / "b", tmp_path)
    to("meta", hf, tmp_path / "c")  # where it does not go along, it does not matter


# ---- opened before it is called done ---------------------------------------------------------------------


def longer(content: dict[str, Any], **change: Any) -> dict[str, Any]:
    return content | change


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("layout", "fault", "words"),
    [
        ("hf", (plan, "hf_name", lambda name: hf_name(name) + "s"), "cannot be opened"),
        (
            "hf",
            (conversion, "config_of", lambda *a: longer(config_of(*a), num_hidden_layers=2)),
            "cannot be opened",
        ),
        (
            "hf",
            (conversion, "config_of", lambda *a: longer(config_of(*a), rope_theta=1e4)),
            "rope_theta is 10000.0, not 1000000.0",
        ),
        (
            "hf",
            (conversion, "config_of", lambda *a: longer(config_of(*a), rms_norm_eps=1e-3)),
            "norm_eps is 0.001",
        ),
        ("hf", (conversion, "tokenizer_files", lambda *_: {"tokenizer.model": b"x"}), "cannot be opened"),
        ("hf", (conversion, "tokenizer_files", lambda *_: {}), "tokenizer.model is missing"),
        ("meta", (plan, "shard_name", lambda shard: f"consolidated.{shard + 1:02d}.pth"), "cannot be opened"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_what_a_reader_refuses_is_not_published(
    tmp_path: Path,
    meta: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    fault: tuple[Any, str, Any],
    words: str,
    force: bool,
) -> None:
    """A writer with a fault: another model, or one that nobody can read."""
    monkeypatch.setattr(*fault)
    place = target if force else target.parent / "new"
    text = refused(CheckpointWriteError, layout, meta, place, tmp_path, force=force)
    assert words in text
    assert "Nothing was left behind" in text


def test_params_and_dtype_of_what_was_written_are_those_asked_for(
    tmp_path: Path, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        conversion, "params_of", lambda args: longer(params_of(args), n_kv_heads=4, n_heads=4)
    )
    refused(CheckpointWriteError, "meta", hf, tmp_path / "b", tmp_path)
    monkeypatch.undo()

    class Narrow(conversion.SafetensorsWriter):
        def __init__(self, path: Path, shapes: Any, dtype: torch.dtype) -> None:
            super().__init__(path, shapes, torch.bfloat16)

        def write(self, chunks: Iterator[torch.Tensor]) -> None:
            super().write(chunk.bfloat16() for chunk in chunks)

    monkeypatch.setattr(conversion, "SafetensorsWriter", Narrow)
    text = refused(CheckpointWriteError, "hf", hf, tmp_path / "b", tmp_path)
    assert "dtype is bfloat16, not float32" in text


def test_what_is_written_is_sound_for_others_as_well(tmp_path: Path, hf: Path) -> None:
    to("hf", hf, tmp_path / "b")
    found = safetensors.torch.load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(found["model.embed_tokens.weight"], WEIGHTS[EMBEDDING])
    config = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert config["num_hidden_layers"] == 1
