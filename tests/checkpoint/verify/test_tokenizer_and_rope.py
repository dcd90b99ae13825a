"""Laws of `verify`'s rows on the tokenizer, the published infilling ids and rope_theta."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import SHAPE, ffn_dim, random_weights, save_checkpoint
from tiny_tokenizers import public_tokenizer, tiny_model_path, tiny_tokenizer
from verify_rows import ROWS, VOCAB, WQ, edit, fails_alone, rows, write_checklist

from llama.checkpoint import verify as verifying
from llama.sizing import family as members
from llama.sizing.family import MEMBERS, Member, args_of


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


def test_every_defect_has_its_row_when_all_come_together(meta: Path, cli: Any, tiny_member: Any) -> None:
    tiny_member("7B")
    edit(meta, 0, lambda tensors: tensors[WQ].fill_(float("nan")))
    edit(meta, 1, lambda tensors: tensors["norm.weight"].add_(1))
    (meta / "params.json").write_text(json.dumps({**SHAPE, "rope_theta": 1e4}))
    shutil.copy(tiny_model_path("plain"), meta / "tokenizer.model")
    found = {row: each.status for row, each in rows(meta).items()}
    assert found == dict.fromkeys(ROWS, "fail") | {"tensors": "pass", "infilling ids": "skip"}
    assert cli(meta) == (1, found)
