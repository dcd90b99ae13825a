"""Laws of checkpoint files: whatever the shards and the ranks, a rank gets its slices bit for bit; whatever is wrong
with a folder is named before anything is allocated; no file makes the loader run code.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import HANGS, ROOT
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import loading as builder
from llama.checkpoint import MetaCheckpoint, base
from llama.checkpoint.layouts.meta_files import shard_files
from llama.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    LlamaError,
    TokenizerError,
)
from llama.loading import build

# 8 heads on up to 8 ranks: every dimension divides by 8. One shape per number of key/value heads.
WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 1}
VOCAB = 48


def mine(name: str, whole: torch.Tensor, params: dict[str, Any], rank: int, size: int) -> torch.Tensor:
    """What rank `rank` of `size` must hold, by head and by neuron, written a second time."""
    part = name.split(".")[-2]
    if part in ("attention_norm", "ffn_norm", "norm"):
        return whole
    if part in ("wk", "wv"):
        heads = list(whole.reshape(params["n_kv_heads"] or params["n_heads"], -1, whole.shape[1]))
        # The query heads of this rank, and the key/value heads that those attend with.
        queries = params["n_heads"] // size
        group = params["n_heads"] // len(heads)
        wanted = sorted({q // group for q in range(rank * queries, (rank + 1) * queries)})
        return torch.cat([heads[head] for head in wanted])
    if part in ("wo", "w2", "tok_embeddings"):
        each = whole.shape[1] // size
        return whole[:, rank * each : (rank + 1) * each]
    each = whole.shape[0] // size
    return whole[rank * each : (rank + 1) * each]


def opened(folder: Path) -> MetaCheckpoint:
    return MetaCheckpoint(folder, 64, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shards", "kv_heads"),
    [(shards, kv) for kv in (None, 4, 2, 1) for shards in (1, 2, 4) if shards <= (kv or 8)],
)
def test_every_rank_gets_its_slices_bit_for_bit(
    tmp_path: Path, shards: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    params = {**WIDE, "n_kv_heads": kv_heads}
    weights = {name: value.to(dtype) for name, value in random_weights(params, VOCAB).items()}
    checkpoint = opened(save_checkpoint(tmp_path, params, weights, tiny_model_path(), shards, dtype))
    assert checkpoint.dtype == dtype
    assert checkpoint.args.vocab_size == VOCAB
    for size in (1, 2, 4, 8):
        for rank in range(size):
            for name, whole in weights.items():
                expected = mine(name, whole, params, rank, size)
                found = torch.full(expected.shape, torch.nan, dtype=dtype)
                checkpoint.copy_slice(name, found, rank, size)
                assert torch.equal(found, expected), f"{name} of rank {rank} of {size}"
                if size == 2:
                    wider = torch.full(expected.shape, torch.nan, dtype=torch.float32)
                    checkpoint.copy_slice(name, wider, rank, size)
                    assert torch.equal(wider, expected.float())


def test_a_slice_larger_than_the_window_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_WINDOW", 1000)
    weights = random_weights(WIDE, VOCAB)
    checkpoint = opened(save_checkpoint(tmp_path, WIDE, weights, tiny_model_path(), 2))
    for name, whole in weights.items():
        expected = mine(name, whole, WIDE, 1, 4)
        found = torch.full(expected.shape, torch.nan)
        checkpoint.copy_slice(name, found, 1, 4)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shards", [1, 2])
def test_only_pages_of_the_slice_itself_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """What lies behind a mapped file may belong to anyone; giving it back would wipe it."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(base.huge_pages, "drop", lambda address, length: given.append((address, length)))
    weights = random_weights(WIDE, VOCAB)
    checkpoint = opened(save_checkpoint(tmp_path, WIDE, weights, tiny_model_path(), shards))
    for name, whole in weights.items():
        stored = [tensor for key, _, tensor in checkpoint.stored() if key == name]
        mapped = [(each.data_ptr(), each.data_ptr() + each.nbytes) for each in stored]
        for rank in range(8):
            given.clear()
            checkpoint.copy_slice(name, torch.empty(mine(name, whole, WIDE, rank, 8).shape), rank, 8)
            assert given
            for address, length in given:
                assert any(a <= address and address + length <= b for a, b in mapped), f"{name}, rank {rank}"


# ---- folders that do not fit ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound shards for the tiny tokenizer."""
    weights = random_weights(WIDE, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "model", WIDE, weights, tiny_model_path(), 2)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Build must raise the error, with all the words in its text, and allocate nothing before it."""

    def refuse(folder: Path, kind: type[LlamaError], *words: object, **options: Any) -> str:
        def reached(*_: object, **__: object) -> Any:
            raise AssertionError("something was allocated, or a group joined, before the files were checked")

        # torch.empty is not replaced: torch.load itself may use it.
        for name in ("Transformer", "load_weights", "plan_cache", "join"):
            monkeypatch.setattr(builder, name, reached)
        with pytest.raises(LlamaError) as caught:
            build(
                folder,
                options.get("tokenizer"),
                64,
                2,
                options.get("size"),
                "cpu",
                options.get("dtype", "auto"),
            )
        monkeypatch.undo()
        text = str(caught.value)
        assert type(caught.value) is kind, f"{caught.value!r}"
        for word in words:
            assert str(word) in text, f"{word!r} is not in {text!r}"
        assert "\n" not in text
        return text

    return refuse


def test_a_sound_folder_builds(folder: Path) -> None:
    built = build(folder, None, 64, 2, None, "cpu", "auto")
    expected = random_weights(WIDE, tiny_tokenizer().n_words)
    state = built.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def edit(folder: Path, shard: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


WQ = "layers.0.attention.wq.weight"
NORM = "layers.0.ffn_norm.weight"


@pytest.mark.parametrize("name", [WQ, NORM, "output.weight", "norm.weight"])
@pytest.mark.parametrize("shard", [0, 1])
def test_a_missing_tensor_is_named(folder: Path, refuse: Any, shard: int, name: str) -> None:
    edit(folder, shard, lambda tensors: tensors.pop(name))
    refuse(folder, CheckpointMismatchError, name, f"consolidated.{shard:02d}.pth")


def test_a_missing_embedding_is_named(folder: Path, refuse: Any) -> None:
    edit(folder, 0, lambda tensors: tensors.pop("tok_embeddings.weight"))
    refuse(folder, CheckpointMismatchError, "tok_embeddings.weight")


@pytest.mark.parametrize(
    "name", ["layers.1.attention.wq.weight", "lm_head.weight", "layers.0.attention.wq.bias"]
)
@pytest.mark.parametrize("shard", [0, 1])
def test_a_surplus_tensor_is_named(folder: Path, refuse: Any, shard: int, name: str) -> None:
    edit(folder, shard, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refuse(folder, CheckpointMismatchError, name, f"consolidated.{shard:02d}.pth")


@pytest.mark.parametrize("name", [WQ, NORM, "layers.0.feed_forward.w2.weight", "tok_embeddings.weight"])
@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("wrong", ["longer", "flat", "turned"])
def test_a_tensor_of_another_shape_is_named(
    folder: Path, refuse: Any, shard: int, name: str, wrong: str
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        value = tensors[name]
        shapes = {
            "longer": torch.cat([value, value], dim=-1),
            "flat": value.flatten() if value.dim() > 1 else value[None],
            "turned": value.T.contiguous() if value.dim() > 1 else value[:-1],
        }
        tensors[name] = shapes[wrong]

    edit(folder, shard, change)
    refuse(folder, CheckpointMismatchError, name)


def test_another_shape_is_told_with_its_numbers(folder: Path, refuse: Any) -> None:
    edit(folder, 1, lambda tensors: tensors.update({WQ: torch.zeros(30, 64)}))
    refuse(folder, CheckpointMismatchError, WQ, "[30, 64]", "[32, 64]", "consolidated.01.pth")


@pytest.mark.parametrize("shard", [0, 1])
def test_mixed_dtypes_are_named(folder: Path, refuse: Any, shard: int) -> None:
    edit(folder, shard, lambda tensors: tensors.update({WQ: tensors[WQ].half()}))
    refuse(folder, CheckpointMismatchError, WQ, "float16", "float32")


def test_params_of_another_model_are_a_mismatch(folder: Path, refuse: Any) -> None:
    for change, name in (
        ({"n_layers": 2}, "layers.1."),
        ({"n_kv_heads": 4}, "wk"),
        ({"dim": 128}, "wq"),
        ({"multiple_of": 64}, "w1"),
    ):
        (folder / "params.json").write_text(json.dumps({**WIDE, **change}))
        refuse(folder, CheckpointMismatchError, name)


def test_shards_of_different_models_are_a_mismatch(folder: Path, refuse: Any, tmp_path: Path) -> None:
    other = {**WIDE, "dim": 128}
    save_checkpoint(tmp_path / "other", other, random_weights(other, VOCAB), tiny_model_path(), 2)
    shutil.copy(tmp_path / "other" / "consolidated.01.pth", folder)
    refuse(folder, CheckpointMismatchError, "consolidated.01.pth", "tok_embeddings.weight")


@pytest.mark.parametrize(("saved", "kept"), [(2, 1), (4, 3), (4, 2)])
def test_lost_last_shards_are_a_mismatch(tmp_path: Path, refuse: Any, saved: int, kept: int) -> None:
    params = {**WIDE, "n_kv_heads": 4}
    weights = random_weights(params, tiny_tokenizer().n_words)
    save_checkpoint(tmp_path / "m", params, weights, tiny_model_path(), saved)
    for i in range(kept, saved):
        (tmp_path / "m" / f"consolidated.{i:02d}.pth").unlink()
    refuse(tmp_path / "m", CheckpointMismatchError, "tok_embeddings.weight")


def test_a_vocabulary_that_params_contradict_is_a_mismatch(folder: Path, refuse: Any) -> None:
    rows = tiny_tokenizer().n_words
    (folder / "params.json").write_text(json.dumps({**WIDE, "vocab_size": rows + 8}))
    refuse(folder, CheckpointMismatchError, rows, rows + 8)
    (folder / "params.json").write_text(json.dumps({**WIDE, "vocab_size": rows}))
    assert opened(folder).args.vocab_size == rows


def test_a_tokenizer_of_another_size_is_a_mismatch(folder: Path, refuse: Any) -> None:
    theirs, rows = tiny_tokenizer("plain").n_words, tiny_tokenizer().n_words
    assert theirs != rows
    refuse(folder, CheckpointMismatchError, theirs, rows, tokenizer=tiny_model_path("plain"))
    shutil.copy(tiny_model_path("plain"), folder / "tokenizer.model")
    refuse(folder, CheckpointMismatchError, theirs, rows, "tokenizer.model")


def test_rope_freqs_may_be_there_or_not(folder: Path) -> None:
    """And in some shards only, in any dtype and shape."""
    with_freqs = torch.load(folder / "consolidated.00.pth", weights_only=True)
    assert "rope.freqs" in with_freqs
    edit(folder, 0, lambda tensors: tensors.pop("rope.freqs"))
    edit(folder, 1, lambda tensors: tensors.update({"rope.freqs": torch.zeros(3, 3, dtype=torch.int32)}))
    assert all(name != "rope.freqs" for name, _, _ in opened(folder).stored())


# ---- files that are not there, or are not what their names say --------------------------------------


def test_a_missing_folder(tmp_path: Path, refuse: Any) -> None:
    refuse(tmp_path / "nowhere", CheckpointNotFoundError, tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize("denied", [os.R_OK, os.X_OK])
def test_a_folder_that_may_not_be_read(
    folder: Path, refuse: Any, monkeypatch: pytest.MonkeyPatch, denied: int
) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & denied)  # root may read all
    refuse(folder, CheckpointNotFoundError, folder, "may not be read")


def test_a_file_for_a_folder(folder: Path, refuse: Any) -> None:
    refuse(folder / "consolidated.00.pth", CheckpointNotFoundError, "is a file", "folder")


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ([], "empty"),
        (["consolidated.00.pth.part", "params.json"], ".part"),
        (["model.safetensors"], "no config.json"),
        (["pytorch_model.bin"], "no config.json"),
        (["CodeLlama-7b-hf/config.json"], "CodeLlama-7b-hf"),
        (["CodeLlama-7b/consolidated.00.pth", "LICENSE"], "CodeLlama-7b"),
        (["blobs/1", "refs/main", "snapshots/1f/config.json"], "pass /given/snapshots/1f"),
        (["README.md", "notes.txt"], "README.md"),
        ([f"file{i}" for i in range(30)], "24 more"),
        (["consolidated.00.pth.bak", "consolidated.pth"], "consolidated.pth"),
    ],
)
def test_a_folder_without_shards_says_what_is_there(
    tmp_path: Path, refuse: Any, names: list[str], word: str
) -> None:
    where = tmp_path / "given"
    where.mkdir()
    for name in names:
        (where / name).parent.mkdir(exist_ok=True, parents=True)
        (where / name).write_bytes(b"x")
    refuse(where, CheckpointNotFoundError, where, word.replace("/given", str(where)))


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_gap_in_the_shards_is_named(tmp_path: Path, refuse: Any, gone: int) -> None:
    params = {**WIDE, "n_kv_heads": 4}
    weights = random_weights(params, tiny_tokenizer().n_words)
    folder = save_checkpoint(tmp_path / "m", params, weights, tiny_model_path(), 4)
    (folder / f"consolidated.{gone:02d}.pth").unlink()
    refuse(folder, CheckpointNotFoundError, f"consolidated.{gone:02d}.pth", "3 shards")


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"consolidated.{i:02d}.pth" for i in range(12)]
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in shard_files(tmp_path)] == names


@pytest.mark.parametrize(
    "start", [b"<!DOCTYPE html><html>", b"\n\n  <html>", b"<?xml version='1.0'?><Error>"]
)
@pytest.mark.parametrize("shard", [0, 1])
def test_a_page_saved_as_weights(folder: Path, refuse: Any, start: bytes, shard: int) -> None:
    path = folder / f"consolidated.{shard:02d}.pth"
    path.write_bytes(start + b"<body>Access denied</body>" * 100)
    refuse(folder, CheckpointFormatError, path, "HTML", path.stat().st_size)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.9, 0.99, 0.999, 0.99999])
def test_truncated_shards(folder: Path, refuse: Any, share: float) -> None:
    path = folder / "consolidated.01.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refuse(folder, CheckpointFormatError, path, "empty" if share == 0 else "download it again")


def test_a_shard_that_is_no_torch_file(folder: Path, refuse: Any) -> None:
    path = folder / "consolidated.00.pth"
    for content in (b'{"error": "forbidden"}', os.urandom(5000), b"PK\x03\x04" + bytes(500)):
        path.write_bytes(content)
        refuse(folder, CheckpointFormatError, path)
    shutil.make_archive(str(folder / "other"), "zip", folder, "params.json")
    shutil.move(folder / "other.zip", path)
    refuse(folder, CheckpointFormatError, path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": {"a": torch.zeros(2)}}, {1: torch.zeros(2)}, torch.zeros(2)]
)
def test_a_shard_that_is_no_state_dict(folder: Path, refuse: Any, content: object) -> None:
    torch.save(content, folder / "consolidated.00.pth")
    refuse(folder, CheckpointFormatError, "consolidated.00.pth")


class Malicious:
    """Its unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "way", ["zip", "zip beside tensors", "legacy", "raw pickle", "raw pickle, protocol 0"]
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(folder: Path, refuse: Any, way: str) -> None:
    trap, path = folder.parent / "trap", folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    content = {**tensors, "extra": Malicious(trap)} if way == "zip beside tensors" else Malicious(trap)
    if way.startswith("zip") or way == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=way != "legacy")
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if way.endswith("0") else 4))
        pickle.loads(path.read_bytes())
    # The trap works: an unpickler that runs code springs it.
    assert trap.exists()
    trap.unlink()
    refuse(folder, CheckpointFormatError, path)
    assert not trap.exists()


def test_the_format_before_torch_1_6_is_refused_with_a_way_out(folder: Path, refuse: Any) -> None:
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    refuse(folder, CheckpointFormatError, path, "torch.save")


# ---- params.json and tokenizer ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (None, CheckpointNotFoundError, ["params.json", "missing"]),
        ("", CheckpointFormatError, ["params.json", "JSON"]),
        ('{"dim": 64,', CheckpointFormatError, ["params.json", "JSON"]),
        ("<html>", CheckpointFormatError, ["params.json", "JSON"]),
        ("\xff\xfe", CheckpointFormatError, ["params.json", "JSON"]),
        ("[" * 100_000, CheckpointFormatError, ["params.json", "JSON"]),
        ("[1, 2]", CheckpointFormatError, ["params.json", "list"]),
        ('"dim"', CheckpointFormatError, ["params.json", "str"]),
        ("null", CheckpointFormatError, ["params.json"]),
    ],
)
def test_params_that_cannot_be_read(
    folder: Path, refuse: Any, text: str | None, kind: type[CheckpointError], words: list[str]
) -> None:
    path = folder / "params.json"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("latin-1"))
    refuse(folder, kind, *words)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads"])
def test_a_missing_hyperparameter_is_named(folder: Path, refuse: Any, key: str) -> None:
    (folder / "params.json").write_text(json.dumps({k: v for k, v in WIDE.items() if k != key}))
    refuse(folder, ConfigError, "params.json", key)


def test_unknown_hyperparameters_are_named(folder: Path, refuse: Any) -> None:
    # max_seq_len is a parameter of build, not of a checkpoint.
    (folder / "params.json").write_text(json.dumps({**WIDE, "sliding_window": 4096, "max_seq_len": 9}))
    refuse(folder, ConfigError, "params.json", "sliding_window", "max_seq_len")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", "64"),
        ("dim", -64),
        ("dim", 60),
        ("n_layers", 1.5),
        ("n_layers", True),
        ("n_heads", 0),
        ("n_kv_heads", 3),
        ("norm_eps", float("nan")),
        ("rope_theta", None),
        ("rope_theta", -1),
        ("ffn_dim_multiplier", "1"),
        ("multiple_of", 0),
        ("vocab_size", 0),
        ("vocab_size", "many"),
    ],
)
def test_bad_hyperparameters_are_named(folder: Path, refuse: Any, key: str, value: object) -> None:
    (folder / "params.json").write_text(json.dumps({**WIDE, key: value}))
    refuse(folder, ConfigError, "params.json", key, value)


def test_tokenizers_that_cannot_be_used(folder: Path, refuse: Any) -> None:
    path = folder / "tokenizer.model"
    path.write_text("<!DOCTYPE html><html>Access denied</html>")
    refuse(folder, TokenizerError, path)
    path.write_bytes(b"")
    refuse(folder, TokenizerError, path)
    path.unlink()
    refuse(folder, CheckpointNotFoundError, path, "tokenizer_path")
    refuse(folder, TokenizerError, folder / "nowhere.model", tokenizer=folder / "nowhere.model")


# ---- memory -----------------------------------------------------------------------------------------

LOAD = """
import sys, torch
from pathlib import Path
from llama.loading import build
def status(key):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").open() if l.startswith(key))
before = status("VmRSS")
built = build(sys.argv[1], None, 64, 1, None, "cpu", "auto")
weights = sum(p.nbytes for p in built.model.parameters())
print(weights, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """1.15 x weights + 200 MB, at the peak. A copy of the file beside the weights would be 2 x."""
    params = {**SHAPE, "dim": 1024, "n_layers": 6, "n_heads": 16, "n_kv_heads": 16, "multiple_of": 256}
    shapes = {name: value.shape for name, value in random_weights({**WIDE, **params, "dim": 64}, 8).items()}
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(1 << 20, generator=generator)
    vocab = tiny_tokenizer().n_words
    hidden, dim = 2816, 1024
    sizes = {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}
    sizes |= {"tok_embeddings": (vocab, dim), "output": (vocab, dim)}
    weights = {}
    for name in shapes:
        part = name.split(".")[-2]
        shape = (dim,) if "norm" in part else sizes.get(part, (dim, dim))
        count = torch.Size(shape).numel()
        weights[name] = block.repeat(-(-count // len(block)))[:count].view(shape)
    folder = save_checkpoint(tmp_path / "large", params, weights, tiny_model_path(), 2)
    expected = sum(value.nbytes for value in weights.values())
    del weights
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], env=env, capture_output=True, text=True, timeout=HANGS
    )
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    held, grown = map(int, done.stdout.split())
    assert held == expected
    assert expected > 300e6
    assert grown <= 1.15 * held + 200e6, f"{grown / 1e6:.0f} MB for {held / 1e6:.0f} MB of weights"
