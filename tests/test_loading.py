"""Laws of `build`: the dtype it chooses, and the arguments that it refuses before it loads anything."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from cpu_levels import has_compiler, runs
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.memory import WeightMemory, weight_memory
from llama.distributed import world
from llama.distributed.parallel import Parallel
from llama.errors import ConfigError, OutOfMemoryError, ParallelismError, RankError
from llama.kernels import compiled
from llama.loading import build, check_same_formats, choose_dtype
from llama.sizing.budget import amount

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", ["float64", "int8", "half", "", torch.float64, torch.int8, None, 16])
def test_unknown_dtypes_are_refused(wanted: Any) -> None:
    with pytest.raises(ConfigError, match="bfloat16") as caught:
        choose_dtype(wanted, torch.bfloat16, CPU)
    assert repr(wanted) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_dtype_that_is_asked_for_is_taken(dtype: torch.dtype) -> None:
    for stored in (torch.float32, torch.float16, torch.bfloat16):
        for wanted in (dtype, str(dtype).removeprefix("torch.")):
            chosen, why = choose_dtype(wanted, stored, CPU)
            assert chosen == dtype
            assert (why == "") == (stored == dtype)


def test_auto_takes_the_stored_dtype_where_the_device_computes_well_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda", 0)
    for has in (True, False):
        monkeypatch.setattr("llama.loading.computes_well", lambda dtype, device, has=has: has)
        capability = (9, 0) if has else (7, 5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, has=capability: has)
        assert choose_dtype("auto", torch.float32, CPU) == (torch.float32, "")
        assert choose_dtype("auto", torch.float16, CPU)[0] == (torch.float16 if has else torch.float32)
        assert choose_dtype("auto", torch.bfloat16, CPU)[0] == (torch.bfloat16 if has else torch.float32)
        assert choose_dtype("auto", torch.bfloat16, cuda)[0] == (torch.bfloat16 if has else torch.float16)
        assert choose_dtype("auto", torch.float16, cuda) == (torch.float16, "")
        assert choose_dtype("auto", torch.float64, CPU)[0] == torch.float32
    # A choice that is not the stored one says why.
    assert "bfloat16" in choose_dtype("auto", torch.bfloat16, CPU)[1]


def test_auto_asks_the_gpu_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two kinds in one machine, whichever is the current one."""
    kinds = {0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: kinds[getattr(device, "index", device)]
    )
    for current in kinds:
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda *_, current=current: kinds[current] >= (8, 0)
        )
        chosen = [choose_dtype("auto", torch.bfloat16, torch.device("cuda", i))[0] for i in kinds]
        assert chosen == [torch.bfloat16, torch.float16]


def test_auto_keeps_16_bit_on_a_cpu_that_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever they are, judged by the system's own list of the CPU's instructions."""
    least = "armv8-a" if platform.machine() in ("aarch64", "arm64") else "x86-64-v3"
    if not runs(least):
        pytest.skip(f"this CPU does not run {least}")
    if not has_compiler():
        pytest.skip("no C compiler")
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    compiled.best.cache_clear()
    try:
        for stored in (torch.bfloat16, torch.float16):
            assert choose_dtype("auto", stored, CPU) == (stored, "")
    finally:
        monkeypatch.undo()
        compiled.best.cache_clear()


def test_auto_without_kernels_takes_the_fast_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama.kernels.native.kernels", lambda: None)
    assert choose_dtype("auto", torch.float16, CPU)[0] == torch.float32
    assert choose_dtype("auto", torch.float32, CPU) == (torch.float32, "")
    monkeypatch.setattr("llama.kernels.onednn.can_pack", lambda dtype: False)
    chosen, why = choose_dtype("auto", torch.bfloat16, CPU)
    assert chosen == torch.float32
    assert "bfloat16" in why


# ---- the cache's dtype ----

WIDE = {**SHAPE, "dim": 128, "n_heads": 4}


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A checkpoint whose heads have 32 numbers."""
    weights = random_weights(WIDE, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "wide", WIDE, weights, tiny_model_path())


@pytest.mark.parametrize("wanted", ["int4", "INT8", "", "float16", torch.int8, None, 8, ["int8"]])
def test_unknown_cache_dtypes_are_refused(tiny_checkpoint: Path, wanted: Any) -> None:
    with pytest.raises(ConfigError, match=r"^cache_dtype is .*; use auto or int8$"):
        build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto", cache_dtype=wanted)


def test_heads_that_are_no_whole_blocks_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="blocks of 32 numbers, but this model's heads have 8; use auto"):
        build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto", cache_dtype="int8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_int8_cache_holds_more_tokens_in_the_same_memory(
    wide: Path, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = []
    for cache_dtype in ("auto", "int8"):
        with Llama.build(
            wide, None, 64, 2, device="cpu", dtype=dtype, cache_memory="1MiB", cache_dtype=cache_dtype
        ) as llama:
            found.append((llama.engine.blocks.total, llama.model.new_pool(2).nbytes))
            llama.text_completion(["def f(x):"], max_gen_len=5)
    bits = 32 if dtype == "float32" else 16
    assert found[1][0] == pytest.approx(found[0][0] * bits / 8.5, rel=0.01)
    assert found[1][1] * bits == found[0][1] * 8.5
    line, other = capfd.readouterr().err.splitlines()
    assert " in int8 (1.0 MiB)" in other
    assert "int8" not in line


@pytest.mark.parametrize("size", [0, -1, 1.0, "2", True])
def test_model_parallel_sizes_that_are_no_sizes(tiny_checkpoint: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match="model_parallel_size"):
        build(tiny_checkpoint, None, 32, 1, size, "cpu", "auto")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_one_rank_cannot_hold_a_part_of_a_model(tiny_checkpoint: Path, size: int) -> None:
    with pytest.raises(ParallelismError, match=str(size)):
        build(tiny_checkpoint, None, 32, 1, size, "cpu", "auto")


def test_a_world_without_a_launcher_is_told_apart(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm and MPI set WORLD_SIZE too; a rank without an address to meet at would wait for ever."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelismError, match=r"MASTER_ADDR.*torchrun"):
        build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto")
    assert world._WORLD.users == 0


def test_ranks_that_cannot_connect_say_so(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a wrong address, or a machine that is gone."""

    def refused(url: str) -> None:
        raise dist.DistNetworkError("connection refused by 10.0.0.1")

    monkeypatch.setattr(dist, "rendezvous", refused)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RankError, match=r"rank 1 could not connect.*refused by 10\.0\.0\.1.*MASTER_ADDR"):
        build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto")
    assert world._WORLD.users == 0


# ---- quantized weights ----


class Other:
    """Stands in for a rank's `Parallel`; the other rank gives some numbers in the place of this one's."""

    def __init__(self, *others: int) -> None:
        self._others = list(others)

    def smallest(self, value: int, device: torch.device) -> int:
        return min(value, self._others.pop(0))


def memory_of(folder: Path, quantize: str | None = None) -> WeightMemory:
    return weight_memory(open_checkpoint(folder, quantize=quantize), 0, 1, CPU, torch.float32)


@pytest.mark.skipif(not has_compiler(), reason="no C compiler")
def test_ranks_that_store_weights_otherwise_are_refused(tiny_checkpoint: Path) -> None:
    """As when the kernels of one machine were not compiled: it would need other memory, and give other numbers."""
    memory = memory_of(tiny_checkpoint, "int8")
    seen: list[int] = []
    parallel: Any = Parallel()
    check_same_formats(parallel, memory)
    spy: Any = Other(2**40, 2**40)
    spy.smallest = lambda value, device: (seen.append(value), value)[1]
    check_same_formats(spy, memory)
    assert seen[0] == -seen[1]
    check_same_formats(cast("Parallel", Other(seen[0], -seen[0])), memory)
    for number in (seen[0] - 1, seen[0] + 1):
        with pytest.raises(ConfigError, match=r"int8.*another rank otherwise"):
            check_same_formats(cast("Parallel", Other(number, -number)), memory)
    plain = memory_of(tiny_checkpoint)
    with pytest.raises(ConfigError, match="another rank otherwise"):
        check_same_formats(cast("Parallel", Other(seen[0], -seen[0])), plain)


@pytest.mark.skipif(not has_compiler(), reason="no C compiler")
def test_the_line_says_what_is_in_memory(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = memory_of(tiny_checkpoint, "int8")
    built = build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto", quantize="int8")
    err = capsys.readouterr().err
    assert "parameters, int8, activations float32) on cpu" in err
    assert f"{amount(memory.nbytes)} per rank" in err
    assert memory.nbytes < 0.6 * memory_of(tiny_checkpoint).nbytes
    assert built.model.layers[0].attention.wq.packed.is_quantized
    build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto")
    assert "parameters, float32) on cpu" in capsys.readouterr().err


def test_a_device_without_kernels_loads_plain_weights_and_says_so(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama.kernels.native.kernels", lambda: None)
    built = build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto", quantize="int8")
    err = capsys.readouterr().err
    assert "matrices of int8 are loaded as float32" in err
    assert "csrc: no compiled kernels are in use" in err
    assert not built.model.layers[0].attention.wq.packed.is_quantized


@pytest.mark.skipif(not has_compiler(), reason="no C compiler")
def test_the_cache_is_planned_beside_the_real_bytes(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = memory_of(tiny_checkpoint, "int8").nbytes, memory_of(tiny_checkpoint).nbytes
    monkeypatch.setattr("llama.sizing.budget.free_memory", lambda *_: int((small + large) / 2 / 0.9))
    assert build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto", quantize="int8").cache_tokens > 32
    with pytest.raises(OutOfMemoryError, match="quantized weights"):
        build(tiny_checkpoint, None, 32, 1, None, "cpu", "auto")
