"""Laws of the files that `convert` writes: other programs read them, and compute the same.

Oracles: torch.load, safetensors, hashlib and zipfile for files, transformers for logits and ids.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from conversions import (
    DTYPES,
    VOCAB,
    WIDE,
    meta_folder,
    to,
    weights_of,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import ROOT
from tiny_models import ffn_dim, split
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint.convert import plan
from llama.checkpoint.convert.plan import plan_files
from llama.checkpoint.layouts.hf_config import config_of, ffn_rule, params_of, read_config
from llama.sizing.family import MEMBERS, args_of
from llama.sizing.shapes import expected_shapes


@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("limit", [10**9, 60_000])
def test_transformers_computes_the_same_on_what_was_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_heads: int | None, limit: int
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(plan, "_LARGEST_FILE", limit)
    meta_folder(tmp_path / "a", 2, kv_heads)
    to("hf", tmp_path / "a", tmp_path / "b")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    assert theirs.dtype == torch.float32
    assert theirs.config.max_position_embeddings == 16384
    assert theirs.generation_config.eos_token_id == [2, tiny_tokenizer().eot_id]
    rows = torch.tensor([[1, 10, 200, 31, 7, 7, 300, 42, 99, 5], [1, 400, 2, 3, 55, 21, 8, 150, 77, 310]])
    with torch.no_grad():
        expected = theirs(rows).logits
    assert expected.std() > 1
    for folder in ("a", "b"):
        with Llama.build(tmp_path / folder, None, 64, 2, 1, device="cpu", dtype="float32") as llama:
            assert (llama.model(rows) - expected).abs().max() < 1e-4


def test_the_bundled_model_says_the_same_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to("hf", ROOT / "CodeLlama-tiny", tmp_path / "hf", dtype=torch.float32)
    with Llama.build(ROOT / "CodeLlama-tiny", None, 128, 1, 1, device="cpu", dtype="float32") as llama:
        prompt = llama.tokenizer.encode("def read_json(path", bos=True, eos=False)
        ours, _ = llama.generate([prompt], 24, temperature=0, min_tokens=24)
        expected = llama.text_completion(["def read_json(path"], temperature=0, max_gen_len=24, min_tokens=24)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    given_ids = torch.tensor([prompt])
    length = {"min_new_tokens": 24, "max_new_tokens": 24}  # neither may end before
    out = model.generate(given_ids, attention_mask=torch.ones_like(given_ids), do_sample=False, **length)[0]
    assert out[len(prompt) :].tolist() == ours[0]
    assert len(ours[0]) == 24
    whole = tokenizer.decode(out.tolist(), skip_special_tokens=True)
    assert whole == "def read_json(path" + expected[0]["generation"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_and_zipfile_read_a_pth(tmp_path: Path, dtype: torch.dtype) -> None:
    meta_folder(tmp_path / "a", 1, 4, dtype)
    to("meta", tmp_path / "a", tmp_path / "b", shards=2)
    for i, expected in enumerate(split(weights_of(4, dtype), 2)):
        path = tmp_path / "b" / f"consolidated.{i:02d}.pth"
        for mmap in (False, True):
            found = torch.load(path, weights_only=True, mmap=mmap)
            assert {name: tuple(value.shape) for name, value in found.items()} == {
                name: tuple(value.shape) for name, value in expected.items()
            }
            for name, value in found.items():
                assert value.is_contiguous()
                assert torch.equal(value, expected[name])
                assert value.data_ptr() % 16 == 0
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
            for info in archive.infolist():
                # The record's bytes begin behind its local header: 30 bytes, name and extra field.
                head = path.read_bytes()[info.header_offset : info.header_offset + 30]
                start = info.header_offset + 30 + int.from_bytes(head[26:28], "little")
                assert (start + int.from_bytes(head[28:30], "little")) % 64 == 0, info.filename


def test_safetensors_opens_a_safetensors(tmp_path: Path) -> None:
    meta_folder(tmp_path / "a")
    to("hf", tmp_path / "a", tmp_path / "b")
    with safetensors.safe_open(tmp_path / "b" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert len(list(opened.keys())) == len(weights_of(4, torch.float32))
    length = int.from_bytes((tmp_path / "b" / "model.safetensors").read_bytes()[:8], "little")
    assert (8 + length) % 8 == 0


def test_files_are_cut_at_the_limit_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 60_000
    monkeypatch.setattr(plan, "_LARGEST_FILE", limit)
    meta_folder(tmp_path / "a")
    done = to("hf", tmp_path / "a", tmp_path / "b")
    folder = tmp_path / "b"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 4
    found, sizes = {}, []
    for path in files:
        tensors = safetensors.torch.load_file(path)
        sizes.append(sum(value.nbytes for value in tensors.values()))
        assert sizes[-1] <= limit or len(tensors) == 1
        found |= dict.fromkeys(tensors, path.name)
    assert index["weight_map"] == found
    total = sum(value.nbytes for value in weights_of(4, torch.float32).values())
    assert index["metadata"]["total_size"] == sum(sizes) == total == done.nbytes
    # No two neighbours would have fitted into one file.
    firsts = [next(iter(safetensors.torch.load_file(path).values())).nbytes for path in files]
    assert (
        all(size + first > limit for size, first in zip(sizes, firsts[1:], strict=False))
        or max(sizes) > limit
    )


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_file_of_the_family_is_larger_than_5_gb(member: Any, dtype: torch.dtype) -> None:
    args = args_of(member)
    source = SimpleNamespace(args=args, shapes=expected_shapes(args))
    files = plan_files(source, "hf", None, dtype)  # type: ignore[arg-type]
    sizes = [file.nbytes(dtype) for file in files]
    assert max(sizes) <= 5 * 10**9
    billions = {"7B": 6.74, "13B": 13.02, "34B": 33.74, "70B": 68.98}[member.name]
    assert sum(sizes) / dtype.itemsize / 1e9 == pytest.approx(billions, abs=0.01)
    # Not in more files than needed either.
    assert len(files) <= 1.1 * sum(sizes) / 5e9 + 1
    assert len({piece.key for file in files for piece in file.pieces}) == 9 * args.n_layers + 3


def test_checklist_holds_the_md5_of_every_file(tmp_path: Path) -> None:
    meta_folder(tmp_path / "a")
    to("meta", tmp_path / "a", tmp_path / "b", shards=4)
    folder = tmp_path / "b"
    lines = (folder / "checklist.chk").read_text().splitlines()
    found = {name: digest for digest, name in (line.split("  ") for line in lines)}
    names = {*(f"consolidated.{i:02d}.pth" for i in range(4)), "params.json", "tokenizer.model"}
    assert found.keys() == names
    assert {path.name for path in folder.iterdir()} == {*names, "checklist.chk"}
    for name, digest in found.items():
        assert hashlib.md5((folder / name).read_bytes()).hexdigest() == digest, name
    if shutil.which("md5sum"):
        subprocess.run(
            ["md5sum", "-c", "--strict", "checklist.chk"], cwd=folder, check=True, capture_output=True
        )


def test_params_and_tokenizer_are_copied(tmp_path: Path) -> None:
    meta_folder(tmp_path / "a")
    odd = json.dumps({**WIDE, "n_kv_heads": 4}, indent=7)
    (tmp_path / "a" / "params.json").write_text(odd)
    to("meta", tmp_path / "a", tmp_path / "b", shards=2)
    assert (tmp_path / "b" / "params.json").read_text() == odd
    to("hf", tmp_path / "a", tmp_path / "c")
    for name in ("b", "c"):
        assert (tmp_path / name / "tokenizer.model").read_bytes() == tiny_model_path().read_bytes()


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_params_are_made_from_config_json(tmp_path: Path, kv_heads: int | None) -> None:
    meta_folder(tmp_path / "a", 1, kv_heads)
    to("hf", tmp_path / "a", tmp_path / "b")
    to("meta", tmp_path / "b", tmp_path / "c")
    params = json.loads((tmp_path / "c" / "params.json").read_text())
    for key in ("dim", "n_layers", "n_heads", "norm_eps", "rope_theta"):
        assert params[key] == WIDE[key]
    assert (params.get("n_kv_heads"), params["vocab_size"]) == (kv_heads, VOCAB)
    assert ffn_dim(params) == ffn_dim(WIDE)


# What Meta ships: dim, layers, heads, key/value heads, multiple_of, multiplier, feed-forward dimension.
SHIPPED = {
    "7B": (4096, 32, 32, None, 256, 1.0, 11008),
    "13B": (5120, 40, 40, None, 256, 1.0, 13824),
    "34B": (8192, 48, 64, 8, 256, 1.0, 22016),
    "70B": (8192, 80, 64, 8, 4096, 1.3, 28672),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_family_gets_back_the_params_it_had(tmp_path: Path, name: str) -> None:
    member = next(each for each in MEMBERS if each.name == name)
    config = config_of(args_of(member), torch.bfloat16, tiny_tokenizer())
    (tmp_path / "config.json").write_text(json.dumps(config))
    args, tied = read_config(tmp_path, max_seq_len=64, max_batch_size=1)
    params = params_of(args)
    dim, layers, heads, kv_heads, multiple, multiplier, ffn = SHIPPED[name]
    assert config["intermediate_size"] == args.ffn_dim == ffn_dim(params) == ffn
    shape = (params["dim"], params["n_layers"], params["n_heads"], params.get("n_kv_heads"))
    assert shape == (dim, layers, heads, kv_heads)
    assert (params["multiple_of"], params["ffn_dim_multiplier"]) == (multiple, multiplier)
    assert (params["rope_theta"], params["norm_eps"], tied) == (1e6, 1e-5, False)


@settings(max_examples=500, deadline=None)
@given(dim=st.integers(2, 20000), ffn=st.integers(1, 100_000))
@example(dim=2, ffn=1)
@example(dim=2048, ffn=5632)
@example(dim=3072, ffn=8192)
def test_any_feed_forward_dimension_can_be_told_in_params(dim: int, ffn: int) -> None:
    multiple_of, multiplier = ffn_rule(dim, ffn)
    params = {"dim": dim, "multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    assert ffn_dim(json.loads(json.dumps(params))) == ffn


def test_from_hugging_face_to_hugging_face_its_own_files_go_along(tmp_path: Path, meta: Path) -> None:
    to("hf", meta, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config |= {"max_position_embeddings": 4096, "pad_token_id": 0, "eos_token_id": [2, 5]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [2, 5], "top_p": 0.9}')
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    old = config | {"dtype": "float32"}  # transformers 5's name, which it prefers
    (tmp_path / "a" / "config.json").write_text(json.dumps(old))
    to("hf", tmp_path / "a", tmp_path / "b", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config | {"torch_dtype": "bfloat16"}
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
