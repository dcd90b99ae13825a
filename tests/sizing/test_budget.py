"""Laws of the plan before a load: the bytes announced are the bytes taken, and what is advised works."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import load_weights, open_checkpoint
from llama.distributed import world
from llama.distributed.devices import choose_device
from llama.distributed.parallel import Parallel
from llama.errors import ConfigError, LlamaError, OutOfMemoryError, ParallelismError
from llama.loading import build, choose_dtype
from llama.model import ModelArgs, Transformer
from llama.printable import shown
from llama.sizing import budget as memory
from llama.sizing.budget import cache_bytes_per_token, free_memory, plan_cache, weight_bytes

MIB = 1 << 20
CPU = torch.device("cpu")
FAMILY = {
    "7B": {"dim": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 32016},
    "13B": {"dim": 5120, "n_layers": 40, "n_heads": 40, "vocab_size": 32016},
    "34B": {"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "vocab_size": 32000},
    "70B": {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "vocab_size": 32016},
}


def family(name: str) -> ModelArgs:
    wide = {"34B": {"ffn_dim_multiplier": 1.0}, "70B": {"ffn_dim_multiplier": 1.3, "multiple_of": 4096}}
    return ModelArgs(**{**FAMILY[name], **wide.get(name, {})})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_announced_bytes_are_those_of_the_loaded_weights(
    tmp_path: Path, size: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    # Every slice has a multiple of 16 rows: a kernel's layout may round up to that.
    params = {**SHAPE, "dim": 256, "multiple_of": 128, "n_kv_heads": kv_heads}
    weights = random_weights(params, 128)
    save_checkpoint(tmp_path, params, weights, tiny_model_path())
    checkpoint = open_checkpoint(tmp_path, max_seq_len=32, max_batch_size=2)
    for rank in {0, size - 1}:
        with torch.device("meta"):
            model = Transformer(checkpoint.args, parallel=Parallel(rank, size))
        told: list[int] = []
        load_weights(model, checkpoint, CPU, dtype, progress=told.append)
        taken = sum(parameter.nbytes for parameter in model.parameters())
        assert not any(parameter.is_meta for parameter in model.parameters())
        assert weight_bytes(checkpoint.args, size, dtype) == taken == sum(told)
        cache = model.new_cache()
        cache.reserve(64)
        assert cache.nbytes == 64 * cache_bytes_per_token(checkpoint.args, size, dtype)


@pytest.mark.parametrize(("name", "mib"), [("7B", 0.50), ("13B", 0.78), ("34B", 0.19), ("70B", 0.31)])
def test_cache_bytes_of_the_family(name: str, mib: float) -> None:
    args = family(name)
    whole = cache_bytes_per_token(args, 1, torch.bfloat16)
    assert whole / MIB == pytest.approx(mib, abs=0.005)
    assert cache_bytes_per_token(args, 1, torch.float32) == 2 * whole
    assert cache_bytes_per_token(args, 8, torch.bfloat16) * 8 == whole


def test_more_ranks_than_key_value_heads_do_not_share_the_cache_further() -> None:
    args = family("34B")
    eight, sixteen = (cache_bytes_per_token(args, size, torch.bfloat16) for size in (8, 16))
    assert eight == sixteen > 0


@pytest.mark.parametrize(("name", "gb"), [("7B", 12.6), ("13B", 24.2), ("34B", 63), ("70B", 128.5)])
def test_weight_bytes_of_the_family(name: str, gb: float) -> None:
    """Meta's sizes of the shards, in GiB."""
    args = family(name)
    whole = weight_bytes(args, 1, torch.bfloat16)
    assert whole / (1 << 30) == pytest.approx(gb, rel=0.01)
    # Only the norms are held by every rank.
    assert 0 <= 8 * weight_bytes(args, 8, torch.bfloat16) - whole < 32 * MIB


# ---- the plan ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    params = {**SHAPE, "n_layers": 4}
    weights = random_weights(params, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "model", params, weights, tiny_model_path())


def room(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)


def bytes_of(folder: Path) -> tuple[int, int]:
    """Weights, and one position of the cache."""
    checkpoint = open_checkpoint(folder, max_seq_len=32, max_batch_size=2)
    args = checkpoint.args
    return weight_bytes(args, 1, torch.float32), cache_bytes_per_token(args, 1, torch.float32)


def test_the_suggested_max_seq_len_works_and_more_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, per_token = bytes_of(folder)
    room(monkeypatch, 2 * (weights + 100 * per_token))

    def attempt(max_seq_len: int) -> int:
        return build(folder, None, max_seq_len, 4, None, "cpu", "float32").cache_tokens

    with pytest.raises(OutOfMemoryError) as caught:
        attempt(1_000_000)
    text = str(caught.value)
    assert "1000000" in text
    assert "cpu" in text
    found = re.search(r"lower max_seq_len to (\d+)", text)
    assert found, text
    suggested = int(found[1])
    assert suggested > 100
    assert suggested <= attempt(suggested) <= 5 * suggested
    with pytest.raises(OutOfMemoryError):
        attempt(suggested + 1)
    # What is planned fits.
    assert weights + suggested * per_token <= 2 * (weights + 100 * per_token)


def test_numbers_of_the_error_are_those_of_the_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    room(monkeypatch, 3 * gib)
    _, per_token = bytes_of(folder)
    positions = 10 * gib // per_token
    with pytest.raises(OutOfMemoryError, match=r"10\.00 GiB.*3\.00 GiB"):
        build(folder, None, positions, 1, None, "cpu", "float32")


def test_weights_that_do_not_fit_are_not_blamed_on_max_seq_len(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = bytes_of(folder)
    room(monkeypatch, weights // 2)
    with pytest.raises(OutOfMemoryError, match="more ranks") as caught:
        build(folder, None, 16, 1, None, "cpu", "float32")
    assert "lower max_seq_len" not in str(caught.value)


def test_the_cache_is_bounded_by_limits_and_by_memory() -> None:
    args = ModelArgs(
        dim=64, n_layers=2, n_heads=4, vocab_size=64, multiple_of=16, max_batch_size=4, max_seq_len=100
    )
    weights, per_token = weight_bytes(args, 1, torch.float32), cache_bytes_per_token(args, 1, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        for free, least, most in (
            (None, 500, 500),
            (1 << 40, 800, 800),
            (2 * (weights + 150 * per_token), 150, 800),
            (weights * 10 // 9 + 130 * per_token, 100, 130),
        ):
            room(patch, free)
            assert least <= plan_cache(args, Parallel(), torch.float32, CPU).tokens <= most, free


GIB = 1 << 30


def plan(free: int | None, wanted: Any, **limits: int) -> Any:
    args = ModelArgs(
        **{"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "multiple_of": 16, "max_batch_size": 4}
        | {"max_seq_len": 100}
        | limits  # type: ignore[arg-type]
    )
    with pytest.MonkeyPatch.context() as patch:
        room(patch, free)
        return plan_cache(args, Parallel(), torch.float32, CPU, wanted)


def test_prefixes_get_a_quarter_of_what_is_free_at_most() -> None:
    """By default: what may run is what it was, and retention never takes most of a machine."""
    per_token = 2 * 2 * 64 * 4
    rich = plan(GIB, None)
    assert (rich.tokens, rich.retained) == (800, 400)
    large = plan(GIB, None, max_batch_size=1000, max_seq_len=10_000)
    assert large.tokens * per_token == pytest.approx(0.9 * GIB, rel=0.01)
    assert large.retained * per_token == pytest.approx(0.9 * GIB / 4, rel=0.01)


def test_cache_memory_is_bytes_or_a_share() -> None:
    per_token = 2 * 2 * 64 * 4
    for wanted in (GIB // 4, "0.25GiB", "256 MiB", f"{GIB // 4}", f" {GIB // 4}B "):
        made = plan(GIB, wanted)
        assert (made.tokens, made.retained) == (GIB // 4 // per_token,) * 2, wanted
    assert plan(GIB, "100MB").tokens == 100_000_000 // per_token
    assert plan(None, GIB).tokens == GIB // per_token
    for share in (0.5, "50%", "50.0 %"):
        assert plan(GIB, share).tokens * per_token == pytest.approx(0.45 * GIB, rel=0.01)
    assert plan(GIB, 1.0).tokens > plan(GIB, 0.99).tokens


_NONE = [0, -1, 10**400, 0.0, 1.5, -0.5, math.nan, math.inf, True, False, [1], b"4"]
_NO_TEXT = ["", "much", "9" * 300 + "GiB", "0", "0%", "150%", "-1GiB", "4 gigs", "GiB", "1e9"]


@pytest.mark.parametrize("wanted", [*_NONE, *_NO_TEXT])
def test_cache_memory_that_is_none_is_refused(wanted: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match="cache_memory") as caught:
        build(folder, None, 32, 1, None, "cpu", "auto", cache_memory=wanted)
    assert shown(wanted) in str(caught.value)


def test_cache_memory_is_held_against_limits_and_machine() -> None:
    with pytest.raises(ConfigError, match=r"holds 97 tokens of 1024 bytes.*max_seq_len 100"):
        plan(GIB, 100_000)
    with pytest.raises(OutOfMemoryError, match=r"2\.00 GiB.*0\.90 GiB"):
        plan(GIB, "2GiB")
    with pytest.raises(ConfigError, match="does not say how much is free"):
        plan(None, 0.5)


def test_cache_memory_reaches_the_engine_and_the_summary(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, per_token = bytes_of(folder)
    llama = Llama.build(folder, None, 48, 1, device="cpu", dtype="float32", cache_memory=160 * per_token)
    assert llama.engine.cache_tokens == 160
    text = "".join(capfd.readouterr())
    assert "cache for up to 160 tokens" in text
    assert "160 of them for reuse" in text


def test_a_small_cache_still_answers_every_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that do not fit side by side run in turns, and give the same text."""
    prompts = ["def return self", "class value", "import list index", "for i in range"]
    weights, per_token = bytes_of(folder)
    options: dict[str, Any] = {"temperature": 0, "max_gen_len": 24}
    expected = Llama.build(folder, None, 48, 4, device="cpu", dtype="float32").text_completion(
        prompts, **options
    )
    room(monkeypatch, int((weights + 60 * per_token) / 0.9) + 1)
    tight = Llama.build(folder, None, 48, 4, device="cpu", dtype="float32")
    assert tight.engine.cache_tokens < 2 * 48
    assert tight.text_completion(prompts, **options) == expected


def test_free_memory_of_a_cpu_is_shared_by_the_ranks_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available_ram", lambda: 800)
    assert free_memory(CPU) == 800
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert free_memory(CPU) == 200
    monkeypatch.setattr(memory, "_available_ram", lambda: None)
    assert free_memory(CPU) is None


def test_free_memory_is_what_the_system_says() -> None:
    psutil = pytest.importorskip("psutil")
    free = free_memory(CPU)
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


# ---- dtypes and devices -----------------------------------------------------------------------------


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
        monkeypatch.setattr("llama.loading._cpu_has_bfloat16", lambda has=has: has)
        capability = (9, 0) if has else (7, 5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, has=capability: has)
        assert choose_dtype("auto", torch.float32, CPU) == (torch.float32, "")
        assert choose_dtype("auto", torch.float16, CPU)[0] == torch.float32
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


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends to be a machine with so many CUDA devices, and mps or not."""

    def devices(cuda: int = 0, mps: bool = False, **environment: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))

    return devices


def test_auto_takes_cuda_then_mps_then_cpu(devices: Any) -> None:
    devices()
    assert choose_device("auto") == CPU
    devices(mps=True)
    assert choose_device("auto").type == "mps"
    devices(cuda=2, mps=True)
    assert choose_device("auto") == torch.device("cuda", 0)
    # Several ranks cannot share mps.
    devices(mps=True, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2)
    assert choose_device("auto") == CPU


def test_a_rank_takes_the_device_of_its_local_rank(devices: Any) -> None:
    """Which is not its rank, on several machines."""
    devices(cuda=4, RANK=6, LOCAL_RANK=2, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == CPU


def test_devices_that_are_not_there_are_refused(devices: Any) -> None:
    cases: list[tuple[dict[str, Any], str, type[LlamaError], str]] = [
        ({}, "cuda", ConfigError, "no CUDA device"),
        ({}, "mps", ConfigError, "none"),
        ({}, "gpu", ConfigError, "'gpu'"),
        ({}, "", ConfigError, "device ''"),
        ({}, "meta", ConfigError, "meta"),
        ({"cuda": 2}, "cuda:2", ConfigError, "cuda:2.*2"),
        ({"cuda": 2, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}, "auto", ParallelismError, "4 ranks.*2 CUDA"),
        ({"mps": True, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}, "mps", ParallelismError, "2 ranks"),
    ]
    for machine, name, kind, words in cases:
        devices(**machine)
        with pytest.raises(kind, match=words):
            choose_device(name)


@pytest.mark.parametrize("size", [0, -1, 1.0, "2", True])
def test_model_parallel_sizes_that_are_no_sizes(folder: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match="model_parallel_size"):
        build(folder, None, 32, 1, size, "cpu", "auto")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_one_rank_cannot_hold_a_part_of_a_model(folder: Path, size: int) -> None:
    with pytest.raises(ParallelismError, match=str(size)):
        build(folder, None, 32, 1, size, "cpu", "auto")


def test_a_world_without_a_launcher_is_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm and MPI set WORLD_SIZE too; a rank without an address to meet at would wait for ever."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelismError, match=r"MASTER_ADDR.*torchrun"):
        build(folder, None, 32, 1, None, "cpu", "auto")
    assert world._WORLD.users == 0


def test_auto_keeps_bfloat16_on_a_cpu_that_has_it():
    """Unpatched, and judged by the system's own list of the CPU's instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "avx512_bf16" not in cpuinfo.read_text():
        pytest.skip("this CPU has no AVX512-BF16, or the system does not say")
    assert choose_dtype("auto", torch.bfloat16, torch.device("cpu")) == (torch.bfloat16, "")
