"""Laws of `verify`: a sound folder passes; each defect fails in the row it belongs to, and the other rows are told
all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import SHAPE, ffn_dim, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import public_tokenizer, tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint import verify as verifying
from llama.checkpoint.verify import Finding, verify
from llama.checkpoint.weight_files.pth import open_pth, records_of
from llama.cli import main
from llama.errors import CheckpointMismatchError
from llama.sizing import family as members
from llama.sizing.family import MEMBERS, Member, args_of

ROWS = ["checksums", "tensors", "shard agreement", "values", "tokenizer", "infilling ids", "rope_theta"]
WQ = "layers.0.attention.wq.weight"
VOCAB = tiny_tokenizer().n_words


def write_checklist(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "checklist.chk")
    lines = [f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "checklist.chk").write_text("".join(lines))


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """Two shards, with a checklist."""
    folder = save_checkpoint(tmp_path / "meta", SHAPE, random_weights(SHAPE, VOCAB), tiny_model_path(), 2)
    write_checklist(folder)
    return folder


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    hugging_face_twin(SHAPE, random_weights(SHAPE, VOCAB)).save_pretrained(tmp_path / "hf")
    shutil.copy(tiny_model_path(), tmp_path / "hf" / "tokenizer.model")
    return tmp_path / "hf"


@pytest.fixture
def both(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    return lambda name: request.getfixturevalue(name)


def rows(folder: Path, **options: Any) -> dict[str, Finding]:
    found = list(verify(folder, **options))
    assert [each.name for each in found] == ROWS
    return {each.name: each for each in found}


def edit(folder: Path, shard: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str]]]:
    """Exit code and the status of each row that the command printed."""

    def run(folder: Path, *more: str) -> tuple[int, dict[str, str]]:
        capsys.readouterr()  # transformers' progress bars
        code = main(["verify", str(folder), *more])
        out, err = capsys.readouterr()
        printed = {line[6:21].strip(): line[:4] for line in out.splitlines()}
        assert list(printed) == ROWS, out
        failed = list(printed.values()).count("fail")
        assert err == (f"error: {failed} of the checks failed\n" if failed else "")
        return code, printed

    return run


def fails_alone(folder: Path, cli: Any, name: str, *words: object, skipped: tuple[str, ...] = ()) -> None:
    """The defect is told in its own row, with the words; the rows that do not hang on it are what they were."""
    found = rows(folder)
    assert found[name].status == "fail"
    for word in words:
        assert str(word) in found[name].why, f"{word!r} is not in {found[name].why!r}"
    assert "\n" not in found[name].why
    others = {row: each.status for row, each in found.items() if row != name}
    assert "fail" not in others.values(), found
    for row in ("checksums", "tensors", "values", "tokenizer"):
        if row != name:
            assert others[row] == ("skip" if row in skipped else "pass"), found[row]
    code, printed = cli(folder)
    assert code == 1
    assert printed == {row: each.status for row, each in found.items()}


# ---- sound folders ------------------------------------------------------------------------------------


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


# ---- checksums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model", "consolidated.01.pth"])
def test_a_wrong_md5(meta: Path, cli: Any, name: str) -> None:
    path = meta / "checklist.chk"
    digest = hashlib.md5((meta / name).read_bytes()).hexdigest()
    path.write_text(path.read_text().replace(digest, f"{int(digest, 16) ^ 1:032x}"))
    fails_alone(meta, cli, "checksums", name, "checklist.chk")


def test_one_flipped_bit_of_a_weight(meta: Path, cli: Any) -> None:
    path = meta / "consolidated.00.pth"
    data = bytearray(path.read_bytes())
    at = path.read_bytes().index(torch.load(path, weights_only=True)[WQ].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    fails_alone(meta, cli, "checksums", "consolidated.00.pth")


def flip_in(path: Path, name: str) -> None:
    """The last bit of one value: still finite, of the same shape, in the same place."""
    stored = open_pth(path)[name].clone()
    with path.open("r+b") as file:
        at = file.read().index(stored.reshape(-1)[:8].view(torch.uint8).numpy().tobytes())
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 1]))


def test_without_a_checklist_the_crcs_in_a_pth_are_checked(meta: Path, cli: Any) -> None:
    (meta / "checklist.chk").unlink()
    found = rows(meta)["checksums"]
    assert found.status == "pass"
    assert "2 of 2 weight files have the CRCs" in found.why
    flip_in(meta / "consolidated.01.pth", WQ)
    key = list(torch.load(meta / "consolidated.01.pth", weights_only=True)).index(WQ)
    fails_alone(meta, cli, "checksums", "consolidated.01.pth is damaged", f"consolidated.01/data/{key}'")
    assert rows(meta, quick=True)["checksums"].status == "skip"


def test_a_checklist_of_a_damaged_pth_does_not_hide_it(meta: Path, cli: Any) -> None:
    flip_in(meta / "consolidated.00.pth", WQ)
    write_checklist(meta)
    fails_alone(meta, cli, "checksums", "consolidated.00.pth is damaged", "CRC")


def test_a_pth_that_was_saved_without_crcs_is_sound(meta: Path) -> None:
    (meta / "checklist.chk").unlink()
    had = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        edit(meta, 0, lambda _: None)
    finally:
        torch.serialization.set_crc32_options(had)
    found = rows(meta)["checksums"]
    assert found.status == "pass"
    assert "1 of 2 weight files have the CRCs" in found.why


def test_the_crcs_in_a_bin_are_checked(hf: Path, cli: Any) -> None:
    path = hf / "pytorch_model.bin"
    torch.save(safetensors.torch.load_file(hf / "model.safetensors"), path)
    (hf / "model.safetensors").unlink()
    assert rows(hf)["checksums"].status == "pass"
    flip_in(path, "model.layers.0.self_attn.q_proj.weight")
    fails_alone(hf, cli, "checksums", "pytorch_model.bin is damaged")


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_crcs_are_the_same_however_a_file_is_read(
    meta: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Chunks end within records, between them, and in headers."""
    monkeypatch.setattr(verifying, "_CHUNK", size)
    (meta / "checklist.chk").unlink()
    if size < 64:  # small files only: a byte at a time is slow
        for i in range(2):
            torch.save({"a": torch.arange(3), "b": torch.arange(2)}, meta / f"consolidated.{i:02d}.pth")
    found = next(iter(verify(meta)))
    assert found.status == "pass"
    flipped = bytearray((meta / "consolidated.01.pth").read_bytes())
    flipped[next(iter(records_of(meta / "consolidated.01.pth").values())).start] ^= 1
    (meta / "consolidated.01.pth").write_bytes(flipped)
    assert next(iter(verify(meta))).status == "fail"


def test_a_file_that_is_cut_while_it_is_verified_fails_its_row(meta: Path) -> None:
    (meta / "checklist.chk").unlink()
    found = []
    for row in verify(meta):
        found.append(row)
        if row.name == "tensors":
            os.truncate(meta / "consolidated.01.pth", (meta / "consolidated.01.pth").stat().st_size - 1)
    assert [each.name for each in found] == ROWS
    for row in found[2:4]:
        assert row.status == "fail"
        assert "was cut from" in row.why


def test_a_file_of_the_checklist_that_is_missing(meta: Path, cli: Any) -> None:
    path = meta / "checklist.chk"
    path.write_text(path.read_text() + f"{'0' * 32}  LICENSE\n")
    fails_alone(meta, cli, "checksums", "LICENSE is missing")


def test_a_shard_that_the_checklist_does_not_know(meta: Path, cli: Any) -> None:
    path = meta / "checklist.chk"
    lines = [line for line in path.read_text().splitlines(keepends=True) if "01.pth" not in line]
    path.write_text("".join(lines))
    fails_alone(meta, cli, "checksums", "consolidated.01.pth is not in checklist.chk")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/x", "..", "."])
def test_a_checklist_that_leads_out_of_its_folder(meta: Path, cli: Any, name: str) -> None:
    """Even where the file is there and has that md5: verify must not tell whether it does."""
    (meta.parent / "secret").write_text("x")
    (meta / "sub").mkdir()
    (meta / "sub" / "x").write_text("x")
    digest = hashlib.md5(b"x").hexdigest()
    path = meta / "checklist.chk"
    path.write_text(path.read_text() + f"{digest}  {name}\n")
    fails_alone(meta, cli, "checksums", name)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("<!DOCTYPE html>", "<!DOCTYPE html>"),
        ("abc  params.json\n", "abc  params.json"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_checklist_that_is_none(meta: Path, cli: Any, text: str | bytes, word: str) -> None:
    raw = text.encode() if isinstance(text, str) else text
    (meta / "checklist.chk").write_bytes(raw)
    fails_alone(meta, cli, "checksums", word)


def test_a_checklist_as_other_programs_write_it(meta: Path) -> None:
    """md5sum -b marks binary files with a star, find puts ./ in front; Windows ends lines with CR LF; digests may be in
    capitals."""
    path = meta / "checklist.chk"
    lines = [line.split() for line in path.read_text().splitlines()]
    for mark in ("*", " ./", "*./"):
        path.write_bytes("".join(f"{digest.upper()} {mark}{name}\r\n" for digest, name in lines).encode())
        assert rows(meta)["checksums"].status == "pass"


# ---- tensors, agreement, values -------------------------------------------------------------------------


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


# ---- tokenizer and ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta", "hf"])
def test_a_tokenizer_of_another_size(both: Any, cli: Any, name: str) -> None:
    folder = both(name)
    shutil.copy(tiny_model_path("plain"), folder / "tokenizer.model")
    if name == "meta":
        write_checklist(folder)
    skipped = ("checksums",) if name == "hf" else ()
    fails_alone(folder, cli, "tokenizer", tiny_tokenizer("plain").n_words, VOCAB, skipped=skipped)
    assert rows(folder, tokenizer_path=tiny_model_path())["tokenizer"].status == "pass"
    assert cli(folder, "--tokenizer", str(tiny_model_path()))[0] == 0


@pytest.mark.parametrize("kind", ["missing", "page"])
def test_no_tokenizer(meta: Path, cli: Any, kind: str) -> None:
    path = meta / "tokenizer.model"
    if kind == "missing":
        path.unlink()
    else:
        path.write_text("<!DOCTYPE html>")
    write_checklist(meta)
    fails_alone(meta, cli, "tokenizer", path)


def model_of(tmp_path: Path, tokenizer: Path, vocab: int) -> Path:
    params = {**SHAPE, "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "multiple_of": 8}
    folder = save_checkpoint(tmp_path / "public", params, random_weights(params, vocab), tokenizer)
    write_checklist(folder)
    return folder


@pytest.mark.parametrize("name", ["codellama", "codellama-70b"])
def test_golden_ids_of_the_public_vocabularies(tmp_path: Path, name: str) -> None:
    tokenizer = public_tokenizer(name)
    folder = model_of(tmp_path, Path(tokenizer.model_path), tokenizer.n_words)
    assert rows(folder)["infilling ids"].status == "pass"


def test_no_golden_ids_where_no_infilling_is(tmp_path: Path) -> None:
    tokenizer = public_tokenizer("llama2")
    folder = model_of(tmp_path, Path(tokenizer.model_path), tokenizer.n_words)
    assert rows(folder)["infilling ids"].status == "skip"


@pytest.mark.parametrize("swap", [("▁<SUF>", "▁<MID>"), ("▁def", "▁get")], ids=str)
def test_wrong_golden_ids(tmp_path: Path, cli: Any, swap: tuple[str, str]) -> None:
    """Two pieces changed places: the vocabulary still has the right size, and loads."""
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    tokenizer = public_tokenizer("codellama")
    model = model_pb2.ModelProto()
    model.ParseFromString(Path(tokenizer.model_path).read_bytes())
    first, second = (next(p for p in model.pieces if p.piece == piece) for piece in swap)
    first.piece, second.piece = second.piece, first.piece
    path = tmp_path / "swapped.model"
    path.write_bytes(model.SerializeToString())
    folder = model_of(tmp_path, path, tokenizer.n_words)
    words = ("1 32007 822 3349", "this tokenizer gives")
    fails_alone(folder, cli, "infilling ids", *words)


# ---- rope_theta -----------------------------------------------------------------------------------------


@pytest.fixture
def tiny_member(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The tiny shape counts as a member of the family."""

    def put(name: str) -> None:
        shape = (SHAPE["dim"], SHAPE["n_layers"], SHAPE["n_heads"], SHAPE["n_kv_heads"], ffn_dim(SHAPE))
        monkeypatch.setattr(members, "MEMBERS", (Member(name, *shape, 1, VOCAB),))

    return put


@pytest.mark.parametrize("name", ["meta", "hf"])
@pytest.mark.parametrize("member", ["7B", "13B", "34B", "70B"])
@pytest.mark.parametrize("theta", [1e6, 1e4, 5e5])
def test_rope_theta_of_a_member(
    both: Any, cli: Any, tiny_member: Any, name: str, member: str, theta: float
) -> None:
    """1e4 is Llama 2's, and of the family only the 70B's Instruct model has it."""
    tiny_member(member)
    folder = both(name)
    file = {"meta": "params.json", "hf": "config.json"}[name]
    config = json.loads((folder / file).read_text())
    if name == "hf":
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    else:
        config["rope_theta"] = theta
    (folder / file).write_text(json.dumps(config))
    if name == "meta":
        write_checklist(folder)
    if theta == 1e6 or (member == "70B" and theta == 1e4):
        found = rows(folder)["rope_theta"]
        assert found.status == "pass"
        assert f"{theta:,.0f}" in found.why
        assert cli(folder)[0] == 0
    else:
        words = (f"{theta:,.0f}", "1,000,000", member, file, "Llama 2")
        fails_alone(folder, cli, "rope_theta", *words, skipped=("checksums",) if name == "hf" else ())


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_the_real_shapes_are_members(member: Member) -> None:
    """As params.json of each has them; nothing is loaded."""
    args = args_of(member)
    found = verifying._rope_theta(SimpleNamespace(args=args, config_name="params.json"))  # type: ignore[arg-type]
    assert (found.status, member.name in found.why) == ("pass", True)
    args.rope_theta = 1e4
    found = verifying._rope_theta(SimpleNamespace(args=args, config_name="params.json"))  # type: ignore[arg-type]
    assert found.status == ("pass" if member.name == "70B" else "fail")


# ---- quick, and several defects at once -------------------------------------------------------------------


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


def test_every_defect_has_its_row_when_all_come_together(meta: Path, cli: Any, tiny_member: Any) -> None:
    tiny_member("7B")
    edit(meta, 0, lambda tensors: tensors[WQ].fill_(float("nan")))
    edit(meta, 1, lambda tensors: tensors["norm.weight"].add_(1))
    (meta / "params.json").write_text(json.dumps({**SHAPE, "rope_theta": 1e4}))
    shutil.copy(tiny_model_path("plain"), meta / "tokenizer.model")
    found = {row: each.status for row, each in rows(meta).items()}
    assert found == dict.fromkeys(ROWS, "fail") | {"tensors": "pass", "infilling ids": "skip"}
    assert cli(meta) == (1, found)


def test_verify_changes_nothing(meta: Path) -> None:
    before = {path.name: path.read_bytes() for path in meta.iterdir()}
    list(verify(meta))
    assert {path.name: path.read_bytes() for path in meta.iterdir()} == before
    open_checkpoint(meta)
