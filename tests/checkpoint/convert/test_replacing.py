"""Laws of `--force`: only files that a conversion writes are removed, for a folder that opens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conversions import (
    TINY_WEIGHTS,
    content,
    refused,
    to,
    with_everything,
)

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import (
    atomic_rename,
    conversion,
    output_folder,
    plan,
)
from llama.checkpoint.convert.file_names import CONFIG, is_written
from llama.checkpoint.layouts.hf_config import config_of, params_of
from llama.checkpoint.layouts.hugging_face import hf_name
from llama.errors import CheckpointWriteError
from llama.printable import printable

EMBEDDING = "tok_embeddings.weight"


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
    tmp_path: Path, tiny: Path, target: Path, name: str
) -> None:
    (target / name).write_text("mine")
    text = refused(CheckpointWriteError, "hf", tiny, target, tmp_path, force=True)
    assert printable(name) in printable(text)
    assert "does not look like a checkpoint folder" in text
    assert not is_written(name)


@pytest.mark.parametrize("kind", ["folder", "full folder", "link", "link to nowhere", "fifo"])
@pytest.mark.parametrize("name", ["tokenizer.json", ".lock", "consolidated.01.pth"])
def test_what_is_no_file_keeps_a_folder(
    tmp_path: Path, tiny: Path, target: Path, name: str, kind: str
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
    assert name in refused(CheckpointWriteError, "hf", tiny, target, tmp_path, force=True)


def test_whatever_a_conversion_writes_it_may_replace(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layout over every other; each leaves just its own files."""
    hf = tmp_path / "hf"
    to("hf", tiny, hf)
    with_everything(hf)
    alone = {}
    for turn in range(2):
        for layout, source, limit in (
            ("meta", tiny, 10**9),
            ("hf", hf, 10**9),
            ("hf", tiny, 20_000),
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
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or --force would refuse, some day, what a conversion wrote."""
    monkeypatch.setattr(conversion, "CHECKLIST", "sums.txt")
    with pytest.raises(AssertionError):
        to("meta", tiny, tmp_path / "out" / "b")
    assert not (tmp_path / "out" / "b").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "model-notes.json"])
@pytest.mark.parametrize("beside", [".target.unfinished", ".target.replaced"])
def test_a_folder_beside_the_target_keeps_what_no_conversion_wrote(
    tmp_path: Path, tiny: Path, target: Path, beside: str, name: str
) -> None:
    (target.parent / beside).mkdir()
    (target.parent / beside / name).write_text("mine")
    text = refused(CheckpointWriteError, "hf", tiny, target, tmp_path, force=True)
    assert f"{beside} is in the way" in text


def test_a_file_that_comes_in_the_last_moment_is_kept_and_told(
    tmp_path: Path, tiny: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(new: Path, old: Path, aside: Path) -> Path:
        (old / "thesis.tex").write_text("mine")
        return atomic_rename.take_name(new, old, aside)

    monkeypatch.setattr(output_folder, "take_name", late)
    with pytest.raises(
        CheckpointWriteError, match="is written and complete; but the folder that it replaced"
    ) as caught:
        to("hf", tiny, target, force=True)
    assert open_checkpoint(target).layout == "Hugging Face"
    left = target.parent / ".target.unfinished"
    assert str(left) in str(caught.value)
    assert content(left) == {"thesis.tex": b"mine"}
    assert ".lock" not in content(target)


def test_a_folder_of_another_user_is_not_worked_in(
    tmp_path: Path, tiny: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target.parent / ".target.unfinished").mkdir()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "another user" in refused(CheckpointWriteError, "hf", tiny, target, tmp_path, force=True)


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell that stands in it would be in a folder without a name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = refused(CheckpointWriteError, "meta", tiny, Path("."), tmp_path, force=True)
    assert "the current folder" in text


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
    tiny: Path,
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
    text = refused(CheckpointWriteError, layout, tiny, place, tmp_path, force=force)
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
    assert torch.equal(found["model.embed_tokens.weight"], TINY_WEIGHTS[EMBEDDING])
    config = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert config["num_hidden_layers"] == 1
