"""Laws of info, verify and convert: what they print, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ranks import ROOT
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.sizing import family
from llama.sizing.family import MEMBERS, args_of

TINY = ROOT / "CodeLlama-tiny"


def fields(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[16:] for line in text.splitlines()}


def test_info_of_the_bundled_model(run: Any) -> None:
    code, out, err = run("info", TINY)
    assert (code, err) == (0, "")
    found = fields(out)
    params = json.loads((TINY / "params.json").read_text())
    weights = torch.load(TINY / "consolidated.00.pth", weights_only=True)
    count = sum(value.numel() for value in weights.values())
    vocab, ffn = len(weights["output.weight"]), len(weights["layers.0.feed_forward.w1.weight"])
    heads, kv_heads = params["n_heads"], params["n_kv_heads"]
    assert found["layout"].startswith("Meta, 1 weight file, ")
    assert found["parameters"] == f"{count / 1e6:.3g}M in bfloat16"
    assert found["shape"] == (
        f"dim {params['dim']}, {params['n_layers']} layers, {heads} heads, {kv_heads} key/value heads,"
        f" feed-forward {ffn}"
    )
    # Its card says 1,024; no other file does.
    assert found["context"].startswith(f"not known: rope_theta {params['rope_theta']:,}")
    assert (found["infilling"], found["chat format"]) == ("yes", "[INST]")
    assert found["vocabulary"] == f"{vocab:,} pieces"
    for size in (1, 2, 4, 8):
        even = not any(number % size for number in (heads, params["dim"], ffn, vocab))
        fits = even and (kv_heads % size == 0 or size % kv_heads == 0)
        told = "MiB of weights per rank" if fits else "does not fit its heads"
        assert told in found[f"memory, MP {size}"]
    assert found["memory, MP 1"].startswith(f"{2 * count / (1 << 20):.1f} MiB")
    assert found["member"] == "none of the Code Llama family has these shapes"


def test_info_of_a_hugging_face_folder(run: Any, hf: Path) -> None:
    code, out, _ = run("info", hf)
    found = fields(out)
    assert code == 0
    assert found["layout"].startswith("Hugging Face, 1 weight file")
    assert found["parameters"].endswith("in bfloat16")
    assert found["memory, MP 8"] == "does not fit its heads"  # 8 does not divide its vocabulary
    shutil.copy(tiny_model_path("step"), hf / "tokenizer.model")
    assert "run verify" in fields(run("info", hf)[1])["vocabulary"]


def test_info_reads_no_weights(run: Any, meta: Path) -> None:
    """The values in the shards are never looked at, but for the norms, of which each shard has a copy."""
    path = meta / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["output.weight"].fill_(float("nan"))
    torch.save(tensors, path)
    assert run("info", meta)[0] == 0


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_info_names_the_member(member: Any) -> None:
    from llama.checkpoint import Checkpoint
    from llama.checkpoint.info import describe, guess
    from llama.sizing.shapes import expected_shapes

    args = args_of(member)
    assert guess(args, None).startswith(f"Code Llama {member.name}")
    args.rope_theta = 1e4
    if member.name == "70B":
        assert "Instruct" in guess(args, tiny_tokenizer("step"))
        assert "or Llama 2 70B" in guess(args, tiny_tokenizer("plain"))
    else:
        assert "rope_theta" in guess(args, None)
    args = args_of(member)
    if member.name in ("7B", "13B"):
        assert "base or Instruct" in guess(args, None)
        args.vocab_size = 32000
        assert "Python" in guess(args, None)

    class Opened:
        layout, files, shards, dtype = "Meta", (), member.shards, torch.bfloat16
        quantization, context_length, notes = None, None, ()
        form, slice_of = staticmethod(lambda *_: None), Checkpoint.slice_of
        details = staticmethod(tuple)

    Opened.args = args  # type: ignore[attr-defined]
    Opened.shapes = expected_shapes(args)  # type: ignore[attr-defined]
    short = "4,096 tokens" if member.name == "70B" else "not known"
    for theta, context in ((1e6, "16,384 tokens"), (1e4, short), (5e5, "not known")):
        args.rope_theta = theta
        found = dict(describe(Opened(), None))  # type: ignore[arg-type]
        assert found["context"].startswith(context)
    sizes = {"7B": "6.74B", "13B": "13B", "34B": "33.7B", "70B": "69B"}
    assert found["parameters"] == f"{sizes[member.name]} in bfloat16"


def test_verify_prints_a_table(run: Any, meta: Path) -> None:
    code, out, err = run("verify", meta)
    assert (code, err) == (0, "")
    rows = [(line[:4], line[6:21].strip()) for line in out.splitlines()]
    assert [name for _, name in rows][:4] == ["checksums", "tensors", "shard agreement", "values"]
    assert {status for status, _ in rows} == {"pass", "skip"}
    assert all(line[4:6] == "  " and line[21:23] == "  " for line in out.splitlines())
    (meta / "tokenizer.model").unlink()
    code, out, err = run("verify", meta, "--quick")
    assert code == 1
    assert err == "error: 1 of the checks failed\n"
    assert "tokenizer.model is missing" in out


def test_convert_and_back_by_the_command(run: Any, tmp_path: Path) -> None:
    code, out, err = run("convert", TINY, tmp_path / "hf", "--to", "hf")
    assert (code, err) == (0, "")
    assert f"bfloat16 to {tmp_path / 'hf'}:" in out
    names = [line.strip() for line in out.splitlines()[1:]]
    assert names == sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    shards = json.loads((TINY / "params.json").read_text())["n_kv_heads"]
    code, out, err = run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta", "--mp", shards)
    assert (code, err) == (0, "")
    assert len(list((tmp_path / "meta").glob("*.pth"))) == shards
    assert run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta")[0] == 1
    assert run("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta", "--force")[0] == 0
    assert [path.name for path in (tmp_path / "meta").glob("*.pth")] == ["consolidated.00.pth"]
    before = torch.load(TINY / "consolidated.00.pth", weights_only=True)
    after = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    assert after.keys() == before.keys() - {"rope.freqs"}
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert run("verify", tmp_path / "meta")[0] == run("verify", tmp_path / "hf")[0] == 0


def test_names_of_folders_that_are_no_utf_8(run: Any, hf: Path, tmp_path: Path) -> None:
    """Both layouts are read from them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        hf.rename(folder)
    except OSError:
        pytest.skip("this file system has no such names")
    code, out, err = run("convert", folder, folder.with_suffix(".meta"), "--to", "meta")
    assert (code, err) == (0, "")
    assert "caf\\xe9.meta" in out
    code, _, err = run("info", folder.with_suffix(".meta"))
    assert (code, err) == (0, "")


def test_convert_with_another_dtype_and_tokenizer(run: Any, meta: Path, tmp_path: Path) -> None:
    (meta / "tokenizer.model").rename(tmp_path / "t.model")
    more = ("--dtype", "float16", "--tokenizer", tmp_path / "t.model")
    assert run("convert", meta, tmp_path / "out", "--to", "hf")[0] == 1
    assert run("convert", meta, tmp_path / "out", "--to", "hf", *more)[0] == 0
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_hugging_face_weights_of_a_member_go_into_the_shards_that_meta_ships(
    run: Any, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("convert", hf, tmp_path / "one", "--to", "meta")[0] == 0
    assert len(list((tmp_path / "one").glob("*.pth"))) == 1
    member = family.Member("13B", 64, 2, 8, 2, 176, 2, tiny_tokenizer().n_words)
    monkeypatch.setattr(family, "MEMBERS", (member,))
    assert run("convert", hf, tmp_path / "two", "--to", "meta")[0] == 0
    assert len(list((tmp_path / "two").glob("*.pth"))) == 2
