"""Laws of `convert`: tensors come through bit for bit, other programs read what is written, memory stays small, and a
target is there whole or not at all.

Oracles: torch.load, safetensors, hashlib and zipfile for files, transformers for logits and ids, SentencePiece for
ids; the split axes and the rotary order are those written out in tiny_models.py.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import HANGS, ROOT
from tiny_models import SHAPE, ffn_dim, hugging_face_twin, random_weights, save_checkpoint, split
from tiny_tokenizers import public_tokenizer, tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import base, open_checkpoint
from llama.checkpoint.convert import Converted, atomic_rename, conversion, convert, plan
from llama.checkpoint.convert.output_folder import OutputFolder
from llama.checkpoint.convert.plan import plan_files
from llama.checkpoint.layouts.hf_config import _ffn_rule, config_of, params_of, read_config
from llama.checkpoint.weight_files.output_file import OutputFile
from llama.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    ConfigError,
    LlamaError,
)
from llama.sizing.family import MEMBERS, args_of
from llama.sizing.shapes import expected_shapes

WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 2}
VOCAB = tiny_tokenizer().n_words
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WQ = "layers.0.attention.wq.weight"
GOLDEN_PREFIX = (
    "822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851 29901 13 1678 9995 29871"
)
GOLDEN_SUFFIX = "13 1678 736 1121 13"
PREFIX, SUFFIX = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"


def ids(text: str) -> list[int]:
    return [int(each) for each in text.split()]


@functools.cache
def weights_of(kv_heads: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    params = {**WIDE, "n_kv_heads": kv_heads}
    return {name: value.to(dtype) for name, value in random_weights(params, VOCAB).items()}


def meta_folder(
    folder: Path, shards: int = 1, kv_heads: int | None = 4, dtype: torch.dtype = torch.float32
) -> Path:
    params = {**WIDE, "n_kv_heads": kv_heads}
    return save_checkpoint(folder, params, weights_of(kv_heads, dtype), tiny_model_path(), shards, dtype)


def to(layout: str, folder: Path, target: Path, **options: Any) -> Converted:
    return convert(open_checkpoint(folder), target, layout=layout, **options)


def assert_shards(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    """The files are exactly what Meta's ranks would have saved."""
    assert len(list(folder.glob("consolidated.*"))) == shards
    for i, expected in enumerate(split(weights, shards)):
        found = torch.load(folder / f"consolidated.{i:02d}.pth", weights_only=True)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), f"{name} in shard {i} of {shards}"


def assert_is_twin(folder: Path, params: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """The files are exactly transformers' own weights."""
    expected = hugging_face_twin(params, weights).state_dict()
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    assert found.keys() == expected.keys()
    dtype = weights[WQ].dtype
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value.to(dtype)), name


def left_in(folder: Path) -> list[str]:
    # A folder that a conversion made for its target goes with it.
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---- bit for bit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_heads", [None, 4])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 4), (4, 2)])
def test_shards_there_and_back(
    tmp_path: Path, n: int, m: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    weights = weights_of(kv_heads, dtype)
    meta_folder(tmp_path / "a", n, kv_heads, dtype)
    done = to("meta", tmp_path / "a", tmp_path / "b", shards=m)
    assert (done.folder, done.dtype) == (tmp_path / "b", dtype)
    assert_shards(tmp_path / "b", weights, m)
    to("meta", tmp_path / "b", tmp_path / "c", shards=n)
    assert_shards(tmp_path / "c", weights, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_heads", [None, 4])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_to_hugging_face_and_back(
    tmp_path: Path, shards: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    weights = weights_of(kv_heads, dtype)
    meta_folder(tmp_path / "a", shards, kv_heads, dtype)
    to("hf", tmp_path / "a", tmp_path / "b")
    assert_is_twin(tmp_path / "b", {**WIDE, "n_kv_heads": kv_heads}, weights)
    to("meta", tmp_path / "b", tmp_path / "c", shards=shards)
    assert_shards(tmp_path / "c", weights, shards)


@pytest.mark.parametrize("window", [1, 700, 3000])
def test_tensors_larger_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(conversion, "_WINDOW", window)
    monkeypatch.setattr(base, "_WINDOW", window)
    weights = weights_of(4, torch.float32)
    meta_folder(tmp_path / "a", 2)
    to("meta", tmp_path / "a", tmp_path / "b", shards=4)
    assert_shards(tmp_path / "b", weights, 4)
    to("hf", tmp_path / "b", tmp_path / "c")
    assert_is_twin(tmp_path / "c", {**WIDE, "n_kv_heads": 4}, weights)
    to("meta", tmp_path / "c", tmp_path / "d", shards=1, dtype=torch.bfloat16)
    assert_shards(tmp_path / "d", {k: v.to(torch.bfloat16) for k, v in weights.items()}, 1)


@pytest.mark.parametrize("layout", ["meta", "hf"])
@pytest.mark.parametrize("new", DTYPES, ids=str)
@pytest.mark.parametrize("old", DTYPES, ids=str)
def test_another_dtype_is_torchs_own_conversion(
    tmp_path: Path, old: torch.dtype, new: torch.dtype, layout: str
) -> None:
    meta_folder(tmp_path / "a", 2, 4, old)
    to(layout, tmp_path / "a", tmp_path / "b", dtype=new)
    expected = {name: value.to(new) for name, value in weights_of(4, old).items()}
    if layout == "meta":
        assert_shards(tmp_path / "b", expected, 2)
    else:
        assert_is_twin(tmp_path / "b", {**WIDE, "n_kv_heads": 4}, expected)
        assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == str(new)[6:]


def test_hugging_face_to_hugging_face(tmp_path: Path) -> None:
    meta_folder(tmp_path / "a")
    to("hf", tmp_path / "a", tmp_path / "b")
    to("hf", tmp_path / "b", tmp_path / "c")
    assert left_in(tmp_path / "b") == left_in(tmp_path / "c")
    for name in left_in(tmp_path / "b"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_tied_embeddings_become_two_tensors(tmp_path: Path) -> None:
    from test_hugging_face import random_model, save

    model = random_model(2, True)
    save(model, tmp_path / "a")
    to("meta", tmp_path / "a", tmp_path / "b")
    tensors = torch.load(tmp_path / "b" / "consolidated.00.pth", weights_only=True)
    embedding = model.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(tensors["tok_embeddings.weight"], embedding)
    assert torch.equal(tensors["output.weight"], embedding)


def overflowing(folder: Path, value: float = 70000.0) -> Path:
    meta_folder(folder, 2)
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    tensors[WQ][3, 3] = value
    torch.save(tensors, path)
    return folder


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_values_that_float16_has_not_are_refused(tmp_path: Path, layout: str) -> None:
    overflowing(tmp_path / "a")
    with pytest.raises(
        ConfigError, match=rf"{WQ} holds values up to 70\d\d\d.*float16 ends at 65504; keep float32"
    ) as caught:
        to(layout, tmp_path / "a", tmp_path / "b", dtype=torch.float16)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == ["a"]


def test_values_of_float64_that_no_dtype_has_are_refused(tmp_path: Path) -> None:
    weights = {name: value.double() for name, value in weights_of(4, torch.float32).items()}
    weights[WQ] = weights[WQ].clone()
    weights[WQ][3, 3] = 1e300
    save_checkpoint(
        tmp_path / "a", {**WIDE, "n_kv_heads": 4}, weights, tiny_model_path(), dtype=torch.float64
    )
    with pytest.raises(ConfigError, match=r"holds values up to 1e\+300, but float32 ends"):
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.float32)


def test_infinite_values_stay_as_they_are(tmp_path: Path) -> None:
    """They are for `verify` to find; float16 has them too."""
    for value in (float("inf"), float("nan")):
        overflowing(tmp_path / "a", value)
        tensors = torch.load(tmp_path / "a" / "consolidated.00.pth", weights_only=True)
        tensors[WQ].fill_(value)
        torch.save(tensors, tmp_path / "a" / "consolidated.00.pth")
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.float16)
        for i in range(2):
            before = torch.load(tmp_path / "a" / f"consolidated.{i:02d}.pth", weights_only=True)[WQ].half()
            after = torch.load(tmp_path / "b" / f"consolidated.{i:02d}.pth", weights_only=True)[WQ]
            assert torch.equal(before.view(torch.int16), after.view(torch.int16))
        shutil.rmtree(tmp_path / "a")
        shutil.rmtree(tmp_path / "b")


# ---- other programs read it ----------------------------------------------------------------------------


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
        ours, _ = llama.generate([prompt], 24, temperature=0)
        expected = llama.text_completion(["def read_json(path"], temperature=0, max_gen_len=24)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    given_ids = torch.tensor([prompt])
    out = model.generate(
        given_ids, attention_mask=torch.ones_like(given_ids), max_new_tokens=24, do_sample=False
    )[0].tolist()
    assert out[len(prompt) :][: len(ours[0])] == ours[0]
    assert len(ours[0]) > 10
    whole = tokenizer.decode(out[: len(prompt) + len(ours[0])], skip_special_tokens=True)
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
    multiple_of, multiplier = _ffn_rule(dim, ffn)
    params = {"dim": dim, "multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    assert ffn_dim(json.loads(json.dumps(params))) == ffn


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    for layout, dtype in (("meta", torch.float32), ("hf", torch.bfloat16)):
        counted: list[int] = []
        meta_folder(tmp_path / "a", 2)
        done = to(layout, tmp_path / "a", tmp_path / layout, dtype=dtype, progress=counted.append)
        if layout == "hf":
            assert sum(counted) == done.nbytes
        else:  # norms are in both shards
            assert (
                sum(counted)
                == done.nbytes
                == sum(value.nbytes for shard in split(weights_of(4, dtype), 2) for value in shard.values())
            )


# ---- tokenizers of the converted folder ---------------------------------------------------------------


# Of this process: another may be using its own at the same time.
_folders: list[Path] = []


@functools.cache
def with_public_tokenizer(name: str) -> Path:
    """A tiny model of that vocabulary, converted."""
    tokenizer = public_tokenizer(name)
    folder = Path(tempfile.mkdtemp(prefix="llama-converted-"))
    _folders.append(folder)
    params = {**SHAPE, "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "multiple_of": 8}
    weights = random_weights(params, tokenizer.n_words)
    save_checkpoint(folder / "meta", params, weights, Path(tokenizer.model_path))
    to("hf", folder / "meta", folder / "hf")
    shutil.rmtree(folder / "meta")
    return folder / "hf"


@pytest.fixture(scope="module", autouse=True)
def _no_folders_left() -> Iterator[None]:
    yield
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)
    with_public_tokenizer.cache_clear()


@functools.cache
def theirs_of(name: str, auto: bool) -> Any:
    from transformers import AutoTokenizer, CodeLlamaTokenizer

    folder = with_public_tokenizer(name)
    return (AutoTokenizer if auto else CodeLlamaTokenizer).from_pretrained(folder)


@pytest.mark.parametrize("name", ["codellama", "codellama-70b"])
@pytest.mark.parametrize("auto", [True, False], ids=["AutoTokenizer", "CodeLlamaTokenizer"])
def test_golden_infilling_ids(name: str, auto: bool) -> None:
    public_tokenizer(name)
    tokenizer = theirs_of(name, auto)
    assert type(tokenizer).__name__.startswith("CodeLlamaTokenizer")
    psm = [1, 32007, *ids(GOLDEN_PREFIX), 32008, *ids(GOLDEN_SUFFIX), 32009]
    spm = [1, 32007, 32008, *ids(GOLDEN_SUFFIX), 32009, *ids(GOLDEN_PREFIX)]
    for _ in range(2):  # a call leaves nothing behind
        assert tokenizer(PREFIX + "<FILL_ME>" + SUFFIX)["input_ids"] == psm
        assert tokenizer(PREFIX, suffix=SUFFIX)["input_ids"] == psm
        assert tokenizer(PREFIX, suffix=SUFFIX, suffix_first=True)["input_ids"] == spm
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id) == (32007, 32008, 32009)
    assert tokenizer.eot_id == 32010
    assert tokenizer.model_max_length == 16384


def test_the_70b_step_piece_is_a_special_token() -> None:
    public_tokenizer("codellama-70b")
    tokenizer = theirs_of("codellama-70b", True)
    assert tokenizer.convert_tokens_to_ids("<step>") == 32015
    assert tokenizer("a<step>")["input_ids"][-1] == 32015
    config = json.loads((with_public_tokenizer("codellama-70b") / "generation_config.json").read_text())
    assert config["eos_token_id"] == [2, 32010, 32015]


# Spelled out, these are control tokens to transformers, or a space to SentencePiece.
_NOT_TEXT = ("<s>", "</s>", "<unk>", "<PRE>", "<SUF>", "<MID>", "<EOT>", "<step>", "<FILL_ME>", "▁", "<0x")


def code_like(draw: random.Random) -> str:
    words = [
        "def",
        "return",
        "self",
        "    ",
        "\t",
        "\n",
        "\n\n",
        " ",
        "  ",
        "(",
        ")",
        ":",
        "->",
        "==",
        "0x1F",
        "12345",
    ]
    words += [
        "é",
        "漢字",
        "🙂",
        "ü",
        "#",
        '"""',
        "camelCase",
        "snake_case",
        "<",
        ">",
        "{",
        "}",
        "'",
        "\\n",
        "\r\n",
        "....",
    ]
    words += ["aaaaaaaa", "--------", "        ", "import numpy as np", "ѣ", "‍", "\u0301", "€"]
    return "".join(draw.choices(words, k=draw.randint(0, 40)))


@pytest.mark.parametrize("name", ["codellama", "codellama-70b", "llama2"])
def test_ids_of_text_are_those_of_sentencepiece(name: str) -> None:
    sp = public_tokenizer(name).sp_model
    tokenizer = theirs_of(name, True)
    if name == "llama2":
        assert not hasattr(tokenizer, "prefix_id")
    else:
        # transformers 5 leaves the leading space out before the first infilling (docs/checkpoints.md).
        tokenizer.set_infilling_processor(True)
    draw = random.Random(0)
    texts = [code_like(draw) for _ in range(400)]
    texts += [each * n + "x" for each in " =-#\n\t0a" for n in (2, 3, 5, 7, 16, 17, 31, 64, 119)]
    texts += ["", " ", "  x", "x ", "\n", " \n ", (ROOT / "llama" / "model.py").read_text()]
    for text in texts:
        assert tokenizer(text)["input_ids"] == [1, *sp.encode(text)], repr(text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40))
@example(text="\x00")
@example(text=" a b")
def test_ids_of_any_text_are_those_of_sentencepiece(text: str) -> None:
    if any(each in text for each in _NOT_TEXT):
        return
    sp = public_tokenizer("llama2").sp_model
    assert theirs_of("llama2", True)(text)["input_ids"] == [1, *sp.encode(text)]


@settings(max_examples=100, deadline=None)
@given(prefix=st.text(max_size=30), suffix=st.text(min_size=1, max_size=30), suffix_first=st.booleans())
@example(prefix="", suffix=" x", suffix_first=False)
@example(prefix=" x", suffix="\n", suffix_first=True)
def test_infilling_ids_of_any_text(prefix: str, suffix: str, suffix_first: bool) -> None:
    """sp0 is the reference's way: encode with a piece in front, and drop it."""
    if any(each in text for each in _NOT_TEXT for text in (prefix, suffix)):
        return
    sp = public_tokenizer("codellama").sp_model
    before, after = sp.encode(prefix), sp.encode("☺" + suffix)[2:]
    if prefix == "":  # transformers puts the dummy space there all the same
        before = [sp.piece_to_id("▁")]
    expected = (
        [1, 32007, 32008, *after, 32009, *before]
        if suffix_first
        else [1, 32007, *before, 32008, *after, 32009]
    )
    found = theirs_of("codellama", True)(prefix, suffix=suffix, suffix_first=suffix_first)["input_ids"]
    assert found == expected


@pytest.mark.parametrize("kind", ["plain", "infilling", "step"])
def test_tiny_vocabularies_too(tmp_path: Path, kind: str) -> None:
    """So that the law is tested without the public tokenizers as well."""
    from transformers import AutoTokenizer

    path = tiny_model_path(kind)
    sp = tiny_tokenizer(kind).sp_model
    weights = random_weights(WIDE, tiny_tokenizer(kind).n_words)
    save_checkpoint(tmp_path / "a", WIDE, weights, path)
    to("hf", tmp_path / "a", tmp_path / "b")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert type(tokenizer).__name__.startswith("CodeLlamaTokenizer") == (kind != "plain")
    if kind != "plain":
        tokenizer.set_infilling_processor(True)
    draw = random.Random(1)
    for text in (code_like(draw) for _ in range(200)):
        assert tokenizer(text)["input_ids"] == [1, *sp.encode(text)], repr(text)
    assert (
        tokenizer.decode(tokenizer("def  f(x):\n    é")["input_ids"], skip_special_tokens=True)
        == "def  f(x):\n    é"
    )


# ---- memory ------------------------------------------------------------------------------------------

CONVERT = """
import sys
from pathlib import Path
from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import convert
def status(key):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").open() if l.startswith(key))
before = status("VmRSS")
convert(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), layout=sys.argv[3], shards=eval(sys.argv[4]))
print(status("VmHWM") - before)
"""


def run_python(script: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False, **options
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_small_in_both_directions(tmp_path: Path) -> None:
    """Largest tensor x 3 + 300 MB at the peak, and the model is a good deal larger than that."""
    params = {**SHAPE, "dim": 1024, "n_layers": 7, "n_heads": 8, "n_kv_heads": 8, "multiple_of": 4096}
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    dim, hidden = params["dim"], ffn_dim(params)
    sizes = {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}
    sizes |= {"tok_embeddings": (VOCAB, dim), "output": (VOCAB, dim)}
    weights = {}
    for name in random_weights({**WIDE, "n_layers": 7}, 8):
        part = name.split(".")[-2]
        shape = (dim,) if "norm" in part else sizes.get(part, (dim, dim))
        count = torch.Size(shape).numel()
        weights[name] = block.repeat(-(-count // len(block)))[:count].view(shape)
    largest = max(value.nbytes for value in weights.values())
    total = sum(value.nbytes for value in weights.values())
    limit = 3 * largest + 300e6
    assert total > 1.25 * limit
    source_folder = save_checkpoint(tmp_path / "meta", params, weights, tiny_model_path())
    del weights
    grown = {}
    for target, layout, shards, given_folder in (
        ("hf", "hf", None, source_folder),
        ("back", "meta", 2, "hf"),
    ):
        done = run_python(CONVERT, tmp_path / given_folder, tmp_path / target, layout, shards)
        assert done.returncode == 0, done.stderr
        grown[layout] = int(done.stdout)
    for folder in ("meta", "hf", "back"):
        shutil.rmtree(tmp_path / folder)
    for layout, found in grown.items():
        assert found <= limit, f"{found / 1e6:.0f} MB for a model of {total / 1e6:.0f} MB, to {layout}"


# ---- whole or not at all -------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(error: type[LlamaError], layout: str, source_folder: Path, target: Path, **options: Any) -> str:
    """Everything beside the target stays as it was, and nothing is added."""
    target.parent.mkdir(parents=True, exist_ok=True)
    places = [source_folder.parent, target.parent]
    before = [content(place) for place in places]
    with pytest.raises(LlamaError) as caught:
        to(layout, source_folder, target, **options)
    assert type(caught.value) is error, repr(caught.value)
    assert [content(place) for place in places] == before
    assert not [path for place in places for path in place.glob(".*")]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return meta_folder(tmp_path / "source" / "meta", 2)


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link to a folder", "link to nowhere"])
def test_a_target_that_is_there_is_refused(tmp_path: Path, meta: Path, kind: str) -> None:
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    if kind == "folder":
        shutil.copytree(meta, target)
    elif kind == "empty folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / ("elsewhere" if kind.endswith("folder") else "nowhere"))
    text = refused(CheckpointWriteError, "meta", meta, target)
    assert f"{target} exists" in text
    assert "--force" in text


@pytest.mark.parametrize("old", ["meta", "hf", "empty"])
def test_force_replaces_a_checkpoint_folder(tmp_path: Path, meta: Path, old: str) -> None:
    target = tmp_path / "out" / "target"
    target.mkdir(parents=True)
    if old != "empty":
        target.rmdir()
        to(old, meta, target, shards=4 if old == "meta" else None)
    to("meta", meta, target, shards=1, force=True)
    assert_shards(target, weights_of(4, torch.float32), 1)
    assert left_in(target) == ["checklist.chk", "consolidated.00.pth", "params.json", "tokenizer.model"]
    assert left_in(target.parent) == ["target"]


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.txt"],
        ["README.md"],
        ["config.json"],
        ["model.bin", "README.md"],
        ["config.json", "main.py"],
        ["config.json", "src/main.py"],
        ["params.json", "notes.txt"],
        ["config.json", "firmware.bin", "thesis.tex"],
        ["config.json", "model.safetensors", "thesis.tex"],
        ["consolidated.00.pth", "params.json", "experiments/notes.txt"],
    ],
    ids=" ".join,
)
def test_force_replaces_nothing_but_a_checkpoint_folder(tmp_path: Path, meta: Path, names: list[str]) -> None:
    target = tmp_path / "out" / "target"
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine")
    text = refused(CheckpointWriteError, "meta", meta, target, force=True)
    assert "does not look like a checkpoint folder" in text


@pytest.mark.parametrize("kind", ["file", "link"])
def test_force_replaces_no_file_and_no_link(tmp_path: Path, meta: Path, kind: str) -> None:
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("mine")
    else:
        shutil.copytree(meta, tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    text = refused(CheckpointWriteError, "meta", meta, target, force=True)
    assert str(target) in text
    assert ("symbolic link" in text) == target.is_symlink() == (kind == "link")


def test_a_failed_conversion_takes_the_folders_with_it_that_it_made(tmp_path: Path) -> None:
    overflowing(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError):
        to("meta", tmp_path / "a", tmp_path / "mine" / "x" / "y" / "b", dtype=torch.float16)
    assert left_in(tmp_path / "mine") == []
    assert left_in(tmp_path) == ["a", "mine"]


@pytest.mark.parametrize("steps", ["one", "two"])
def test_force_puts_the_old_folder_back_if_the_new_one_cannot_get_its_name(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    target, rename = meta_folder(tmp_path / "out" / "target", 4), Path.rename
    before = content(target)

    def fails(path: Path, new: Path) -> Path:
        if path.name == ".target.unfinished":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", fails)
    monkeypatch.setattr(atomic_rename, "_exchange", fails if steps == "one" else lambda *_: False)
    with pytest.raises(CheckpointWriteError, match="was not written"):
        to("meta", meta, target, force=True)
    assert content(target) == before
    assert left_in(target.parent) == ["target"]


def test_force_does_not_replace_what_the_source_links_to(tmp_path: Path, meta: Path) -> None:
    """As in a cache of downloads, where a folder of links stands for the files."""
    links = tmp_path / "links"
    links.mkdir()
    for path in meta.iterdir():
        (links / path.name).symlink_to(path)
    text = refused(CheckpointWriteError, "meta", links, meta, shards=1, force=True)
    assert str(links) in text
    assert "link" in text


def test_what_replaces_a_folder_is_on_the_disk_before(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut could leave neither of the two."""
    target = meta_folder(tmp_path / "target", 4)
    synced, fsync = [], os.fsync

    def counted(handle: int) -> None:
        olds = [target, tmp_path / ".target.unfinished"]
        assert 4 in [len(list(each.glob("consolidated.*.pth"))) for each in olds], (
            "the old folder is gone already"
        )
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", counted)
    to("meta", meta, target, shards=1, force=True)
    assert {path.stat().st_ino for path in (target, *target.iterdir())} <= set(synced[:-1])
    assert synced[-1] == tmp_path.stat().st_ino, "and its new name, before the old folder is removed"


def test_a_failed_conversion_with_force_keeps_the_old_folder(tmp_path: Path) -> None:
    overflowing(tmp_path / "a")
    meta_folder(tmp_path / "b", 4)
    before = content(tmp_path / "b")
    with pytest.raises(ConfigError):
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.float16, force=True)
    assert content(tmp_path / "b") == before
    assert left_in(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "where", ["itself", "inside", "deep inside", "around", "by a link", "inside, by a link"]
)
def test_a_target_in_or_around_the_source_is_refused(
    tmp_path: Path, meta: Path, where: str, force: bool
) -> None:
    (tmp_path / "link").symlink_to(meta)
    target = {
        "itself": meta,
        "inside": meta / "new",
        "deep inside": meta / "a" / "b" / "new",
        "around": meta.parent,
        "by a link": tmp_path / "link",
        "inside, by a link": tmp_path / "link" / "new",
    }[where]
    before = content(tmp_path)
    words = "exists|symbolic link" if where == "by a link" else "is, contains or is inside the source"
    with pytest.raises(CheckpointWriteError, match=words):
        to("meta", meta, target, force=force)
    assert content(tmp_path) == before
    assert left_in(tmp_path) == ["link", "source"]


def test_a_relative_target_lies_in_the_current_folder(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    to("meta", meta, Path("a/../b"))
    assert left_in(tmp_path / "here") == ["b"]


def test_missing_parents_are_made(tmp_path: Path, meta: Path) -> None:
    to("hf", meta, tmp_path / "x" / "y" / "z")
    assert_is_twin(tmp_path / "x" / "y" / "z", {**WIDE, "n_kv_heads": 4}, weights_of(4, torch.float32))


def test_no_or_foreign_tokenizer(tmp_path: Path, meta: Path) -> None:
    target = tmp_path / "out" / "target"
    (tmp_path / "out").mkdir()
    refused(CheckpointMismatchError, "hf", meta, target, tokenizer_path=tiny_model_path("plain"))
    (meta / "tokenizer.model").unlink()
    assert "--tokenizer" in refused(CheckpointNotFoundError, "hf", meta, target)
    to("hf", meta, target, tokenizer_path=tiny_model_path())
    assert (target / "tokenizer.model").read_bytes() == tiny_model_path().read_bytes()


@pytest.mark.parametrize("shards", [3, 8, 5, 0])
def test_shards_that_the_heads_do_not_allow(tmp_path: Path, meta: Path, shards: int) -> None:
    """8 heads with 4 key/value heads; a shard holds whole ones."""
    text = refused(ConfigError, "meta", meta, tmp_path / "out", shards=shards)
    assert f"{shards} shards" in text
    assert "use one of 1, 2, 4" in text


def test_a_key_value_head_lies_in_one_shard(tmp_path: Path) -> None:
    """Four ranks would run this model, two of them with a copy of the same head; files have no copies."""
    meta = meta_folder(tmp_path / "source" / "meta", 2, kv_heads=2)
    assert open_checkpoint(meta).args.vocab_size % 4 == 0
    text = refused(ConfigError, "meta", meta, tmp_path / "out", shards=4)
    assert text.endswith("use one of 1, 2")


def test_other_wrong_parameters(tmp_path: Path, meta: Path) -> None:
    assert "--mp" in refused(ConfigError, "hf", meta, tmp_path / "out", shards=2)
    assert "'gguf'" in refused(ConfigError, "gguf", meta, tmp_path / "out")
    assert "torch.int8" in refused(ConfigError, "meta", meta, tmp_path / "out", dtype=torch.int8)


@pytest.mark.parametrize("way", ["file", "permissions"])
def test_a_parent_that_cannot_be_written(meta: Path, way: str) -> None:
    """root may write anywhere, so a test that runs as root steps down for a moment."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(meta, place / "source")
        parent = place / "parent"
        opened = open_checkpoint(place / "source")
        if way == "file":
            parent.write_text("mine")
        else:
            parent.mkdir()
            parent.chmod(0o555)
        root = way == "permissions" and os.geteuid() == 0
        before = content(place)
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(CheckpointWriteError, match=str(parent)) as caught:
                convert(opened, parent / "target", layout="meta")
        finally:
            if root:
                os.seteuid(0)
        words = "may not be written" if way == "permissions" else "is a file, not a folder"
        assert words in str(caught.value)
        assert content(place) == before
        assert left_in(place) == ["parent", "source"]


def test_too_little_disk_is_told_before_anything_is_written(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(conversion, "_write_file", lambda *a: written.append(a))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=20_000_000))
    text = refused(CheckpointWriteError, "hf", meta, tmp_path / "out" / "target")
    assert "0.02 GB free" in text
    assert "needs 0.03 GB" in text
    assert not written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_a_write_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, layout: str, number: int
) -> None:
    name = {"meta": "PthWriter", "hf": "SafetensorsWriter"}[layout]
    writer = getattr(conversion, name)
    calls = []

    def write(self: Any, chunks: Any, write: Any = writer.write) -> None:
        calls.append(1)
        write(self, chunks)
        if len(calls) > 6:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "write", write)
    text = refused(CheckpointWriteError, layout, meta, tmp_path / "out" / "target")
    assert "Nothing was left behind" in text
    assert ("is full" in text) == (number != errno.EIO)
    monkeypatch.undo()
    to(layout, meta, tmp_path / "out" / "target")


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


def test_a_file_that_does_not_read_back_is_an_error(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a byte: found before the folder gets its name."""
    close = conversion.PthWriter.close

    def spoiled(self: Any) -> Any:
        digest = close(self)
        data = bytearray(self.path.read_bytes())
        data[len(data) // 2] ^= 1
        self.path.write_bytes(data)
        return digest

    monkeypatch.setattr(conversion.PthWriter, "close", spoiled)
    text = refused(CheckpointWriteError, "meta", meta, tmp_path / "out" / "target")
    assert "does not read back" in text
    assert ".pth" in text


LIMITED = """
import resource, sys
from llama.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""
FULL = """
mount -t tmpfs -o size=1m none "$1" || exit 77
exec "$2" -c '
import shutil, sys
from types import SimpleNamespace
from llama.cli import main
source, place, patch = sys.argv[1:]
if patch == "patch":
    shutil.disk_usage = lambda path: SimpleNamespace(free=10**10)
code = main(["convert", source, place + "/target", "--to", "hf"])
import os
print(os.listdir(place))
sys.exit(code)' "$3" "$1" "$4"
"""


def test_a_quota_that_ends_in_the_middle_leaves_nothing(tmp_path: Path, meta: Path) -> None:
    done = run_python(LIMITED, "convert", meta, tmp_path / "out" / "target", "--to", "hf")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Nothing was left behind" in done.stderr
    assert left_in(tmp_path / "out") == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount namespace of its own")
@pytest.mark.parametrize("patch", ["patch", "plain"])
def test_a_disk_that_is_full(tmp_path: Path, patch: str) -> None:
    """A real one of 1 MB, for this test only; told before, and, where the system misreports, in the middle."""
    params = {**WIDE, "dim": 128}
    big = save_checkpoint(tmp_path / "big", params, random_weights(params, VOCAB), tiny_model_path())
    assert sum(path.stat().st_size for path in big.iterdir()) > 1.5e6
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-m", "sh", "-c", FULL, "sh", tmp_path / "disk", sys.executable, big, patch]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, timeout=HANGS, check=False
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this user may not mount a tmpfs")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert ("is full" if patch == "patch" else "free") in done.stderr
    assert done.stdout.strip() == "[]"


# A conversion that takes its time, a minute for each tensor, a tenth of a second at once; or one that dies at its
# very end.
SLOW = """
import os, signal, sys, time
from llama.checkpoint.convert import conversion as convert
from llama.cli import main
where = sys.argv[1]
def slowly(*a, chunks=convert._chunks):
    for chunk in chunks(*a):
        for _ in range(600):
            time.sleep(0.1)
            yield chunk[:0]
        yield chunk
def die(*a):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "slow":
    convert._chunks = slowly
else:
    setattr(convert, where, die)
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def slow(tmp_path: Path, meta: Path) -> Iterator[Any]:
    """A conversion under way: it has written something, and has minutes to go."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = []

    def start(layout: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOW, "slow", "convert", str(meta), str(tmp_path / "out" / "target")]
        process = subprocess.Popen(
            [*command, "--to", layout], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        folder, end = tmp_path / "out" / ".target.unfinished", time.monotonic() + HANGS
        while not [path for path in folder.glob("*") if path.name != ".lock"]:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.2)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize(
    ("number", "layout", "code"), [(signal.SIGTERM, "meta", 143), (signal.SIGINT, "hf", 130)], ids=str
)
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, meta: Path, slow: Any, number: int, layout: str, code: int
) -> None:
    process = slow(layout)
    before = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=HANGS)
    assert time.monotonic() - before < 30  # not only when it was done
    assert process.returncode == code
    word = "interrupted" if code == 130 else "terminated"
    assert err == f"{word}: {tmp_path / 'out' / 'target'} was not written\n"
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


@pytest.mark.parametrize("layout", ["meta"])
def test_a_killed_conversion_leaves_nothing_that_loads(
    tmp_path: Path, meta: Path, slow: Any, layout: str
) -> None:
    """The next run succeeds; while it lived, it had its target for itself."""
    process = slow(layout)
    with pytest.raises(CheckpointWriteError, match=r"another conversion is writing .*target"):
        to(layout, meta, tmp_path / "out" / "target")
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert_nothing_loads_then_convert(tmp_path / "out", meta, layout)


@pytest.mark.parametrize(("layout", "where"), [("hf", "config_of"), ("meta", "create")])
def test_a_conversion_killed_behind_its_weights_leaves_nothing_that_loads(
    tmp_path: Path, meta: Path, layout: str, where: str
) -> None:
    done = run_python(SLOW, where, "convert", meta, tmp_path / "out" / "target", "--to", layout)
    assert done.returncode == -signal.SIGKILL, done.stderr
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


def test_values_that_bfloat16_has_not_are_refused(tmp_path: Path) -> None:
    """float32 goes a little further than bfloat16 rounds to."""
    overflowing(tmp_path / "a", 3.4e38)
    with pytest.raises(ConfigError, match=r"values up to 3\.4e\+38, but bfloat16 ends"):
        to("meta", tmp_path / "a", tmp_path / "b", dtype=torch.bfloat16)
    assert left_in(tmp_path) == ["a"]


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_a_file_that_does_not_read_back_is_refused(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    close, damaged = OutputFile.close, set()

    def damaging(self: OutputFile) -> None:
        close(self)
        if self.path in damaged:
            return
        damaged.add(self.path)
        with self.path.open("r+b") as file:
            file.seek(self.written // 2)
            byte = file.read(1)
            file.seek(self.written // 2)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(OutputFile, "close", damaging)
    assert "does not read back" in refused(CheckpointWriteError, layout, meta, tmp_path / "b")


@pytest.mark.parametrize("blanks", range(8))
@pytest.mark.parametrize("tied", [False, True])
def test_an_unaligned_file_converts_and_loads_like_an_aligned_one(
    tmp_path: Path, meta: Path, blanks: int, tied: bool
) -> None:
    """Its weights are read in windows, some more than once, and stay what they are."""
    to("hf", meta, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b" " * blanks
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    weights = dict(weights_of(4, torch.float32))
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    source = open_checkpoint(tmp_path / "hf")
    for shards in (2, 4):
        convert(source, tmp_path / f"mp{shards}", layout="meta", shards=shards)
        assert_shards(tmp_path / f"mp{shards}", weights, shards)


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


def test_a_run_that_was_killed_between_its_renames_is_undone_by_the_next(tmp_path: Path, meta: Path) -> None:
    to("meta", meta, tmp_path / "b", shards=4)
    (tmp_path / "b").rename(tmp_path / ".b.replaced")
    with pytest.raises(CheckpointWriteError, match="exists"):
        to("meta", meta, tmp_path / "b")
    assert_shards(tmp_path / "b", weights_of(4, torch.float32), 4)
