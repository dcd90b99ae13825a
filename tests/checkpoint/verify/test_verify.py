"""Laws of `verify`: an undamaged folder passes; each defect fails in its own row, and only there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path
from verify_rows import ROWS, VOCAB, WQ, edit, fails_alone, rows, write_checklist

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint import verify as verifying
from llama.checkpoint.verify import verify
from llama.errors import CheckpointMismatchError


def test_a_sound_meta_folder_passes(meta: Path, cli: Any) -> None:
    found = rows(meta)
    assert {row: each.status for row, each in found.items()} == {
        **dict.fromkeys(ROWS[:5], "pass"),
        "infilling ids": "skip",
        "rope_theta": "skip",
    }
    assert "4 files" in found["checksums"].why
    assert "21 tensors of float32 in 2 files" in found["tensors"].why
    assert "5 replicated" in found["shard agreement"].why
    stored = [torch.load(meta / f"consolidated.{i:02d}.pth", weights_only=True) for i in range(2)]
    count = sum(value.numel() for each in stored for name, value in each.items() if name != "rope.freqs")
    assert f"{count:,}" in found["values"].why
    assert str(VOCAB) in found["tokenizer"].why
    assert cli(meta) == (0, {row: each.status for row, each in found.items()})


def test_a_sound_hugging_face_folder_passes(hf: Path, cli: Any) -> None:
    found = {row: each.status for row, each in rows(hf).items()}
    skipped = ("checksums", "shard agreement", "infilling ids", "rope_theta")
    assert found == {row: "skip" if row in skipped else "pass" for row in ROWS}
    assert cli(hf) == (0, found)


def test_the_bundled_model_passes(cli: Any) -> None:
    from ranks import ROOT

    code, printed = cli(ROOT / "CodeLlama-tiny")
    assert code == 0
    assert printed["checksums"] == printed["tensors"] == printed["values"] == printed["tokenizer"] == "pass"


def test_progress_counts_the_bytes_that_are_read(meta: Path) -> None:
    counted: list[int] = []
    list(verify(meta, progress=counted.append))
    hashed = sum(path.stat().st_size for path in meta.iterdir() if path.name != "checklist.chk")
    stored = [torch.load(meta / f"consolidated.{i:02d}.pth", weights_only=True) for i in range(2)]
    values = sum(value.nbytes for each in stored for name, value in each.items() if name != "rope.freqs")
    assert sum(counted) == hashed + values


def test_a_missing_tensor_leaves_the_checksums_told(meta: Path, cli: Any) -> None:
    edit(meta, 1, lambda tensors: tensors.pop(WQ))
    write_checklist(meta)
    found = rows(meta)
    assert [each.status for each in found.values()] == ["pass", "fail", *["skip"] * 5]
    assert WQ in found["tensors"].why
    assert "consolidated.01.pth" in found["tensors"].why
    assert cli(meta)[0] == 1


@pytest.mark.parametrize("name", ["meta", "hf"])
def test_a_tensor_of_another_shape(both: Any, cli: Any, name: str) -> None:
    folder = both(name)
    path = folder / {"meta": "params.json", "hf": "config.json"}[name]
    config = json.loads(path.read_text())
    changed = {"meta": {"n_kv_heads": 4}, "hf": {"num_key_value_heads": 4}}[name]
    path.write_text(json.dumps(config | changed))
    if name == "meta":
        write_checklist(folder)
    found = rows(folder)
    assert found["tensors"].status == "fail"
    assert "[32, 64]" in found["tensors"].why or "[16, 64]" in found["tensors"].why
    assert cli(folder)[0] == 1


def test_shards_of_two_models_of_equal_shapes(meta: Path, cli: Any, tmp_path: Path) -> None:
    other = random_weights(SHAPE, VOCAB, seed=1)
    save_checkpoint(tmp_path / "other", SHAPE, other, tiny_model_path(), 2)
    shutil.copy(tmp_path / "other" / "consolidated.01.pth", meta)
    write_checklist(meta)
    fails_alone(meta, cli, "shard agreement", "consolidated.01.pth", "different models")
    with pytest.raises(CheckpointMismatchError, match=r"consolidated\.01\.pth.*different models"):
        Llama.build(meta, None, 64, 2, 1, device="cpu")


def test_shards_that_differ_in_the_last_norm(meta: Path, cli: Any) -> None:
    edit(meta, 1, lambda tensors: tensors["norm.weight"][-1:].add_(1e-6))
    write_checklist(meta)
    fails_alone(meta, cli, "shard agreement", "norm.weight", "consolidated.01.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite(meta: Path, cli: Any, value: float) -> None:
    edit(meta, 1, lambda tensors: tensors[WQ][3].fill_(value))
    write_checklist(meta)
    fails_alone(meta, cli, "values", WQ, "consolidated.01.pth", "64 values", "NaN or infinite")


def test_a_nan_that_every_shard_holds_is_a_bad_value_and_no_disagreement(meta: Path, cli: Any) -> None:
    for shard in range(2):
        edit(meta, shard, lambda tensors: tensors["norm.weight"][:1].fill_(float("nan")))
    write_checklist(meta)
    fails_alone(meta, cli, "values", "norm.weight", "1 values")


def test_a_tensor_that_is_all_zero(meta: Path, cli: Any) -> None:
    edit(meta, 0, lambda tensors: tensors[WQ].zero_())
    write_checklist(meta)
    fails_alone(meta, cli, "values", WQ, "consolidated.00.pth", "all zero")


def test_one_value_that_is_not_zero_is_enough(meta: Path) -> None:
    edit(meta, 0, lambda tensors: tensors[WQ].zero_()[-1, -1:].fill_(1e-30))
    write_checklist(meta)
    assert rows(meta)["values"].status == "pass"


@pytest.mark.parametrize("kind", ["nan", "zero"])
def test_bad_values_in_a_hugging_face_folder(hf: Path, cli: Any, kind: str) -> None:
    path = hf / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name].zero_()
    if kind == "nan":
        tensors[name][-1, -1] = float("nan")
    safetensors.torch.save_file(tensors, path)
    fails_alone(hf, cli, "values", name, path.name, skipped=("checksums",))


@pytest.mark.parametrize("window", [1, 1000])
def test_values_in_any_window_are_seen(meta: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    from llama.checkpoint import base

    monkeypatch.setattr(base, "_WINDOW", window)
    assert rows(meta)["values"].status == "pass"
    for row in (0, 17, 31):
        edit(meta, 1, lambda tensors, row=row: tensors[WQ][row, 5:7].fill_(float("inf")))
    assert "6 values" in rows(meta)["values"].why


def test_quick_reads_neither_checksums_nor_values(
    meta: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(meta, 0, lambda tensors: tensors[WQ].fill_(float("nan")))
    found = rows(meta)
    assert (found["checksums"].status, found["values"].status) == ("fail", "fail")

    def never(*_: object) -> Any:
        raise AssertionError("a file was hashed")

    monkeypatch.setattr(verifying, "_sums", never)
    counted: list[int] = []
    quick = rows(meta, quick=True, progress=counted.append)
    for row in ("checksums", "values"):
        assert (quick[row].status, quick[row].why) == ("skip", "--quick")
    assert not counted
    assert quick["tensors"].status == quick["shard agreement"].status == quick["tokenizer"].status == "pass"
    assert cli(meta, "--quick")[0] == 0


def test_verify_changes_nothing(meta: Path) -> None:
    before = {path.name: path.read_bytes() for path in meta.iterdir()}
    list(verify(meta))
    assert {path.name: path.read_bytes() for path in meta.iterdir()} == before
    open_checkpoint(meta)
