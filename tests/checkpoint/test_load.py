"""Laws of loading: every rank gets its slices bit for bit, and memory is the weights of this rank."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from slices import mine
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import MetaCheckpoint, base
from llama.kernels import native
from llama.loading import build

# 8 heads on up to 8 ranks: every dimension divides by 8. One shape per number of key/value heads.
WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 1}


VOCAB = 48


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


def test_a_weight_that_no_file_holds_is_read_as_often_as_wanted(tmp_path: Path) -> None:
    """A layout may compute one, as when an adapter is merged: pages of such memory are not given back."""
    checkpoint = opened(save_checkpoint(tmp_path, WIDE, random_weights(WIDE, VOCAB), tiny_model_path(), 1))
    merged = torch.ones(4096, 1024)
    for _ in range(2):
        assert all(bool((window == 1).all()) for _, window in checkpoint.windows(merged))
    assert bool((merged == 1).all())


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


def status(key: str) -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def loads(folder: str, quantize: str | None) -> int:
    """Print the bytes of the weights that were built, and those that the process grew by at most."""
    torch.set_num_threads(1)
    before = status("VmRSS")
    built = build(folder, None, 64, 1, None, "cpu", "auto", quantize=quantize)
    layers: list[Any] = [module for module in built.model.modules() if hasattr(module, "packed")]
    theirs = {id(layer.weight) for layer in layers}
    held = sum(each.nbytes for each in built.model.parameters() if id(each) not in theirs)
    held += sum(layer.packed.nbytes for layer in layers)
    print(held, status("VmHWM") - before)
    return 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """1.15 x weights + 200 MB, at the peak. A copy of the file beside the weights would be 2 x; quantized while they
    are read, they are a fourth of the file."""
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
    found = []
    for quantize in (None, "int8"):
        child = Forked(tmp_path / "child", loads, str(folder), quantize)
        assert child.wait() == 0, child.stderr
        found.append(tuple(map(int, child.stdout.split())))
    shutil.rmtree(folder)
    assert expected > 300e6
    # The last group of 16 outputs of a packed weight is filled up.
    assert expected <= found[0][0] < expected + 16 * dim * 4
    if native.kernels() is not None:
        assert found[1][0] < 0.3 * expected
    for held, grown in found:
        assert grown <= 1.15 * held + 200e6, f"{grown / 1e6:.0f} MB for {held / 1e6:.0f} MB of weights"
