"""Laws of the memory plan: the predicted bytes are the bytes taken, and the advice in an error works."""

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
from llama.distributed.parallel import Parallel
from llama.errors import ConfigError, OutOfMemoryError
from llama.loading import build
from llama.model import ModelArgs, Transformer
from llama.printable import shown
from llama.sizing import budget
from llama.sizing.budget import GIB, cache_bytes_per_token, free_memory, plan_cache, weight_bytes
from llama.sizing.family import MEMBERS, args_of

MIB = 1 << 20
CPU = torch.device("cpu")
FAMILY = {member.name: args_of(member) for member in MEMBERS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_predicted_bytes_are_those_of_the_loaded_weights(
    tmp_path: Path, size: int, kv_heads: int | None, dtype: torch.dtype
) -> None:
    # Each slice has a multiple of 16 rows, to which a kernel's layout may round up.
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
        assert model.new_pool(16, 4).nbytes == 64 * cache_bytes_per_token(checkpoint.args, size, dtype)


@pytest.mark.parametrize(("name", "mib"), [("7B", 0.50), ("13B", 0.78), ("34B", 0.19), ("70B", 0.31)])
def test_cache_bytes_of_the_family(name: str, mib: float) -> None:
    args = FAMILY[name]
    whole = cache_bytes_per_token(args, 1, torch.bfloat16)
    assert whole / MIB == pytest.approx(mib, abs=0.005)
    assert cache_bytes_per_token(args, 1, torch.float32) == 2 * whole
    assert cache_bytes_per_token(args, 8, torch.bfloat16) * 8 == whole


@pytest.mark.parametrize("name", ["7B", "13B", "34B", "70B"])
def test_int8_takes_eight_and_a_half_bits(name: str) -> None:
    for size in (1, 8, 16):
        half = cache_bytes_per_token(FAMILY[name], size, torch.bfloat16)
        assert cache_bytes_per_token(FAMILY[name], size, "int8") * 16 == half * 8.5


def test_more_ranks_than_key_value_heads_do_not_share_the_cache_further() -> None:
    args = FAMILY["34B"]
    eight, sixteen = (cache_bytes_per_token(args, size, torch.bfloat16) for size in (8, 16))
    assert eight == sixteen > 0


@pytest.mark.parametrize(("name", "gb"), [("7B", 12.6), ("13B", 24.2), ("34B", 63), ("70B", 128.5)])
def test_weight_bytes_of_the_family(name: str, gb: float) -> None:
    """The sizes of Meta's shards, in GiB."""
    args = FAMILY[name]
    whole = weight_bytes(args, 1, torch.bfloat16)
    assert whole / GIB == pytest.approx(gb, rel=0.01)
    # Only the norms are on every rank.
    assert 0 <= 8 * weight_bytes(args, 8, torch.bfloat16) - whole < 32 * MIB


# ---- the plan ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    params = {**SHAPE, "n_layers": 4}
    weights = random_weights(params, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "model", params, weights, tiny_model_path())


def set_free_memory(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device, ranks=1: free)


def bytes_of(folder: Path) -> tuple[int, int]:
    """Of the weights, and of one token's cache."""
    checkpoint = open_checkpoint(folder, max_seq_len=32, max_batch_size=2)
    args = checkpoint.args
    return weight_bytes(args, 1, torch.float32), cache_bytes_per_token(args, 1, torch.float32)


def test_the_suggested_max_seq_len_works_and_more_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, per_token = bytes_of(folder)
    set_free_memory(monkeypatch, 2 * (weights + 100 * per_token))

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
    # The plan fits.
    assert weights + suggested * per_token <= 2 * (weights + 100 * per_token)


def test_numbers_of_the_error_are_those_of_the_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free_memory(monkeypatch, 3 * GIB)
    _, per_token = bytes_of(folder)
    positions = 10 * GIB // per_token
    with pytest.raises(OutOfMemoryError, match=r"10\.00 GiB.*3\.00 GiB"):
        build(folder, None, positions, 1, None, "cpu", "float32")


def test_weights_that_do_not_fit_are_not_blamed_on_max_seq_len(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = bytes_of(folder)
    set_free_memory(monkeypatch, weights // 2)
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
            set_free_memory(patch, free)
            assert least <= plan_cache(args, Parallel(), torch.float32, CPU).tokens <= most, free


def plan(free: int | None, wanted: Any, **limits: int) -> Any:
    args = ModelArgs(
        **{"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "multiple_of": 16, "max_batch_size": 4}
        | {"max_seq_len": 100}
        | limits  # type: ignore[arg-type]
    )
    with pytest.MonkeyPatch.context() as patch:
        set_free_memory(patch, free)
        return plan_cache(args, Parallel(), torch.float32, CPU, wanted)


def test_prefixes_get_a_quarter_of_what_is_free_at_most() -> None:
    """By default, retained prefixes take no memory from running requests, and never most of a machine."""
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


_NO_AMOUNT = [0, -1, 10**400, 0.0, 1.5, -0.5, math.nan, math.inf, True, False, [1], b"4"]
_NO_TEXT = ["", "much", "9" * 300 + "GiB", "0", "0%", "150%", "-1GiB", "4 gigs", "GiB", "1e9"]


@pytest.mark.parametrize("wanted", [*_NO_AMOUNT, *_NO_TEXT])
def test_cache_memory_that_is_no_amount_is_refused(wanted: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match="cache_memory") as caught:
        build(folder, None, 32, 1, None, "cpu", "auto", cache_memory=wanted)
    assert shown(wanted) in str(caught.value)


def test_cache_memory_must_hold_a_sequence_and_fit_the_machine() -> None:
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
    """Prompts that do not fit at the same time take turns, with the same text."""
    prompts = ["def return self", "class value", "import list index", "for i in range"]
    weights, per_token = bytes_of(folder)
    options: dict[str, Any] = {"temperature": 0, "max_gen_len": 24}
    expected = Llama.build(folder, None, 48, 4, device="cpu", dtype="float32").text_completion(
        prompts, **options
    )
    set_free_memory(monkeypatch, int((weights + 60 * per_token) / 0.9) + 1)
    tight = Llama.build(folder, None, 48, 4, device="cpu", dtype="float32")
    assert tight.engine.cache_tokens < 2 * 48
    assert tight.text_completion(prompts, **options) == expected


def test_free_memory_of_a_cpu_is_shared_by_the_ranks_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_available_ram", lambda: 800)
    assert free_memory(CPU) == 800
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert free_memory(CPU) == 200
    monkeypatch.setattr(budget, "_available_ram", lambda: None)
    assert free_memory(CPU) is None


def test_free_memory_is_what_the_system_says() -> None:
    psutil = pytest.importorskip("psutil")
    free = free_memory(CPU)
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total
