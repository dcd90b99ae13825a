"""Each part of `make gpu` measures what it says, through the package's public calls: on a pretended GPU, in small."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_gpu import Gpu, pretended

from llama.distributed.layers import joint_product

ROOT = Path(__file__).resolve().parents[2]
# The part -> the figures that it gives, by how their names begin.
FIGURES = {
    "ceilings": ["copy of", "copy of", "bfloat16 product", "pinned memory", "the device to", "a launch"],
    "decode-7b": [*(f"7B, batch {batch} at" for batch in (1, 2, 4, 6)), "7B, batch 4, plain attention at"],
    "prefill-7b": [
        *("7B, prompt, 32 tokens", "7B, prompt, 256 tokens"),
        "7B, plain attention, prompt, 256 tokens",
    ],
    "transformers": [
        f"7B, {what}, {whose}"
        for what in ("batch 1 at 12 positions", "batch 3 at 12 positions", "prompt of 16 tokens")
        for whose in ("ours", "transformers", "ours of transformers")
    ],
    "34b": ["34B, batch 1 at", "34B, batch 8 at", "34B, prompt"],
    "profile": [f"7B, batch {batch}, one step: " for batch in (1, 3) for _ in range(7)],
}


class Clock:
    """In the place of `time`: a second for each launch, copy and wait, so that what does more always takes longer."""

    def __init__(self) -> None:
        self.gpu: Gpu | None = None

    def perf_counter(self) -> float:
        assert self.gpu is not None
        return float(sum(self.gpu.counts.values()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all works, which then pause for nobody."""
    made = Clock()
    for name in ("workplace", "works.engine_runs", "works.beside"):
        monkeypatch.setattr(importlib.import_module(f"gpu.{name}"), "time", made)
    monkeypatch.setattr(importlib.import_module("peers"), "_SPIN", 0.0)
    return made


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu.measure").WORKS


def measured(works: dict[str, str], part: str, clock: Clock, **free: int) -> tuple[list[Any], list[str]]:
    """Run a part -> its figures, and what it says was lacking."""
    work = importlib.import_module(f"gpu.works.{works[part]}")
    workplace = importlib.import_module("gpu.workplace")
    figures: list[Any] = []
    lacking: list[str] = []
    with pretended(**free) as clock.gpu:
        work.run(workplace.Workplace(torch.device("cuda", 0), True, figures.append, lacking.append))
    return figures, lacking


@pytest.mark.slow
@pytest.mark.parametrize("part", FIGURES)
def test_a_part_gives_its_figures(guard: Path, works: dict[str, str], clock: Clock, part: str) -> None:
    assert set(works) == {"tests", *FIGURES}
    figures, lacking = measured(works, part, clock)
    assert lacking == []
    for figure, name in zip(figures, FIGURES[part], strict=True):
        assert figure.name.startswith(name)
        assert all(sample >= 0 for sample in figure.samples)
        if part in ("decode-7b", "prefill-7b"):
            assert figure.note == f"attention: {'torch' if 'plain' in name else 'flash, tables'}"
        assert type(figure).of(json.loads(json.dumps(figure.as_json()))) == figure


def test_what_does_not_fit_is_said(guard: Path, works: dict[str, str], clock: Clock) -> None:
    figures, lacking = measured(works, "34b", clock, memory=1 << 30)
    assert figures == []
    assert lacking == ["34B: it needs 3 GiB, and 1 GiB are free"]


@pytest.mark.parametrize(("gib", "positions"), [(48, 512), (40, 256), (16, 128), (9, 64), (8, None)])
def test_a_batch_gets_the_positions_that_there_is_memory_for(
    guard: Path, works: dict[str, str], gib: int, positions: int | None
) -> None:
    """At 196,608 bytes a position; a sequence ends with 186, 122, 90 or 74 new ones, and a fifth stays free."""
    runs, models = (importlib.import_module(f"gpu.{name}") for name in ("works.engine_runs", "models"))
    workplace = importlib.import_module("gpu.workplace")
    with torch.device("meta"):
        model = importlib.import_module("llama.model").Transformer(models.shape("34B", tiny=False))
    with pretended(memory=gib << 30):
        place = workplace.Workplace(torch.device("cuda", 0), False, print, print)
        assert runs.fitting(place, model, batch=256, steps=56) == positions


def test_a_random_model_has_its_weights_where_the_loader_puts_them(
    guard: Path, works: dict[str, str]
) -> None:
    """Or each step would start three products where a loaded model starts one."""
    models = importlib.import_module("gpu.models")
    with pretended():
        model = models.make_model(models.shape("34B", tiny=True), torch.device("cuda", 0))
        x = torch.ones(2, 64, dtype=torch.bfloat16, device="cuda")
        for layer in model.layers:
            attention, feed_forward = layer.attention, layer.feed_forward
            for group in ([attention.wq, attention.wk, attention.wv], [feed_forward.w1, feed_forward.w3]):
                parts = joint_product(x, *group)
                assert parts is not None
                for part, each in zip(parts, group, strict=True):
                    assert torch.equal(part.cpu(), each(x).cpu())
        numbers = torch.cat([value.cpu().float().flatten() for value in model.state_dict().values()])
    assert 0.01 < numbers[numbers != 1].std() < 0.03


def test_a_profile_is_taken_apart(works: dict[str, str]) -> None:
    """With the names that CUDA's profiler gives; an operator of the host has the time of its kernels once more."""
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(key=key, device_type=where, count=count, self_device_time_total=us)
        for key, where, count, us in (
            ("aten::mm", cpu, 4, 400.0),
            ("sm90_xmma_gemm", cuda, 4, 400.0),
            ("void at::native::elementwise", cuda, 3, 30.0),
            ("Memset (Device)", cuda, 1, 5.0),
            ("Memcpy HtoD (Pinned -> Device)", cuda, 1, 10.0),
            ("Memcpy DtoH (Device -> Pageable)", cuda, 2, 50.0),
            ("Memcpy DtoD (Device -> Device)", cuda, 1, 5.0),
            ("cudaLaunchKernel", cpu, 7, 0.0),
            ("cudaStreamSynchronize", cpu, 2, 0.0),
            ("cudaDeviceSynchronize", cpu, 2, 0.0),
        )
    ]
    found = importlib.import_module("gpu.works.one_step").taken_apart(events)
    assert {name: value for name, (value, _) in found.items()} == {
        "the device works": 0.5,
        "kernels": 7,
        "waits of the host": 2,
        "copies in": 1,
        "copies out": 2,
        "copies of memory that is not pinned": 2,
    }


# ---- bounds ----


@pytest.mark.parametrize(
    ("size", "batch", "positions", "tokens_per_second"),
    [("7B", 1, 0, 325.4), ("7B", 64, 512, 9053), ("34B", 1, 0, 64.1)],
)
def test_a_decode_step_is_bound_by_the_weights_and_the_caches(
    works: dict[str, str], size: str, batch: int, positions: int, tokens_per_second: float
) -> None:
    """On a device that copies 4.3 TB/s; counted by hand from the shapes in docs/family.md."""
    figures, models = (importlib.import_module(f"gpu.{name}") for name in ("figures", "models"))
    cost = models.decode_cost(models.shape(size, tiny=False), batch, positions)
    figure = figures.Figure("decode", "tokens/s", [tokens_per_second / 2], cost)
    ceilings = figures.Ceilings({"bandwidth": 4.3e12, "matmul": 790e12})
    assert ceilings.bound(figure) == pytest.approx(tokens_per_second, rel=2e-3)
    assert ceilings.share(figure) == pytest.approx(0.5, rel=2e-3)


def test_a_long_prompt_is_bound_by_products(works: dict[str, str]) -> None:
    """Of 6.48e9 weights for each of 16,384 tokens, and half of all pairs of positions, twice in each layer."""
    figures, models = (importlib.import_module(f"gpu.{name}") for name in ("figures", "models"))
    cost = models.prefill_cost(models.shape("7B", tiny=False), 16384)
    figure = figures.Figure("prefill", "ms", [716.0], cost)
    ceilings = figures.Ceilings({"bandwidth": 4.3e12, "matmul": 790e12})
    assert ceilings.bound(figure) == pytest.approx(358, rel=2e-3)
    assert ceilings.share(figure) == pytest.approx(0.5, rel=2e-3)
