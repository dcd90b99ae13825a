"""Fused layers give what the modules give, in every dtype, whatever else is in the step."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from fused_models import DTYPES, MHA, PARAMS, VOCAB, made, rms, steps
from pools import Held
from tiny_models import random_weights

from llama.kernels import fused
from llama.model import Transformer

pytestmark = pytest.mark.usefixtures("level")


def as_good(fast: list[torch.Tensor], plain: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """No further from float64 than the modules are in their dtype; these are held to an oracle elsewhere."""
    for a, b, c in zip(fast, plain, exact, strict=True):
        assert a.shape == b.shape == c.shape
        assert rms(a - c) < 1.3 * rms(b - c) + 0.002 * (a.dtype != torch.float32)
        assert rms(b - c) < (1e-5 if a.dtype == torch.float32 else 0.1) * rms(c)


def in_float64(plain: bool, lengths: list[int], counts: list[int]) -> list[torch.Tensor]:
    """The same for every level and dtype, so computed once."""
    key = (plain, *lengths, None, *counts)
    if key not in _EXACT:
        _EXACT[key] = steps(made(MHA if plain else PARAMS, dtype=torch.float64), lengths, counts)
    return _EXACT[key]


_EXACT: dict[tuple[object, ...], list[torch.Tensor]] = {}


@cache
def made_once(level: str, plain: bool, dtype: torch.dtype) -> Transformer:
    return made(MHA if plain else PARAMS, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain", [False, True], ids=["grouped", "plain"])
@pytest.mark.parametrize(
    ("lengths", "counts"),
    [
        ([0], [1]),
        ([40], [5]),
        ([0, 3, 33, 100], [1, 1, 1, 1]),
        ([5, 0, 17], [3, 4, 1]),
        (list(range(12)), [1] * 12),
        ([9, 2], [16, 16]),
        ([0, 30, 5], [100, 1, 27]),
    ],
)
def test_fused_layers_are_the_modules(
    level: str,
    plain: bool,
    dtype: torch.dtype,
    lengths: list[int],
    counts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made_once(level, plain, dtype)
    fast = steps(model, lengths, counts)
    monkeypatch.setattr(fused, "_MAX_ROWS", 0)
    as_good(fast, steps(model, lengths, counts), in_float64(plain, lengths, counts))


def test_fused_layers_fill_and_read_int8_caches_as_the_modules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to keys whose rounding falls to the other side, which is far less than what int8 changes."""
    taken = []
    run = fused.FusedLayers.run
    monkeypatch.setattr(fused.FusedLayers, "run", lambda *args: (taken.append(1), run(*args))[1])
    for dtype in DTYPES:
        found = {}
        for cache_dtype, most in (("int8", 128), ("int8", 0), ("auto", 0)):
            monkeypatch.setattr(fused, "_MAX_ROWS", most)
            taken.clear()
            model = made(PARAMS, dtype=dtype, cache_dtype=cache_dtype)
            found[cache_dtype, most] = steps(model, [40, 0, 7, 100], [1, 5, 2, 20])
            assert bool(taken) == (most > 0)
        for fast, plain, without in zip(*found.values(), strict=True):
            change = rms(plain.float() - without.float())
            assert 0.01 < change < 0.1
            assert rms(fast.float() - plain.float()) < 0.1 * change


def test_an_int8_cache_is_read_in_any_dtype_that_the_model_gets() -> None:
    model = made(PARAMS, dtype=torch.float32, cache_dtype="int8")
    filled = Held(model, [40])
    wanted = filled.copy().run(torch.tensor([5]), [1])
    model.to(torch.bfloat16)
    found = filled.run(torch.tensor([5]), [1])
    assert found.dtype == torch.bfloat16
    assert rms(found.float() - wanted) < 0.1 * rms(wanted)


# Few tokens of a sequence go one by one through attention, many in lanes.
@pytest.mark.parametrize(
    ("lengths", "counts"), [([0, 40, 7, 3], [1, 5, 2, 100]), ([12], [1])], ids=["several", "one token"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_a_sequence_is_the_same_alone_and_among_others(
    cache_dtype: str, dtype: torch.dtype, lengths: list[int], counts: list[int]
) -> None:
    """Bit for bit, on any number of threads, in any blocks."""
    model = made(PARAMS, dtype=dtype, cache_dtype=cache_dtype)
    ids = torch.randint(0, VOCAB, (sum(counts),), generator=torch.Generator().manual_seed(9))
    # In other blocks each time, of 2, 4 and 32 positions. They are filled on one thread: where others use the cores,
    # three wait for each other.
    one, three, alone = (
        Held(model, lengths, scatter=seed, size=size) for seed, size in ((1, 2), (3, 4), (None, 32))
    )
    found = [one.run(ids, counts)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found.append(three.run(ids, counts))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    parts = [alone.run(part, {i: len(part)}) for i, part in enumerate(ids.split(counts))]
    assert torch.equal(torch.cat(parts), found[0])


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_of_several_dtypes_in_one_step(dtype: torch.dtype, count: int) -> None:
    """As of a checkpoint that keeps some weights in more bits than others."""
    ids = torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(3))
    found = []
    for mixed in (False, True):
        model = made(PARAMS, dtype=dtype)
        weights = random_weights(PARAMS, VOCAB, 0)
        # All have bfloat16's values, so that only the way they lie differs.
        names = [name for name in weights if name.startswith("layers.") and weights[name].dim() == 2]
        for i, name in enumerate(names if mixed else ()):
            module: Any = model.get_submodule(name.rpartition(".")[0])
            module.assign(weights[name].bfloat16().to(DTYPES[i % 3]))
        found.append(Held(model, [0]).run(ids, [count]))
    assert rms(found[1] - found[0]) < (1e-5 if dtype == torch.float32 else 0.03) * rms(found[0])


def test_caches_of_another_dtype_are_not_taken_for_the_models() -> None:
    """A model can be cast while caches hold its former numbers. Their addresses must not reach the kernels."""
    model = made(PARAMS, dtype=torch.float32)
    filled = Held(model, [9])
    wanted = filled.copy().run(torch.tensor([5]), [1])
    model.to(torch.bfloat16)
    found = filled.run(torch.tensor([5]), [1])
    assert rms(found.float() - wanted) < 0.1 * rms(wanted)

    filled = Held(model, [9])
    model.to(torch.float32)  # its rows would be written past the end of these caches
    with pytest.raises(RuntimeError, match="same dtype"):
        filled.run(torch.tensor([5]), [1])
