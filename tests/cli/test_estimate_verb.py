"""Laws of the verb estimate: its numbers are those of the models, its verdict that of the devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llama.sizing import estimate
from llama.sizing.estimate import table

GIB = 1 << 30


# From Meta's own shards, and keys and values of one position: layers x 2 x kv heads x 128 x 2 bytes.
@pytest.mark.parametrize(
    ("name", "gb", "mib"),
    [("7b", 13.48, 0.5), ("13B", 26.03, 0.78), ("34b", 67.49, 0.19), ("70b", 137.95, 0.31)],
)
def test_the_family_by_name(run: Any, name: str, gb: float, mib: float) -> None:
    code, out, err = run("estimate", "--model", name, "--seq", 1024, "--batch", 1)
    assert (code, err) == (0, "")
    numbers = {line.split("  ")[1]: float(line[12:24].split()[0]) for line in out.splitlines()[1:5]}
    assert numbers["weights"] == pytest.approx(gb * 1e9 / GIB, abs=0.02)
    assert numbers["cache"] == pytest.approx(mib, abs=0.01)
    parts = sum(numbers[name] for name in ("weights", "cache", "work space"))
    assert numbers["total"] == pytest.approx(parts, abs=0.02)
    assert out.startswith(f"{name} on 1 rank, GiB per rank:\n")


def test_ranks_and_dtype_change_what_a_rank_holds(run: Any) -> None:
    def weights(*more: object) -> float:
        code, out, _ = run("estimate", "--model", "34b", *more)
        assert code == 0
        return float(out.splitlines()[1].split()[1])

    whole = weights()
    assert weights("--mp", 4) == pytest.approx(whole / 4, rel=0.01)
    assert weights("--dtype", "float32") == pytest.approx(2 * whole, rel=0.01)
    # Linear layers of 8 or 4 bits, and scales; the embedding stays as it is.
    assert 0.53 * whole < weights("--quant", "int8") < 0.54 * whole
    assert 0.29 * whole < weights("--quant", "int4") < 0.31 * whole


def test_an_int8_cache_takes_half(run: Any) -> None:
    found = []
    for more in ((), ("--cache-dtype", "int8")):
        code, out, _ = run("estimate", "--model", "7b", "--seq", 16384, "--batch", 4, *more)
        assert code == 0
        found.append(out.splitlines()[2].split(maxsplit=2))
    assert float(found[1][1]) == pytest.approx(float(found[0][1]) * 8.5 / 16, abs=0.01)
    assert [each[2] for each in found] == ["4 x 16,384 tokens", "4 x 16,384 tokens in int8"]


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (1 << 20, ["does not fit", "not even with an empty cache"]),
        (20 * GIB, ["20.00 GiB free", "does not fit; what fits"]),
        (100 * GIB, ["100.00 GiB free", ": fits; what fits"]),
        (None, ["does not say"]),
    ],
)
def test_the_verdict_for_the_devices_present(
    run: Any, monkeypatch: pytest.MonkeyPatch, free: int | None, words: list[str]
) -> None:
    monkeypatch.setattr(estimate, "devices", lambda: [("cpu", free)])
    code, out, _ = run("estimate", "--model", "7b", "--seq", 16384, "--batch", 2)
    assert code == 0
    for word in words:
        assert word in out.splitlines()[-1], out
    if free == 100 * GIB:
        each, count = re.findall(r"what fits: 2 x ([\d,]+) tokens, or ([\d,]+) x 16,384", out)[0]
        # 0.5 MiB for each token, beside 12.55 GiB of weights and the work space, in nine tenths of the memory.
        assert 2 * int(each.replace(",", "")) * 0.5 / 1024 == pytest.approx(90 - 12.55, abs=0.5)
        assert int(count) == pytest.approx((90 - 12.55) / 8, abs=1)


def test_ranks_share_the_memory_of_a_cpu_and_have_gpus_of_their_own(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "devices", lambda: [("cpu", 64 * GIB)])
    assert "16.00 GiB free per rank" in run("estimate", "--model", "7b", "--mp", 4)[1]
    monkeypatch.setattr(estimate, "devices", lambda: [("cuda:0 (X)", 64 * GIB), ("cuda:1 (X)", 32 * GIB)])
    out = run("estimate", "--model", "7b", "--mp", 4)[1]
    assert "cuda:0 (X): 64.00 GiB" in out
    assert "cuda:1 (X): 32.00 GiB" in out
    assert "4 ranks need as many GPUs; this machine has 2" in out


def test_a_gpu_s_steps_are_longer_and_take_more_work_space(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    space = {}
    for device in ("cpu", "cuda:0 (X)"):
        monkeypatch.setattr(estimate, "devices", lambda device=device: [(device, 64 * GIB)])
        out = run("estimate", "--model", "7b", "--seq", 16384)[1]
        space[device] = float(re.findall(r"work space +([\d.]+)", out)[0])
    assert space["cuda:0 (X)"] == pytest.approx(8 * space["cpu"], rel=0.1)


def test_estimate_of_a_folder(run: Any, hf: Path) -> None:
    """As stored, unless told otherwise."""
    code, out, _ = run("estimate", "--model", hf, "--seq", 64)
    assert code == 0
    assert "bfloat16" in out
    assert "float32" in run("estimate", "--model", hf, "--dtype", "float32")[1]


def test_a_folder_whose_name_is_a_members(run: Any, meta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of the family counts; the folder is meant with a slash."""
    meta.rename(meta.parent / "7b")
    monkeypatch.chdir(meta.parent)
    assert "12.55" in run("estimate", "--model", "7b")[1]
    assert "12.55" not in run("estimate", "--model", "./7b")[1]


def test_table_is_printed_alone(run: Any) -> None:
    code, out, _ = run("estimate", "--table")
    assert code == 0
    assert out == table() + "\n"
