"""Laws of a step on CUDA: one copy there, one back, one wait; as many launches for any batch; it can be recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_requests import ask, ids
from gpu_steps import Repeated, outputs
from pretended_gpu import Gpu

from llama import Llama
from llama.engine import Engine, Request
from llama.kernels import draws
from llama.sampling import GREEDY, SamplingParams

STOPS = frozenset(range(3, 150))
NEW = 10
OPTIONS: dict[str, Request] = {
    "greedy": ask(5, NEW),
    "sampled": ask(6, NEW, SamplingParams(0.9, 1.0), seed=1),
    "top-p": ask(7, NEW, SamplingParams(0.9, 0.8), seed=2),
    "top-k": ask(8, NEW, SamplingParams(0.9, 1.0, top_k=5), seed=3),
    "min-p": ask(9, NEW, SamplingParams(0.9, 1.0, min_p=0.1), seed=4),
    "penalties": ask(10, NEW, SamplingParams(0.9, 1.0, 0, 0.0, 1.3, 0.5, 0.5), seed=5),
    "bias": ask(11, NEW, SamplingParams(0.0, logit_bias={300: 4.0, 17: -100.0})),
    "least tokens": ask(12, NEW, min_new_tokens=6, stop_ids=STOPS),
    "alternatives": ask(13, NEW, top=3),
    "scored prompt": ask(200, NEW, top=2, score_prompt=True),
    "samples": ask(45, NEW, SamplingParams(1.0, 0.95), n=3, seed=6),
    "prediction": ask(14, NEW, prediction=ids(40)),
    "no new token": ask(20, 0, score_prompt=True),
}


@pytest.fixture(scope="module")
def on_gpu(there: Callable[..., Any], tiny_checkpoint: Path) -> Llama:
    with there():
        return Llama.build(tiny_checkpoint, None, 256, 64, device="cuda:0", dtype="float32")


def engine_of(llama: Llama, **options: Any) -> Engine:
    return Engine(llama.model, llama.tokenizer, **options)


# ---- law 2: what a step waits for, and how much it starts ----


@pytest.mark.parametrize(
    "name", ["greedy", "sampled", "scored prompt", "samples", "prediction", "all at once"]
)
def test_a_step_makes_one_copy_in_one_out_and_one_wait(gpu: Gpu, on_gpu: Llama, name: str) -> None:
    """Those of a prompt too; and the first ones behind a fork, which copy blocks."""
    requests = [OPTIONS[name]] if name in OPTIONS else list(OPTIONS.values())
    engine = engine_of(on_gpu, step_tokens=96)
    gpu.forget()
    steps = 0

    def check() -> None:
        nonlocal steps
        assert gpu.counts["copy in"] == 1, gpu.told("copy in")
        assert gpu.counts["copy out"] <= 1, gpu.told("copy out")
        assert gpu.counts["sync"] <= 1, gpu.told("sync")
        assert gpu.told("pageable") == gpu.told("off device") == []
        steps += 1
        gpu.forget()

    outputs(engine, requests, check)
    assert steps > 3


def launches(gpu: Gpu, engine: Engine, requests: Sequence[Request]) -> set[int]:
    """Of the steps in which all of these decode."""
    found: list[int] = []

    def count() -> None:
        running = engine.scheduler.running
        if len(running) == len(requests) and all(sequence.generated > 1 for sequence in running):
            found.append(gpu.counts["launch"])
        gpu.forget()

    outputs(engine, requests, count)
    assert len(found) > 3
    return set(found)


def test_a_decode_step_starts_as_many_kernels_for_64_sequences_as_for_one(gpu: Gpu, on_gpu: Llama) -> None:
    """Whatever their options; alternatives alone take more."""
    names = ("greedy", "sampled", "top-p", "top-k", "min-p", "penalties", "bias")
    mixed = [
        dataclasses.replace(OPTIONS[names[i % len(names)]], prompt=ids(5 + i), seed=i) for i in range(64)
    ]
    few = launches(gpu, engine_of(on_gpu, speculate=False), [OPTIONS["greedy"]])
    many = launches(gpu, engine_of(on_gpu, speculate=False), mixed)
    assert few == many
    assert len(few) == 1


# ---- law 3: a step is recorded and repeated ----


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize(
    "name", ["greedy", "penalties", "least tokens", "alternatives", "samples", "all at once"]
)
def test_a_recorded_decode_step_gives_the_tokens_of_one_that_runs(gpu: Gpu, on_gpu: Llama, name: str) -> None:
    """With other ids, positions, tables, random numbers and penalties in the same buffers."""
    requests = [OPTIONS[name]] if name in OPTIONS else list(OPTIONS.values())
    requests = [*requests, dataclasses.replace(requests[0], prompt=ids(9, seed=3), seed=77)]
    expected = outputs(engine_of(on_gpu), requests)
    engine = engine_of(on_gpu)
    repeated = Repeated(engine)
    engine.runner.compute = repeated  # type: ignore[method-assign]
    assert outputs(engine, requests) == expected
    assert repeated.repeated > 3


@pytest.mark.usefixtures("guard")
def test_a_number_of_the_host_in_a_step_shows_when_it_is_repeated(
    gpu: Gpu, on_gpu: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law above holds something: here the random numbers of the first step stay."""
    request = OPTIONS["sampled"]
    expected = outputs(engine_of(on_gpu), [request])
    engine = engine_of(on_gpu)
    engine.runner.compute = Repeated(engine)  # type: ignore[method-assign]
    plain = draws.draw
    monkeypatch.setattr("llama.engine.runner.draw", lambda logits, numbers: plain(logits, frozen(numbers)))
    assert outputs(engine, [request]) != expected


def frozen(numbers: Any) -> torch.Tensor:
    """The same tensor, of which a recording keeps the numbers."""
    made: torch.Tensor = type(numbers)(numbers.host.clone(), numbers.device)
    return made


# ---- beside the laws ----


def test_neighbours_change_nothing(gpu: Gpu, on_gpu: Llama) -> None:
    """Draws are of (seed, sample, position), also where rows with other options are drawn in one go."""
    together = outputs(engine_of(on_gpu, prefix_reuse=False), list(OPTIONS.values()))
    for i, (name, request) in enumerate(OPTIONS.items()):
        if name not in ("greedy", "penalties", "samples"):
            continue
        alone = outputs(engine_of(on_gpu, prefix_reuse=False), [request])
        for (_, sample), (tokens, *_) in alone.items():
            assert tokens == together[i, sample][0]


def test_greedy_rows_take_the_first_of_equal_logits(gpu: Gpu) -> None:
    rows = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).to("cuda")
    assert draws.sample(rows, [GREEDY] * 2, [0.9, 0.9]).tolist() == [1, 0]


def test_rows_that_are_not_finite_give_some_id(gpu: Gpu) -> None:
    """An id that does not exist would end the process, on a device that looks it up."""
    rows = torch.zeros(4, 50)
    rows[0], rows[1, 3], rows[2, :4], rows[3] = torch.nan, torch.inf, -torch.inf, -torch.inf
    for uniform in (0.0, 0.5, 1 - 2**-53):
        for params in (GREEDY, SamplingParams(1.0, 1.0), SamplingParams(1.0, 0.9, 3, 0.1)):
            found = draws.sample(rows.to("cuda"), [params] * 4, [uniform] * 4).tolist()
            assert all(0 <= each < 50 for each in found)
